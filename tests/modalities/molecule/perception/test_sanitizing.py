"""Molecules for which RDKit would take minutes are refused by their rings."""

import numpy as np
import pytest
from rdkit import Chem

from tests.support.samples.graphs import ladder
from unite.errors import UserError
from unite.modalities.molecule.data.qm9.bonds import key_of_smiles
from unite.modalities.molecule.graph import MolecularGraph, as_written, assemble, graph_from_mol
from unite.modalities.molecule.perception.distances import short_pairs
from unite.modalities.molecule.perception.perceive import perceive
from unite.modalities.molecule.perception.sanitizing import (
    MAX_FUSED_RINGS,
    TooManyRingsError,
    has_too_many_rings,
    sanitize,
)
from unite.modalities.molecule.perception.stability import edm_stability

FULLERENE = (
    "c12c3c4c5c1c1c6c7c2c2c8c3c3c9c4c4c%10c5c5c1c1c6c6c%11c7c2c2c7c8c3c3c8c9c4c4c9c%10c5c5c1c1c6c6c%11c2c2c7c3c3c8c4"
    "c4c9c5c1c1c6c2c3c41"
)


def graph(num_rungs: int) -> MolecularGraph:
    molecule = ladder(num_rungs)
    bonds = np.zeros((2 * num_rungs, 2 * num_rungs), dtype=np.int64)
    for first, second in short_pairs(molecule):
        bonds[first, second] = bonds[second, first] = 1
    return MolecularGraph(molecule.atomic_numbers, bonds, np.zeros_like(molecule.atomic_numbers))


def test_a_ladder_is_refused_on_every_route() -> None:
    assert perceive(ladder(100)).reason == "too_slow"
    assert perceive(ladder(MAX_FUSED_RINGS + 1)).reason != "too_slow"
    assert assemble(graph(100)).reason == "too_slow"
    edm_stability([ladder(100)])
    mol = as_written(graph(100))
    assert key_of_smiles(Chem.MolToSmiles(mol)) is None
    with pytest.raises(UserError, match="fused rings"):
        graph_from_mol(mol)


def test_rings_side_by_side_are_not_fused() -> None:
    chain_of_rings = Chem.MolFromSmiles("C1CC1" * 50, sanitize=False)
    assert not has_too_many_rings(chain_of_rings)
    sanitize(chain_of_rings)
    assert not has_too_many_rings(Chem.MolFromSmiles(FULLERENE, sanitize=False))


def test_a_wrong_valence_is_told_before_rings_are_counted() -> None:
    mol = Chem.RWMol()
    for _ in range(12):
        mol.AddAtom(Chem.Atom(6))
    for first in range(12):
        for second in range(first):
            mol.AddBond(first, second, Chem.BondType.SINGLE)
    with pytest.raises(Chem.AtomValenceException):
        sanitize(mol)
    for atom in mol.GetAtoms():
        atom.SetAtomicNum(26)  # iron, of any valence
    with pytest.raises(TooManyRingsError, match="more than 32 fused rings"):
        sanitize(mol)
