"""Molecules of files as a report shows them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdDepictor

from tests.support.samples.graphs import graph_of
from tests.support.samples.qm9_rows import tiny_molecules
from unite.modalities.gallery import Gallery, Scene
from unite.modalities.molecule.files.writing import write_sdf, write_xyz
from unite.modalities.molecule.gallery import molecule_gallery
from unite.modalities.molecule.metrics.generation import MoleculeGenerationMetrics
from unite.modalities.molecule.metrics.reconstruction import kabsch_rmsd
from unite.modalities.molecule.perception.distances import unite_hydrogens
from unite.modalities.molecule.perception.molecule import Molecule
from unite.modalities.molecule.perception.perceive import perceive

REALS = [real for real, _ in tiny_molecules() if (real.atomic_numbers > 1).sum() >= 3][:8]
CLASH = Molecule(np.array([6, 6, 8]), np.array([[0.0, 0, 0], [0.2, 0, 0], [1.6, 0, 0]]))
FIVE = Molecule(
    np.array([6, 1, 1, 1, 1, 1]),
    np.array([[0.0, 0, 0], [1.1, 0, 0], [-1.1, 0, 0], [0, 1.1, 0], [0, -1.1, 0], [0, 0, 1.1]]),
)
INFINITE = Molecule(np.array([6, 1]), np.array([[0, 0, np.nan], [1.0, 0, 0]]))


def shown(path: Path, molecules: list[Molecule], originals: list[Molecule] | None = None) -> Gallery:
    write = write_xyz if path.suffix == ".xyz" else write_sdf
    write(molecules, path)
    others = []
    if originals is not None:
        others = [path.with_stem("originals")]
        write_sdf(originals, others[0])
    return molecule_gallery([path], others, num_workers=1)[0]


def rmsd_of(one: np.ndarray, other: np.ndarray) -> float:
    return float(kabsch_rmsd(torch.from_numpy(one)[None], torch.from_numpy(other)[None]))


def turned(positions: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    axes = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    return np.asarray(positions @ (axes * np.linalg.det(axes)) + generator.normal(size=3))


def distances(positions: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(positions[:, None] - positions[None], axis=-1))


def places(scene: Scene | None) -> np.ndarray:
    assert scene is not None
    return np.array(scene.positions)


@pytest.mark.parametrize("ending", ["sdf", "xyz"])
def test_a_molecule_stands_in_space_as_it_was_generated(tmp_path: Path, ending: str) -> None:
    items = shown(tmp_path / f"m.{ending}", REALS).items
    for real, item in zip(REALS, items, strict=True):
        mol = perceive(real).mol
        assert item.scene is not None
        assert mol is not None
        assert item.verdict == "valid"
        assert Chem.CanonSmiles(item.name) == item.name
        assert item.numbers == {"atoms": len(real.atomic_numbers), "heavy atoms": (real.atomic_numbers > 1).sum()}
        assert item.scene.symbols == [atom.GetSymbol() for atom in mol.GetAtoms()]
        np.testing.assert_allclose(distances(places(item.scene)), distances(real.positions), atol=4e-3)
        pairs = {frozenset((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())) for bond in mol.GetBonds()}
        assert {frozenset(bond[:2]) for bond in item.scene.bonds} == pairs
        assert item.scene.num_given is None


def test_it_is_no_mirror_image_and_seen_from_its_flat_side(tmp_path: Path) -> None:
    for real, item in zip(REALS, shown(tmp_path / "m.sdf", REALS).items, strict=True):
        found = places(item.scene)
        assert rmsd_of(found, real.positions) < 2e-3
        extents = found.std(0)
        assert extents[0] >= extents[1] - 1e-3
        assert extents[1] >= extents[2] - 1e-3


def test_counted_hydrogens_are_added_and_said_to_be(tmp_path: Path) -> None:
    united = [unite_hydrogens(real) for real in REALS]
    for molecule, item in zip(united, shown(tmp_path / "m.sdf", united).items, strict=True):
        assert item.scene is not None
        assert molecule.num_hydrogens is not None
        assert item.scene.num_given == len(molecule.atomic_numbers)
        added = item.scene.symbols[item.scene.num_given :]
        assert added == ["H"] * molecule.num_hydrogens.sum()
        assert item.numbers["atoms"] == molecule.num_atoms


def test_what_is_rejected_is_drawn_with_the_atoms_that_are_to_blame(tmp_path: Path) -> None:
    clash, five, infinite = shown(tmp_path / "m.sdf", [CLASH, FIVE, INFINITE]).items
    assert (clash.verdict, clash.is_good) == ("clash", False)
    assert clash.scene is not None
    assert five.scene is not None
    assert set(clash.scene.marked) == {0, 1}
    assert (five.verdict, set(five.scene.marked), len(five.scene.bonds)) == ("overvalent atom", {0}, 5)
    assert five.picture.startswith("<svg")
    assert five.name == "CH5"
    assert (infinite.verdict, infinite.scene, infinite.picture) == ("nonfinite", None, "")


def test_a_reconstruction_lies_over_its_original_with_its_rmsd(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    originals = [unite_hydrogens(real) for real in REALS]
    made = []
    for molecule, size in zip(originals, [0.0, 0.01, 0.02, 0.05, 0.2, 0.3, 0.05, 0.05], strict=True):
        moved = turned(molecule.positions, generator)
        moved = moved + generator.normal(size=moved.shape, scale=size)
        made.append(Molecule(molecule.atomic_numbers, moved, molecule.num_hydrogens))
    made[6] = Molecule(np.where(np.arange(len(made[6].atomic_numbers)), 6, 7), made[6].positions, made[6].num_hydrogens)
    made[7] = Molecule(made[7].atomic_numbers[1:], made[7].positions[1:], made[7].num_hydrogens[1:])  # type: ignore[index]
    items = shown(tmp_path / "m.sdf", made, originals).items
    for molecule, original, item in zip(made[:6], originals[:6], items[:6], strict=True):
        rmsd = rmsd_of(molecule.positions, original.positions)
        assert item.numbers["RMSD / Å"] == pytest.approx(rmsd, abs=3e-4)
        assert item.verdict == ("match" if rmsd < 0.1 else "more than 0.1 Å off")
        over, under = places(item.scene)[: len(molecule.positions)], places(item.original)[: len(molecule.positions)]
        assert np.sqrt(((over - under) ** 2).sum(1).mean()) == pytest.approx(rmsd, abs=2e-3)
    assert items[6].verdict in ("atoms of another type", "match")
    assert items[7].verdict == "other number of atoms"
    assert all(item.original is not None for item in items)


def test_graphs_are_formulas(tmp_path: Path) -> None:
    graphs = [graph_of(smiles) for smiles in ("CCO", "c1ccoc1", "C[N+](=O)[O-]")]
    write_sdf(graphs, tmp_path / "m.sdf")
    gallery, scores = molecule_gallery([tmp_path / "m.sdf"], [tmp_path / "m.sdf"], num_workers=1)
    assert scores is None
    for item in gallery.items:
        assert (item.verdict, item.scene) == ("same molecule", None)
        assert item.picture.startswith("<svg")


def test_all_are_judged_though_some_are_shown(tmp_path: Path) -> None:
    write_sdf([*REALS, CLASH], tmp_path / "m.sdf")
    count = []
    gallery, scores = molecule_gallery([tmp_path / "m.sdf"], most=2, num_workers=2, on_record=lambda: count.append(1))
    assert (len(gallery.items), gallery.total, len(count)) == (2, len(REALS) + 1, len(REALS) + 1)
    metric = MoleculeGenerationMetrics()
    metric.update([*REALS, CLASH])
    assert scores is not None
    assert scores.metrics()["validity"] == pytest.approx(float(metric.compute()["validity"]))


def test_elements_that_are_not_known_keep_the_bonds_of_their_file(tmp_path: Path) -> None:
    mol = Chem.MolFromMolBlock(
        "\n  x  3D\n\n  2  1  0  0  0  0  0  0  0  0999 V2000\n"
        "    0.0000    0.0000    0.0000 C   0  0\n    2.0000    0.0000    0.0000 Li  0  0\n  1  2  1  0\nM  END\n"
    )
    complete = Chem.AddHs(mol, addCoords=True)
    complete.GetConformer().Set3D(True)
    (tmp_path / "m.sdf").write_text(Chem.MolToMolBlock(complete) + "$$$$\n")
    (item,) = molecule_gallery([tmp_path / "m.sdf"], num_workers=1)[0].items
    assert item.scene is not None
    assert (item.verdict, len(item.scene.bonds), set(item.scene.marked)) == ("unknown element", 4, {1})


def test_a_drawing_in_the_plane_is_shown_as_one(tmp_path: Path) -> None:
    mol = Chem.MolFromSmiles("CCO")
    rdDepictor.Compute2DCoords(mol)
    (tmp_path / "m.sdf").write_text(Chem.MolToMolBlock(mol) + "$$$$\n")
    (item,) = molecule_gallery([tmp_path / "m.sdf"], num_workers=1)[0].items
    assert (item.verdict, item.is_good, item.scene) == ("flat", False, None)
    assert item.picture.startswith("<svg")
