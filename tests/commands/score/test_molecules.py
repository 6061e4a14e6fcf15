"""``unite score molecules``, and what ``unite score`` refuses, as a user types it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rdkit import Chem

from tests.support.commands import PATIENCE, RunCli, start_score, until
from tests.support.paths import REPOSITORY
from tests.support.samples.conformers import MANY_ELEMENTS, embedded
from tests.support.samples.graphs import Hydrogens, graph_of
from tests.support.samples.qm9_rows import tiny_molecules
from unite.modalities.molecule.data.qm9.table import load_or_build, read_csv_files
from unite.modalities.molecule.files.reading import read_records
from unite.modalities.molecule.files.writing import write_sdf, write_xyz
from unite.modalities.molecule.graph import MolecularGraph
from unite.modalities.molecule.metrics.generation import MoleculeGenerationMetrics
from unite.modalities.molecule.metrics.scores import MAX_ATOMS, RECORDS_AT_ONCE, judge_all
from unite.modalities.molecule.perception.molecule import Molecule
from unite.modalities.molecule.perception.perceive import perceive

REALS = [real for real, _ in tiny_molecules()]


def chain(atomic_numbers: list[int]) -> Molecule:
    steps = np.arange(len(atomic_numbers))
    return Molecule(np.array(atomic_numbers), np.stack([1.2 * steps, 0.5 * (steps % 2), 0 * steps], axis=1))


ODD = [
    Molecule(np.array([6, 1]), np.array([[0, 0, np.nan], [1.0, 0, 0]])),
    Molecule(np.array([11, 1]), np.array([[0, 0, 0], [1.3, 0, 0]])),
    Molecule(np.array([6, 8]), np.array([[0.0, 0, 0], [9, 0, 0]])),
    chain([7] * 29),
]


def score(run_cli: RunCli, path: Path, output: Path, *options: str | Path) -> tuple[dict[str, float], dict[str, Any]]:
    result = run_cli("score", "molecules", path, "--output", output, *options)
    assert result.code == 0, result.err
    return json.loads((output / "metrics.json").read_text()), json.loads((output / "rejects.json").read_text())


@pytest.mark.parametrize("write", [write_sdf, write_xyz])
def test_scores_are_those_of_the_generation_metrics(run_cli: RunCli, tmp_path: Path, write: Any) -> None:
    molecules = [*REALS, *ODD, REALS[0]]
    write(molecules, tmp_path / f"m.{write.__name__[-3:]}")
    metric = MoleculeGenerationMetrics()
    metric.update(molecules)
    expected = {name: float(value) for name, value in metric.compute().items()}
    found, rejects = score(run_cli, tmp_path / f"m.{write.__name__[-3:]}", tmp_path / "out", "--no_novelty")
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["num_molecules"] == len(molecules)
    assert found["reject/unreadable"] == found["reject/too_large"] == 0
    reasons = [(reject["record"], reject["reason"]) for reject in rejects["rejected"]]
    first = len(REALS) + 1
    assert reasons == [
        (first, "nonfinite"),
        (first + 1, "unknown_element"),
        (first + 2, "isolated_atom"),
        (first + 3, "iteration_cap"),
    ]
    assert rejects["unknown_elements"] == {"Na": 1}
    symbols = [z for molecule in molecules for z in molecule.atomic_numbers.tolist()]
    assert found["element/C"] == pytest.approx(symbols.count(6) / len(symbols))
    assert sum(value for name, value in found.items() if name.startswith("element/")) == pytest.approx(1)
    assert found["atoms/max"] == 29
    assert found["atoms/std"] == pytest.approx(np.std([len(molecule.atomic_numbers) for molecule in molecules]))


def test_what_is_no_molecule_counts_as_rejected_by_name(run_cli: RunCli, tmp_path: Path) -> None:
    write_xyz([REALS[0], chain([6] * (MAX_ATOMS + 1))], tmp_path / "m.xyz")
    with (tmp_path / "m.xyz").open("a") as file:
        file.write("2\nbreaks off\nC 0 0 0\n2\nnames\nXx 0 0 0\nNa 1 0 0\n")
    found, rejects = score(run_cli, tmp_path / "m.xyz", tmp_path / "out", "--no_novelty")
    assert found["num_molecules"] == 4
    assert found["validity"] == 0.25
    assert found["atoms/min"] == 2  # of what can be read
    assert found["reject/too_large"] == found["reject/unreadable"] == found["reject/unknown_element"] == 0.25
    assert [reject.get("detail") for reject in rejects["rejected"]] == [
        f"{MAX_ATOMS + 1} atoms",
        "breaks off before its 2 atoms",
        "Na, Xx",
    ]
    result = run_cli("score", "molecules", tmp_path / "m.xyz", "--output", tmp_path / "again", "--no_novelty")
    assert "unknown element Xx: in 1 molecules, all rejected" in result.out


def test_novelty_is_judged_by_the_training_molecules_of_qm9(run_cli: RunCli, tmp_path: Path, tiny_csv: Path) -> None:
    table = load_or_build(tmp_path / "qm9" / "qm9pack.safetensors", lambda: read_csv_files([tiny_csv]))
    train = set(table.splits()["train"].tolist())
    assert len(REALS) == len(table)
    others = [index for index in range(len(REALS)) if index not in train]
    known = sorted(train)[: len(others)]
    write_sdf([REALS[index] for index in (*known, *others)], tmp_path / "m.sdf")
    found, _ = score(run_cli, tmp_path / "m.sdf", tmp_path / "out", "--qm9_root", tmp_path / "qm9")
    assert found["novelty"] == pytest.approx(0.5)
    written, _ = score(
        run_cli, tmp_path / "m.sdf", tmp_path / "w", "--qm9_root", tmp_path / "qm9", "--bonds", "as_written"
    )
    assert written["novelty_as_written"] == pytest.approx(0.5)


def test_where_nothing_is_valid_no_training_molecule_is_perceived(
    run_cli: RunCli, tmp_path: Path, tiny_csv: Path
) -> None:
    load_or_build(tmp_path / "qm9" / "qm9pack.safetensors", lambda: read_csv_files([tiny_csv]))
    write_sdf(ODD, tmp_path / "m.sdf")
    for number, options in enumerate([[], ["--bonds", "as_written"]]):
        result = run_cli(
            *("score", "molecules", tmp_path / "m.sdf", "--qm9_root", tmp_path / "qm9"),
            *("--output", tmp_path / str(number), *options),
        )
        assert result.code == 0, result.err
        assert "novelty: left out: no molecule is valid" in result.out
        assert "novelty" not in json.loads((tmp_path / str(number) / "metrics.json").read_text())
    assert list((tmp_path / "qm9").glob("training-keys*")) == []


def test_the_sdf_and_the_xyz_of_one_run_are_scored_one_after_the_other(run_cli: RunCli, tmp_path: Path) -> None:
    write_sdf(REALS[:1], tmp_path / "samples.sdf")
    write_xyz(REALS[:1], tmp_path / "samples.xyz")
    for ending in ("sdf", "xyz"):
        result = run_cli("score", "molecules", tmp_path / f"samples.{ending}", "--no_novelty")
        assert result.code == 0, result.err
        assert (tmp_path / f"samples_{ending}_scores" / "metrics.json").is_file()


def test_drug_like_molecules_are_valid_and_stabilities_of_qm9_are_left_out_once(
    run_cli: RunCli, tmp_path: Path
) -> None:
    molecules = [embedded(smiles)[0] for smiles in MANY_ELEMENTS]
    mols = [perceive(molecule).mol for molecule in molecules] + [perceive(embedded("CC(=O)[O-]")[0]).mol]
    with Chem.SDWriter(str(tmp_path / "a.sdf")) as file:
        for mol in mols:
            file.write(mol)
    result = run_cli("score", "molecules", tmp_path / "a.sdf", "--output", tmp_path / "out", "--no_novelty")
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    assert found["validity"] == found["uniqueness"] == 1
    assert not {"atom_stability", "molecule_stability", "validity_edm"} & set(found)
    assert result.out.count("EDM's stabilities are left out") == 1
    assert "1 molecules are ions by the charges of their files" in result.out
    metric = MoleculeGenerationMetrics()
    metric.update(molecules)
    assert not {"atom_stability", "molecule_stability", "validity_edm"} & set(metric.compute())


def test_without_qm9_novelty_is_left_out_and_said_so(run_cli: RunCli, tmp_path: Path) -> None:
    write_sdf(REALS[:2], tmp_path / "m.sdf")
    result = run_cli("score", "molecules", tmp_path / "m.sdf", "--qm9_root", tmp_path / "none")
    assert result.code == 0
    assert f"novelty: left out: no QM9 in {tmp_path / 'none'}" in result.out
    assert "novelty" not in json.loads((tmp_path / "m_sdf_scores" / "metrics.json").read_text())
    assert not (tmp_path / "none").exists()


def test_bonds_as_written_are_judged_under_names_of_their_own(run_cli: RunCli, tmp_path: Path) -> None:
    smiles = ["CO", "CO", "C[N+](=O)[O-]", "C.O", "[CH3]"]
    with Chem.SDWriter(str(tmp_path / "flat.sdf")) as writer:
        for text in smiles:
            writer.write(Chem.AddHs(Chem.MolFromSmiles(text)))  # no coordinates: all atoms on one spot
        writer.write(Chem.MolFromSmiles("CC"))  # no hydrogens
    with (tmp_path / "flat.sdf").open("a") as file:
        pentavalent = Chem.RWMol(Chem.MolFromSmiles("CC"))
        for _ in range(5):
            pentavalent.AddBond(0, pentavalent.AddAtom(Chem.Atom(9)), Chem.BondType.SINGLE)
        file.write(Chem.MolToMolBlock(pentavalent, kekulize=False) + "$$$$\n")
    found, _ = score(run_cli, tmp_path / "flat.sdf", tmp_path / "out", "--no_novelty", "--bonds", "as_written")
    assert found["validity_as_written"] == pytest.approx(3 / 7)
    assert found["uniqueness_as_written"] == pytest.approx(2 / 3)
    for reason in ("disconnected", "radical", "implicit_hydrogen", "sanitization"):
        assert found[f"reject_as_written/{reason}"] == pytest.approx(1 / 7)
    assert found["validity"] == 0
    plain, _ = score(run_cli, tmp_path / "flat.sdf", tmp_path / "plain", "--no_novelty")
    assert not [name for name in plain if "as_written" in name]


@pytest.mark.parametrize("hydrogens", ["explicit", "counted"])
def test_drawings_are_judged_by_their_bonds_alone(run_cli: RunCli, tmp_path: Path, hydrogens: Hydrogens) -> None:
    graphs = [graph_of(smiles, hydrogens) for smiles in ("C", "CCO", "CCO", "c1cc[nH]c1", "C[N+](=O)[O-]")]
    radical = MolecularGraph(*(np.array(value) for value in ([6, 8], [[0, 1], [1, 0]], [0, 0], [2, 1])))
    write_sdf(graphs if hydrogens == "explicit" else [*graphs, radical], tmp_path / "m.sdf")
    total = len(graphs) + (hydrogens == "counted")
    result = run_cli(
        *("score", "molecules", tmp_path / "m.sdf", "--output", tmp_path / "out", "--no_novelty"),
        *("--bonds", "as_written"),
    )
    assert result.code == 0, result.err
    assert f"{total} are drawings in the plane (2D), all rejected; --bonds as_written" in result.out
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["validity"] == found["connected"] == found["validity_edm"] == 0
    assert found["reject/flat"] == 1
    assert found["validity_as_written"] == pytest.approx(len(graphs) / total)
    assert found["reject_as_written/radical"] == pytest.approx((total - len(graphs)) / total)
    assert found["uniqueness_as_written"] == pytest.approx(4 / 5)
    assert found["atoms/max"] == 10


def test_elements_have_one_name_however_they_are_written(run_cli: RunCli, tmp_path: Path) -> None:
    columns = "Properties=species:S:1:pos:R:3:num_hydrogens:I:1"
    (tmp_path / "m.xyz").write_text(
        "2\nby numbers\n6 0 0 0\n11 1.8 0 0\n2\nheavy, small\nD 0 0 0\nna 1.5 0 0\n"
        f"2\n{columns}\nC 0 0 0 3\nH 1.1 0 0 0\n"
    )
    found, rejects = score(run_cli, tmp_path / "m.xyz", tmp_path / "out", "--no_novelty")
    assert [reject["detail"] for reject in rejects["rejected"]] == ["Na", "Na", "H"]
    assert rejects["unknown_elements"] == {"H": 1, "Na": 2}
    assert {name for name in found if name.startswith("element/")} == {"element/C", "element/H", "element/Na"}
    assert found["element/Na"] == pytest.approx(2 / 9)


def test_several_processes_find_what_one_does(tmp_path: Path) -> None:
    write_xyz([*REALS, *ODD] * (3 * RECORDS_AT_ONCE // len(REALS)), tmp_path / "m.xyz")
    alone, shared = (list(judge_all(read_records([tmp_path / "m.xyz"]), num_workers=n)) for n in (1, 2))
    assert len(alone) > 2 * RECORDS_AT_ONCE
    assert alone == shared


def test_scoring_molecules_needs_no_torch(tmp_path: Path) -> None:
    write_sdf(REALS[:2], tmp_path / "m.sdf")
    code = (
        f"import sys; from unite.cli import main; assert main(['score', 'molecules', '{tmp_path / 'm.sdf'}', "
        "'--no_novelty']) == 0; assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_ctrl_c_ends_all_processes_quietly(tmp_path: Path) -> None:
    write_xyz([chain([7] * 29)], tmp_path / "one.xyz")
    (tmp_path / "m.xyz").write_text((tmp_path / "one.xyz").read_text() * 20_000)
    process = start_score(tmp_path / "m.xyz", start_new_session=True)
    until((tmp_path / "m_xyz_scores").is_dir, process)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the command
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), ["required", "--help"]),
        (("molecule", "{tmp}/good.sdf"), ["invalid choice", "molecules"]),
        (("molecules", "{tmp}/no.sdf"), ["no.sdf", "no such file"]),
        (("molecules", "{tmp}/good.txt"), ["good.txt", ".sdf", ".xyz"]),
        (("molecules", "{tmp}/empty.sdf"), ["empty.sdf has no molecules"]),
        (("molecules", "{tmp}/empty.xyz"), ["empty.xyz has no molecules"]),
        (("molecules", "{tmp}/broken.sdf"), ["none of the 1 records", "no counts line"]),
        (("molecules", "{tmp}/broken.xyz"), ["none of the 1 records", "no number of atoms in 'hello'"]),
        (("molecules", "{tmp}/folder"), ["has no molecule files"]),
        (("molecules", "{tmp}/both"), ["--format"]),
        (("molecules", "{tmp}/good.sdf", "--output", "{tmp}/good.txt/x"), ["cannot write to", "--output"]),
        (("molecules", "{tmp}/good.sdf", "--output", "{tmp}/both"), ["has files already", "--overwrite"]),
        (("molecules", "{tmp}/good.sdf", "--num_workers", "0"), ["--num_workers is 0"]),
        (("molecules", "{tmp}/good.sdf", "--bond", "x"), ["--bond", "did you mean --bonds?"]),
        (("molecules", "{tmp}/both/m.xyz", "--bonds", "as_written"), ["has no bonds"]),
        (("molecules", "{tmp}/good.sdf", "--routes", "x"), ["--routes", "adit", "posebusters"]),
        (("images", "{tmp}/folder"), ["--reference"]),
        (("images", "{tmp}/folder", "--reference", "{tmp}/images"), ["has no images"]),
        (("images", "{tmp}/good.txt", "--reference", "{tmp}/images"), ["is not a folder"]),
        (("images", "{tmp}/images", "--reference", "{tmp}/images"), ["--inception_weights", "fid_digits"]),
        (("images", "{tmp}/broken", "--reference", "{tmp}/images", "--features", "digits"), ["none of the 1 images"]),
        (("images", "{tmp}/images", "--reference", "{tmp}/images", "--batch_size", "0"), ["--batch_size is 0"]),
        (("images", "{tmp}/images", "--reference", "{tmp}/images", "--device", "cuda:99"), ["--device is cuda:99"]),
    ],
    ids=lambda value: "-".join(value[:2]).replace("{tmp}/", "") if isinstance(value, tuple) else None,
)
def test_wrong_input_is_told_in_one_line(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], words: list[str]
) -> None:
    monkeypatch.delenv("UNITE_INCEPTION_WEIGHTS", raising=False)
    for name in ("folder", "both", "images", "broken"):
        (tmp_path / name).mkdir()
    write_sdf(REALS[:1], tmp_path / "good.sdf")
    write_sdf(REALS[:1], tmp_path / "both" / "m.sdf")
    write_xyz(REALS[:1], tmp_path / "both" / "m.xyz")
    for name, text in {
        "good.txt": "text", "empty.sdf": "", "empty.xyz": "\n\n", "broken.sdf": "hello", "broken.xyz": "hello",
        "broken/a.png": "hello",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    Image.new("L", (8, 8)).save(tmp_path / "images" / "a.png")
    before = sorted(tmp_path.rglob("*"))
    result = run_cli("score", *(arg.format(tmp=tmp_path) for arg in args))
    assert sorted(tmp_path.rglob("*")) == before
    result.assert_refused(*words)


@pytest.mark.parametrize(
    ("route", "packages"), [("adit", ["pymatgen", "openbabel-wheel"]), ("posebusters", ["posebusters"])]
)
def test_a_route_without_its_package_says_how_to_get_it(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, route: str, packages: list[str]
) -> None:
    write_sdf(REALS[:1], tmp_path / "m.sdf")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = run_cli("score", "molecules", tmp_path / "m.sdf", "--no_novelty", "--routes", route)
    assert result.code == 2
    assert f"--routes {route} needs {' and '.join(packages)}, which" in result.err
    assert result.err.rstrip().endswith(f"(or: pip install {' '.join(packages)})")
    assert 'pip install "unite-lightning[scores]"' in result.err
    assert not (tmp_path / "m_sdf_scores").exists()


def test_routes_of_others_know_real_molecules(run_cli: RunCli, tmp_path: Path) -> None:
    pytest.importorskip("openbabel")
    pytest.importorskip("pymatgen")
    pytest.importorskip("posebusters")
    write_xyz([*REALS, ODD[0]], tmp_path / "m.xyz")
    found, _ = score(run_cli, tmp_path / "m.xyz", tmp_path / "o", "--no_novelty", "--routes", "adit", "posebusters")
    assert 0.8 < found["validity_adit"] < 1
    assert found["posebusters/bond_lengths"] > 0.95
