"""Distances of sets of molecules, against values worked out by hand."""

import math

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from unite.modalities.molecule.metrics.distributions import Shape, compare_shapes, shape_of
from unite.modalities.molecule.perception.molecule import Molecule
from unite.modalities.molecule.perception.perceive import perceive

pytest.importorskip("scipy")


def ether(angle: float, length: float = 1.4) -> Molecule:
    """Dimethyl ether of united atoms, with an angle in degrees at O and one length of both bonds in Å."""
    turn = math.radians(angle)
    ends = [[length, 0.0, 0.0], [length * math.cos(turn), length * math.sin(turn), 0.0]]
    return Molecule(np.array([8, 6, 6]), np.array([[0.0, 0.0, 0.0], *ends]), np.array([0, 3, 3]))


def shape(molecule: Molecule) -> Shape:
    mol = perceive(molecule).mol
    assert mol is not None
    return shape_of(molecule, mol)


def described(smiles: str) -> Shape:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=1) == 0
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    return shape_of(Molecule(numbers, mol.GetConformer().GetPositions()), mol)


def test_a_shape_is_measured_as_a_ruler_would() -> None:
    found = shape(ether(110.0))
    assert [kind for kind, _ in found.bonds] == ["C-O", "C-O"]
    assert [length for _, length in found.bonds] == pytest.approx([1.4, 1.4])
    assert [kind for kind, _ in found.angles] == ["C-O-C"]
    assert found.angles[0][1] == pytest.approx(110.0)
    distance = 2 * 1.4 * math.sin(math.radians(55))
    assert found.radius == pytest.approx(math.sqrt((1.4**2 + 1.4**2 + distance**2) / 9))  # by all pairs
    assert found.elements == {"O": 1, "C": 2}
    assert found.rings == []
    assert found.scaffold == ""
    assert found.groups == ["ether"]


@pytest.mark.parametrize(
    ("smiles", "rings", "groups", "scaffold"),
    [
        ("CC(=O)N", [], {"amide"}, ""),
        ("C1CN1C", [3], {"tertiary_amine", "aziridine"}, "C1CC1"),
        ("c1ccccc1C#N", [6], {"aromatic", "nitrile"}, "C1CCCCC1"),
        ("OCC1OC1", [3], {"alcohol", "ether", "epoxide"}, "C1CC1"),
    ],
)
def test_rings_groups_and_scaffolds(smiles: str, rings: list[int], groups: set[str], scaffold: str) -> None:
    found = described(smiles)
    assert found.rings == rings
    assert set(found.groups) == groups
    assert found.scaffold == scaffold


def test_hydrogens_as_atoms_or_counted_make_no_difference() -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles("C1CC1C=O"))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=1) == 0
    positions = mol.GetConformer().GetPositions()
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    counts = np.array([atom.GetTotalNumHs(includeNeighbors=True) for atom in mol.GetAtoms()])
    heavy = numbers > 1
    explicit = shape(Molecule(numbers, positions))
    united = shape(Molecule(numbers[heavy], positions[heavy], counts[heavy]))
    assert sorted(explicit.bonds) == sorted(united.bonds)
    assert sorted(kind for kind, _ in explicit.angles) == sorted(kind for kind, _ in united.angles)
    assert explicit.groups == united.groups
    assert explicit.radius == pytest.approx(united.radius)


def test_a_set_beside_itself_has_no_distance_and_another_has_what_was_changed() -> None:
    reference = [shape(ether(angle)) for angle in (100, 105, 110, 115)]
    same = compare_shapes(reference, reference)
    assert all(value == pytest.approx(0) for name, value in same.items() if name.startswith("distance/"))
    longer = [shape(ether(angle, 1.42)) for angle in (103, 108, 113, 118)]
    values = compare_shapes(longer, reference)
    assert values["distance/bond_lengths"] == pytest.approx(0.02)
    assert values["distance/bond_lengths_outside"] == 1
    assert values["distance/bond_angles"] == pytest.approx(3)
    assert values["distance/bond_angles_outside"] == 1 / 4
    assert values["distance/groups"] == 0


def test_counts_of_rings_elements_and_groups() -> None:
    reference, samples = [described("C1CC1"), described("CCC")], [described("C1CN1"), described("C1CN1")]
    values = compare_shapes(samples, reference)
    assert values["distance/rings"] == 1 / 2
    assert values["distance/ring_sizes"] == 0
    assert values["distance/elements"] == pytest.approx(1 / 3)
    assert [values["samples/rings"], values["reference/rings"]] == [1, 1 / 2]
    assert values["samples/rings_of_3"] == 1
    assert values["samples/hetero_atoms"] == 1
    assert [values["samples/scaffolds"], values["reference/scaffolds"]] == [1, 2]
    assert values["distance/bond_lengths_outside"] == 1  # the reference has no C-N


def test_the_floor_is_from_one_half_of_the_reference_to_the_other() -> None:
    reference = [described("CC")] * 2
    assert compare_shapes([described("CO")], reference)["floor/elements"] == 0
    assert compare_shapes([described("CO")], [described("CC"), described("CO")])["floor/elements"] == 1 / 2
