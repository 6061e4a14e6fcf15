"""``--physics`` of ``unite score``."""

import importlib.util
import json
from pathlib import Path

import pytest

from tests.support.commands import RunCli
from tests.support.samples.conformers import embedded
from tests.support.samples.crystals import PEROVSKITE, known_crystals
from unite.modalities.crystal.files.writing import write_crystals
from unite.modalities.molecule.files.writing import write_sdf


def test_molecules_are_relaxed_beside_a_reference(run_cli: RunCli, tmp_path: Path) -> None:
    made, real = [[embedded(smiles)[0] for smiles in group] for group in (["CO", "C", "N"], ["O", "CO"])]
    write_sdf(made, tmp_path / "made.sdf")
    write_sdf(real, tmp_path / "real.sdf")
    result = run_cli(
        *("score", "molecules", tmp_path / "made.sdf", "--no_novelty", "--physics", "2", "--num_workers", "1"),
        *("--reference", tmp_path / "real.sdf", "--output", tmp_path / "out"),
    )
    assert result.code == 0, result.err
    values = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert values["physics/num"] == values["physics_reference/num"] == 2
    assert values["physics/failed"] == 0
    assert values["physics/bonds_kept"] == values["physics/same_bonds"] == 1
    assert 0 < values["physics/strain_median"] < 0.2  # MMFF's minima are near those of GFN2-xTB
    assert "physics/strain_median" in result.out


@pytest.mark.slow  # CHGNet takes seconds to import
def test_crystals_are_relaxed_beside_real_and_random_ones(run_cli: RunCli, tmp_path: Path) -> None:
    pytest.importorskip("chgnet")  # it has no wheels beyond Python 3.12
    write_crystals(known_crystals("materials_project_small", 3), tmp_path)
    result = run_cli(
        *("score", "crystals", tmp_path / "samples.cif", "--physics", "2", "--reference", tmp_path / "samples.extxyz"),
        *("--num_workers", "1", "--output", tmp_path / "out"),
    )
    assert result.code == 0, result.err
    values = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert values["physics/energy_drop_median"] == pytest.approx(
        values["physics_reference/energy_drop_median"], abs=1e-4
    )
    assert values["physics_random/energy_drop_median"] > 1


@pytest.mark.parametrize(
    ("kind", "file", "arguments", "words"),
    [
        ("molecules", "one.smi", ("--physics", "5"), "--physics needs positions, and "),
        ("molecules", "one.sdf", ("--physics", "0"), "--physics is 0; it must be at least 1"),
        ("crystals", "samples.cif", ("--physics", "-1"), "--physics is -1; it must be at least 1"),
        ("crystals", "samples.cif", ("--physics", "1", "--reference", "no.cif"), "--reference no.cif is no file"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    run_cli: RunCli, tmp_path: Path, kind: str, file: str, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "one.smi").write_text("CCO\n")
    write_sdf([embedded("C")[0]], tmp_path / "one.sdf")
    write_crystals([PEROVSKITE], tmp_path)
    result = run_cli("score", kind, tmp_path / file, *arguments)
    assert result.code == 2
    assert words in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "file", "package"), [("molecules", "a.sdf", "tblite"), ("crystals", "a.cif", "chgnet")]
)
def test_a_missing_package_is_told_with_what_to_install(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, file: str, package: str
) -> None:
    (tmp_path / file).write_text("")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    result = run_cli("score", kind, tmp_path / file, "--physics", "1")
    assert result.code == 2
    assert f'--physics needs {package}, which is not installed: pip install "unite-lightning[physics]"' in result.err
    assert result.err.count("\n") == 1
