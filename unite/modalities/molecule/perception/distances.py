"""What follows from distances alone, for many molecules at once: bonds, pieces, stability by EDM's table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from unite.modalities.molecule.perception.elements import (
    _BOND_CUTOFFS,
    _CLASH_DISTANCES,
    _ELEMENT_INDICES,
    BoolArray,
    FloatArray,
    IntArray,
)
from unite.modalities.molecule.perception.molecule import Molecule

_MAX_BATCH_PAIRS = 2**19  # atom pairs of a padded batch: 4 MB per float64 array, which stays in cache


def unite_hydrogens(molecule: Molecule) -> Molecule:
    """The same molecule with united atoms: each hydrogen is counted at the heavy atom nearest to it.

    Args:
        molecule: Molecule with hydrogens as atoms and at least one heavy atom.

    Returns:
        The heavy atoms in their order, with numbers of hydrogens.

    Raises:
        ValueError: If the hydrogens are counted already, or there is no heavy atom to count them at.
    """
    is_heavy = molecule.atomic_numbers != 1
    if molecule.num_hydrogens is not None or not is_heavy.any():
        raise ValueError("needs a molecule with hydrogens as atoms and at least one heavy atom")
    heavy, hydrogens = molecule.positions[is_heavy], molecule.positions[~is_heavy]
    nearest = np.linalg.norm(hydrogens[:, None] - heavy[None, :], axis=-1).argmin(1)
    num_hydrogens = np.bincount(nearest, minlength=len(heavy)).astype(np.int64)
    return Molecule(molecule.atomic_numbers[is_heavy], heavy, num_hydrogens)


def short_pairs(molecule: Molecule) -> list[tuple[int, int]]:
    """Pairs of atoms (first < second) within the bond cutoffs of :func:`perceive`, whether valid or not."""
    batch = next(_batches([molecule]))
    return _bond_lists(_is_bond(batch))[0]


def clashing_pairs(molecule: Molecule) -> list[tuple[int, int]]:
    """Pairs of atoms (first < second) that are too close to be any, the closest first."""
    batch = next(_batches([molecule]))
    pairs = _bond_lists(_is_clash(batch))[0]
    return sorted(pairs, key=lambda pair: float(batch.distances[0][pair]))


@dataclass(frozen=True, eq=False)
class _Batch:
    """Molecules of similar size, padded. A *site* is an atom with a position, a counted hydrogen is none."""

    indices: IntArray  # (B,) of the molecules in the sequence given
    elements: IntArray  # (B, A) into the tables
    num_hydrogens: IntArray  # (B, A) counted hydrogens, zero where hydrogens are sites
    is_site: BoolArray  # (B, A)
    is_united: BoolArray  # (B,)
    is_finite: BoolArray  # (B,)
    distances: FloatArray  # (B, A, A) in Å; infinite on the diagonal and for padding

    @property
    def num_sites(self) -> IntArray:
        return np.asarray(self.is_site.sum(-1))

    @property
    def num_atoms(self) -> IntArray:
        return np.asarray(self.num_sites + self.num_hydrogens.sum(-1))


def _batches(molecules: Sequence[Molecule]) -> Iterator[_Batch]:
    """All molecules in padded batches of at most ``_MAX_BATCH_PAIRS`` atom pairs (or one larger molecule)."""
    sizes = np.array([len(molecule.atomic_numbers) for molecule in molecules], dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")  # of similar size, so that little is padding
    start = 0
    while start < len(order):
        largest = max(int(sizes[order[start]]), 1)
        stop = start + max(_MAX_BATCH_PAIRS // largest**2, 1)
        yield _pad(molecules, order[start:stop], largest)
        start = stop


def _pad(molecules: Sequence[Molecule], indices: IntArray, size: int) -> _Batch:
    atomic_numbers = np.zeros((len(indices), size), dtype=np.int64)
    positions = np.zeros((len(indices), size, 3))
    num_hydrogens = np.zeros((len(indices), size), dtype=np.int64)
    is_site = np.zeros((len(indices), size), dtype=np.bool_)
    is_united = np.zeros(len(indices), dtype=np.bool_)
    for row, index in enumerate(indices):
        molecule = molecules[index]
        num_sites = len(molecule.atomic_numbers)
        atomic_numbers[row, :num_sites] = molecule.atomic_numbers
        positions[row, :num_sites] = molecule.positions
        is_site[row, :num_sites] = True
        if molecule.num_hydrogens is not None:
            num_hydrogens[row, :num_sites] = molecule.num_hydrogens
            is_united[row] = True
    is_finite = np.asarray(np.isfinite(positions).all((1, 2)))
    positions[~is_finite] = 0.0
    distances = np.zeros((len(indices), size, size))
    with np.errstate(over="ignore"):  # coordinates of 1e200 are garbage, not a warning
        for axis in range(3):
            distances += (positions[:, :, None, axis] - positions[:, None, :, axis]) ** 2
    np.sqrt(distances, out=distances)
    distances[~(is_site[:, :, None] & is_site[:, None, :])] = np.inf
    distances[:, np.arange(size), np.arange(size)] = np.inf
    elements = _ELEMENT_INDICES[
        np.where((atomic_numbers > 0) & (atomic_numbers < len(_ELEMENT_INDICES)), atomic_numbers, 0)
    ]
    return _Batch(indices, elements, num_hydrogens, is_site, is_united, is_finite, distances)


def _is_bond(batch: _Batch) -> BoolArray:
    """Pairs within the bond cutoffs, shape (B, A, A)."""
    cutoffs = _BOND_CUTOFFS[batch.elements[:, :, None], batch.elements[:, None, :]]
    return np.asarray(batch.distances < cutoffs)


def _is_clash(batch: _Batch) -> BoolArray:
    """Pairs of atoms that are too close to be any, shape (B, A, A)."""
    limits = _CLASH_DISTANCES[batch.elements[:, :, None], batch.elements[:, None, :]]
    return np.asarray(batch.distances < limits)


def _has_clash(batch: _Batch) -> BoolArray:
    """Whether two atoms are too close to be any, shape (B,)."""
    return np.asarray(_is_clash(batch).any((1, 2)))


def _is_one_piece(is_bond: BoolArray, num_sites: IntArray) -> BoolArray:
    """Whether the sites of each graph are connected, shape (B,).

    Every site takes the smallest label among its neighbours, then the label of the site that its label names.
    The second step doubles the reach each time, so a chain of 29 needs a handful of rounds.
    """
    num_graphs, size, _ = is_bond.shape
    labels = np.broadcast_to(np.arange(size), (num_graphs, size)).copy()
    while True:
        neighbours = np.where(is_bond, labels[:, None, :], size).min(-1)  # (B, A)
        updated = np.minimum(labels, neighbours)
        updated = np.take_along_axis(updated, updated, axis=1)
        if np.array_equal(updated, labels):
            break
        labels = updated
    is_site = np.arange(size) < num_sites[:, None]
    return np.asarray((labels * is_site == 0).all(-1))


def _bond_lists(is_bond: BoolArray) -> list[list[tuple[int, int]]]:
    """Bonded pairs (first < second) of each graph."""
    graphs, first, second = np.nonzero(np.triu(is_bond, 1))
    bounds = np.searchsorted(graphs, np.arange(len(is_bond) + 1)).tolist()
    pairs = list(zip(first.tolist(), second.tolist(), strict=True))
    return [pairs[start:stop] for start, stop in pairwise(bounds)]
