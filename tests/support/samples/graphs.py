"""Molecular graphs for the tests: real ones, small ones by name, and random ones that are mostly no molecules."""

from dataclasses import replace
from functools import cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from rdkit import Chem

from tests.support.samples.qm9_rows import random_molecules, tiny_molecules
from unite.modalities.molecule.graph import MolecularGraph, graph_from_mol
from unite.modalities.molecule.layers import GraphPrediction
from unite.modalities.molecule.perception.molecule import Molecule
from unite.modalities.molecule.perception.perceive import perceive_all
from unite.modalities.molecule.preparation import MoleculePrediction, PreparedMolecules

Hydrogens = Literal["explicit", "counted"]

# Aromatic NH, a nitro group, an isocyanide, a zwitterion: where charges and counted hydrogens matter.
HARD_SMILES = [
    "c1cc[nH]c1",
    "C[N+](=O)[O-]",
    "[C-]#[N+]C",
    "[NH3+]CC(=O)[O-]",
    "c1ccncc1",
    "O=c1cc[nH]cc1",
    "C",
    "O",
    "FC#N",
]


def graph_of(smiles: str, hydrogens: Hydrogens = "counted") -> MolecularGraph:
    return graph_from_mol(Chem.MolFromSmiles(smiles), hydrogens)


@cache
def perceived(number: int | None = None) -> tuple[Chem.Mol, ...]:
    """Molecules with bonds: those of the tiny file, or so many random ones of QM9."""
    rows = tiny_molecules() if number is None else random_molecules(number)
    return tuple(found.mol for found in perceive_all([molecule for molecule, _ in rows]) if found.mol is not None)


def relabelled(graph: MolecularGraph, order: list[int]) -> MolecularGraph:
    """Atom ``i`` of the result is atom ``order[i]`` of the graph."""
    return MolecularGraph(
        graph.atomic_numbers[order],
        graph.bonds[np.ix_(order, order)],
        graph.charges[order],
        None if graph.num_hydrogens is None else graph.num_hydrogens[order],
    )


@st.composite
def graphs(draw: st.DrawFn, max_atoms: int = 6) -> MolecularGraph:
    """Any graph of a few atoms: some are molecules, most are not."""
    num_atoms = draw(st.integers(1, max_atoms))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    upper = np.triu(rng.choice(5, (num_atoms, num_atoms), p=[0.5, 0.3, 0.1, 0.05, 0.05]), 1)
    return MolecularGraph(
        rng.choice([6, 7, 8, 9], num_atoms),
        (upper + upper.T).astype(np.int64),
        rng.choice([-1, 0, 1], num_atoms, p=[0.1, 0.8, 0.1]),
        rng.choice(4, num_atoms),
    )


def perfect(prepared: PreparedMolecules, num_types: int, max_charge: int = 1) -> MoleculePrediction:
    """What a decoder without errors would say; at random where padded."""
    assert prepared.graph is not None
    mask = prepared.mask
    logits = [
        50 * F.one_hot(prepared.types, num_types).float(),
        50 * F.one_hot(prepared.graph.charges + max_charge, 2 * max_charge + 1).float(),
    ]
    for scores in logits:
        scores[~mask] = torch.randn_like(scores[~mask])
    bond_logits = 50 * F.one_hot(prepared.graph.bonds, 5).float()
    first, second = torch.triu_indices(mask.shape[1], mask.shape[1], 1)
    padded = ~(mask[:, first] & mask[:, second])
    bond_logits[padded] = torch.randn_like(bond_logits[padded])
    return MoleculePrediction(logits[0], prepared.positions, mask, GraphPrediction(bond_logits, logits[1]))


REJECTED = {
    "empty": MolecularGraph(*(np.zeros(shape, dtype=np.int64) for shape in (0, (0, 0), 0))),
    "unknown_element": replace(graph_of("C"), atomic_numbers=np.array([0])),
    "disconnected": MolecularGraph(np.array([6, 6]), np.zeros((2, 2), dtype=np.int64), np.zeros(2, np.int64)),
    "charged": replace(graph_of("C"), charges=np.array([1])),
    "valence": replace(graph_of("C"), num_hydrogens=np.array([5])),
    "kekulization": replace(graph_of("c1cc[nH]c1"), num_hydrogens=np.array([1, 1, 1, 0, 1])),
    "radical": replace(graph_of("C"), num_hydrogens=np.array([3])),
    # Half aromatic: RDKit makes 2H-azirine of it, without the hydrogen of the nitrogen.
    "hydrogens": MolecularGraph(
        np.array([6, 6, 7]), np.array([[0, 4, 4], [4, 0, 2], [4, 2, 0]]), np.zeros(3, np.int64), np.array([2, 1, 1])
    ),
}


def ladder(num_rungs: int) -> Molecule:
    """Two rows of nitrogen with a bond across at every step; RDKit takes minutes for 100 rungs."""
    positions = [[1.45 * step, 1.45 * side, 0.0] for step in range(num_rungs) for side in range(2)]
    return Molecule(np.full(2 * num_rungs, 7), np.array(positions))
