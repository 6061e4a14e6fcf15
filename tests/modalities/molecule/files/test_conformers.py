"""Shapes that are made: several, different, relaxed, and the same again; RDKit's energies are the reference."""

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
from rdkit.Geometry import Point3D

from unite.modalities.molecule.files.conformers import make_conformers


def molecule(smiles: str) -> Chem.Mol:
    return Chem.AddHs(Chem.MolFromSmiles(smiles))


def energy(mol: Chem.Mol, positions: np.ndarray) -> float:
    conformer = Chem.Conformer(mol.GetNumAtoms())
    for atom, place in enumerate(positions.astype(float)):
        conformer.SetAtomPosition(atom, Point3D(*place))
    mol = Chem.Mol(mol)
    mol.AddConformer(conformer)
    properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
    return float(rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties).CalcEnergy())


def test_a_flexible_molecule_has_several_shapes_the_lowest_first() -> None:
    mol = molecule("CCCCCCO")
    found = make_conformers(mol, 5)
    assert found.is_relaxed
    assert 3 <= len(found.positions) <= 5
    energies = [energy(mol, positions) for positions in found.positions]
    assert energies == sorted(energies)
    assert energies[-1] > energies[0] + 0.01  # kcal/mol: they are not one shape
    np.testing.assert_array_equal(make_conformers(mol, 5).positions, found.positions)
    assert not np.array_equal(make_conformers(mol, 1, seed=3).positions, make_conformers(mol, 1).positions)


def test_a_rigid_molecule_has_one_shape() -> None:
    assert len(make_conformers(molecule("C1CC1"), 5).positions) == 1


@pytest.mark.parametrize(("smiles", "is_relaxed"), [("C[Si](C)(C)O", True), ("OB(O)c1ccccc1", True), ("C[Po]C", True)])
def test_other_elements(smiles: str, is_relaxed: bool) -> None:
    found = make_conformers(molecule(smiles), 1)
    assert (len(found.positions), found.is_relaxed) == (1, is_relaxed)


def test_what_cannot_be_embedded_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdDistGeom, "EmbedMultipleConfs", lambda *args: [])
    assert make_conformers(molecule("CCO"), 3).positions.shape == (0, 9, 3)
