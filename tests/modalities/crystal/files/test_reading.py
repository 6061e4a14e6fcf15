import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.commands import RunCli
from tests.support.samples.crystals import PEROVSKITE, ROCK_SALT, crystal, known_crystals
from unite.errors import UserError
from unite.modalities.crystal.crystal import Crystal, UnusableCrystalError
from unite.modalities.crystal.files.reading import find_files, parse, read_records
from unite.modalities.crystal.files.writing import cif_lines, write_crystals
from unite.modalities.crystal.metrics.matching import match
from unite.modalities.crystal.metrics.scores import score_crystals

pytest.importorskip("pymatgen")
pytest.importorskip("ase")

GOOD = "\n".join(cif_lines([ROCK_SALT]))
LARGE = crystal([8] * 10_000, np.random.default_rng(0).random((10_000, 3)).tolist(), 60)
BAD = {
    "no_cell": GOOD.replace("_cell_length_b", "_length_b"),
    "partial_occupancy": GOOD.replace("0.000000 1.0", "0.000000 0.5"),
    "disordered": GOOD.replace("Na1 Na", "K1 K 0.0 0.0 0.0 0.5\nNa1 Na").replace("0.000000 1.0", "0.000000 0.5"),
    "unknown_element": GOOD.replace("Na1 Na", "Qq1 Qq"),
    "no_volume": GOOD.replace("_cell_length_a 3.990000", "_cell_length_a 0.0"),
    "unreadable": GOOD.replace("0.500000 0.500000 0.500000 1.0", "0.500000 here"),
    "too_large": "\n".join(cif_lines([LARGE])),
}


def crystals_of(path: Path) -> list[Crystal]:
    return [parse(record) for record in read_records(find_files(path))]


@pytest.mark.parametrize("name", ["samples.cif", "samples.extxyz"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    items = [*known_crystals("materials_project_small", 8), PEROVSKITE]
    write_crystals(items, tmp_path)
    found = crystals_of(tmp_path / name)
    for item, back in zip(items, found, strict=True):
        np.testing.assert_array_equal(back.atomic_numbers, item.atomic_numbers)
        assert (match(item, back).strict or 0.0) < 1e-4
        np.testing.assert_allclose(back.cell, item.cell, rtol=1e-5)


def test_pymatgen_writes_what_is_read(tmp_path: Path) -> None:
    structure = PEROVSKITE.to_pymatgen()
    structure.to(str(tmp_path / "POSCAR"), fmt="poscar")
    structure.to(str(tmp_path / "symmetric.cif"), symprec=0.01)  # a space group, and few sites
    found = crystals_of(tmp_path)
    assert [item.formula for item in found] == ["SrTiO3"] * 2
    assert all(match(item, PEROVSKITE).strict is not None for item in found)


@pytest.mark.parametrize("kind", BAD)
def test_bad_records_are_told_by_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "bad.cif").write_text(BAD[kind])
    (record,) = read_records([tmp_path / "bad.cif"])
    with pytest.raises(UnusableCrystalError) as found:
        parse(record)
    assert found.value.kind == kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("2\nno cell\nNa 0 0 0\nCl 2 2 2\n", "no_cell"),
        ('3\nLattice="4 0 0 0 4 0 0 0 4"\nNa 0 0 0\n', "unreadable"),
        ("10000\n", "too_large"),
        ("hello\n", "unreadable"),
    ],
)
def test_bad_frames_are_told_by_name(tmp_path: Path, text: str, kind: str) -> None:
    (tmp_path / "bad.extxyz").write_text(text)
    (record,) = read_records([tmp_path / "bad.extxyz"])
    with pytest.raises(UnusableCrystalError) as found:
        parse(record)
    assert found.value.kind == kind


def test_every_record_counts(tmp_path: Path) -> None:
    (tmp_path / "mixed.cif").write_text("\n".join([GOOD, *BAD.values(), GOOD]))
    scores = score_crystals(tmp_path / "mixed.cif", num_workers=1)
    total = len(BAD) + 2
    assert scores.num_records == total
    assert scores.metrics["validity"] == pytest.approx(2 / total)
    assert scores.metrics["uniqueness"] == 0.5
    for kind in BAD:
        assert scores.metrics[f"reject/{kind}"] == pytest.approx(1 / total), kind
    assert [reject["reason"] for reject in scores.rejects] == list(BAD)


def test_command_scores_a_folder_of_samples(tmp_path: Path, run_cli: RunCli) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    write_crystals([PEROVSKITE, ROCK_SALT, PEROVSKITE], samples)
    result = run_cli("score", str(samples), "--num_workers", "1")
    assert result.code == 0, result.err
    assert "3 records in" in result.out  # the two files hold the same crystals
    values = json.loads((tmp_path / "samples_scores" / "metrics.json").read_text())
    assert values["validity"] == 1
    assert values["uniqueness"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [("hello", "none of the 1 records of"), ("", "none of the 1 records of"), (BAD["no_cell"], "no_cell")],
)
def test_files_without_a_crystal_are_one_line(tmp_path: Path, run_cli: RunCli, content: str, words: str) -> None:
    (tmp_path / "x.cif").write_text(content)
    result = run_cli("score", "crystals", str(tmp_path / "x.cif"), "--num_workers", "1")
    assert result.code == 2
    assert words in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "x_cif_scores").exists()


def test_what_holds_no_crystals_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(UserError, match=r"x.txt is none of .cif, .extxyz"):
        find_files(tmp_path / "x.txt")
    with pytest.raises(UserError, match="has no files of"):
        find_files(tmp_path)
    with pytest.raises(UserError, match="neither a file nor a folder"):
        find_files(tmp_path / "nothing")
