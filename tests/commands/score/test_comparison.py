"""``unite score molecules`` of SMILES, and beside a reference."""

import gzip
import json
from pathlib import Path

import pytest
from rdkit import Chem
from rdkit.Chem import rdDepictor

from tests.support.commands import RunCli
from tests.support.samples.conformers import MANY_ELEMENTS, embedded
from unite.modalities.molecule.files.writing import write_sdf
from unite.modalities.molecule.metrics import moses

SMILES = ["CCO", "OCC", "C/C=C/C", "c1ccccc1", "CC.O", "C[CH2]", "C1CC", "CN(C)(C)C", "CC(=O)[O-]"]
REASONS = [None, None, None, None, "disconnected", "radical", "unreadable", "sanitization", None]


def write(path: Path, lines: list[str]) -> Path:
    text = "\n".join(lines) + "\n"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["m.smi", "m.csv", "m.csv.gz"])
def test_smiles_are_judged_by_their_bonds(run_cli: RunCli, tmp_path: Path, name: str) -> None:
    lines = [f"{smiles} x" for smiles in SMILES] if name == "m.smi" else ["SMILES,x", *(f"{each},1" for each in SMILES)]
    file = write(tmp_path / name, lines)
    result = run_cli("score", "molecules", file, "--output", tmp_path / "out", "--no_novelty")
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["num_molecules"] == 9
    assert found["validity_bonds"] == pytest.approx(5 / 9)
    assert found["uniqueness_bonds"] == 4 / 5
    rejects = json.loads((tmp_path / "out" / "rejects.json").read_text())["rejected"]
    assert [reject["reason"] for reject in rejects] == [reason for reason in REASONS if reason]
    assert "validity" not in found
    assert "atom_stability" not in found


def test_table_of_moses_and_fcd_beside_a_reference(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    molecules = [embedded(smiles)[0] for smiles in MANY_ELEMENTS]
    write_sdf(molecules, tmp_path / "gen.sdf")
    reference = write(tmp_path / "ref.csv", ["SMILES", *MANY_ELEMENTS])
    train = write(tmp_path / "train.smi", list(MANY_ELEMENTS[:7]))
    common = ("--no_novelty", "--reference", reference, "--overwrite")
    result = run_cli(
        *("score", "molecules", tmp_path / "gen.sdf", "--output", tmp_path / "out", "--benchmark", "moses"),
        *("--train", train, *common),
    )
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["validity"] == found["moses/valid"] == 1
    assert found["moses/snn"] == pytest.approx(1)  # the same molecules, once from positions and once from SMILES
    assert [found["moses/frag"], found["moses/scaf"]] == pytest.approx([1, 1])
    assert found["moses/fcd"] == pytest.approx(0, abs=1e-5)
    assert found["moses/novelty"] == pytest.approx(1 - 7 / len(MANY_ELEMENTS))
    assert "FCD of 29 molecules to 29" in result.out
    for path in (reference, train):  # kept for the next time
        assert list(tmp_path.glob(f"{path.name}.*.safetensors"))
    with monkeypatch.context() as patches:
        patches.setattr(moses, "keys_of_all", None)
        again = run_cli(
            *("score", "molecules", tmp_path / "gen.sdf", "--output", tmp_path / "out", "--benchmark", "moses"),
            *("--train", train, *common),
        )
    assert again.code == 0, again.err
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == found
    result = run_cli(
        *("score", "molecules", tmp_path / "gen.sdf", "--output", tmp_path / "out", "--num_reference", 20, *common)
    )
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["fcd"] > 0.1
    assert not any(name.startswith("moses/") for name in found)
    assert "compared with 20 of the 29 molecules" in result.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--benchmark", "moses"), "--benchmark moses needs --reference FILE"),
        (("--train", "{tmp}/a.smi"), "--train is for --benchmark moses"),
        (("--reference", "{tmp}/a.smi", "--train", "{tmp}/a.smi"), "--train is for --benchmark moses"),
        (("--reference", "{tmp}/none.smi"), "none.smi: no such file or folder"),
        (("--reference", "{tmp}/a.csv"), "has no column called smiles; name one in smiles_column: x, y"),
        (("--reference", "{tmp}/bad.smi"), "has no molecules that can be read"),
        (("--num_reference", "-1"), "--num_reference is -1; it must be 0 (all) or more"),
        (("--bonds", "as_written"), "has SMILES, whose bonds are judged anyway; leave the option out"),
        (("--routes", "posebusters"), "--routes needs positions"),
    ],
)
def test_wrong_options_are_told_in_one_line(
    run_cli: RunCli, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    write(tmp_path / "a.smi", SMILES)
    write(tmp_path / "bad.smi", ["(", "?"])
    write(tmp_path / "a.csv", ["x,y", "1,2"])
    args = [option.format(tmp=tmp_path) for option in options]
    result = run_cli("score", "molecules", tmp_path / "a.smi", "--output", tmp_path / "out", "--no_novelty", *args)
    assert result.code == 2
    assert words in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_a_file_without_molecules_is_refused(run_cli: RunCli, tmp_path: Path) -> None:
    result = run_cli("score", "molecules", write(tmp_path / "a.smi", [""]), "--no_novelty")
    assert result.code == 2
    assert "has no molecules" in result.err


def test_distributions_of_shapes_beside_a_reference(run_cli: RunCli, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    molecules = [embedded(smiles)[0] for smiles in ("C1CC1", "CCC", "CCO", "CNC")]
    write_sdf(molecules[:2], tmp_path / "gen.sdf")
    write_sdf(molecules, tmp_path / "ref.sdf")
    options = ("--no_novelty", "--reference", tmp_path / "ref.sdf", "--output", tmp_path / "out")
    result = run_cli("score", "molecules", tmp_path / "gen.sdf", *options)
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["distance/bond_lengths_outside"] == 0
    assert found["distance/rings"] == pytest.approx(1 / 4)
    assert found["distance/elements"] == pytest.approx(1 / 6)
    assert [found["samples/rings"], found["reference/rings"]] == [1 / 2, 1 / 4]
    assert "distance to the reference" in result.out
    assert (tmp_path / "out" / "distributions.png").stat().st_size > 1000
    smiles = write(tmp_path / "ref.smi", ["CCO", "CCN"])
    result = run_cli("score", "molecules", tmp_path / "gen.sdf", *options[:2], smiles, *options[3:], "--overwrite")
    assert "no distributions of shapes: they need valid molecules with positions on both sides" in result.out
    assert not any(name.startswith("distance/") for name in json.loads((tmp_path / "out/metrics.json").read_text()))


def test_drawings_are_compared_by_their_bonds_as_written(run_cli: RunCli, tmp_path: Path) -> None:
    with Chem.SDWriter(str(tmp_path / "gen.sdf")) as writer:
        for smiles in ("CCO", "c1ccccc1", "C1CC1", "[CH2]C"):  # the last is a radical
            drawing = Chem.AddHs(Chem.MolFromSmiles(smiles))
            rdDepictor.Compute2DCoords(drawing)
            writer.write(drawing)
    reference = write(tmp_path / "ref.smi", ["CCO", "c1ccccc1", "C1CC1"])
    result = run_cli(
        *("score", "molecules", tmp_path / "gen.sdf", "--bonds", "as_written", "--benchmark", "moses"),
        *("--reference", reference, "--no_novelty", "--output", tmp_path / "out"),
    )
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["validity"] == 0
    assert found["validity_as_written"] == found["moses/valid"] == 3 / 4
    assert found["moses/fcd"] == pytest.approx(0, abs=1e-5)
