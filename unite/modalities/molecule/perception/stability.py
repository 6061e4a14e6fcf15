"""."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from rdkit import Chem, rdBase

from unite.modalities.molecule.perception.distances import _Batch, _batches
from unite.modalities.molecule.perception.elements import (
    _EDM_CUTOFFS,
    _EDM_VALENCES,
    _NUM_QM9,
    ELEMENTS,
    QM9_ELEMENTS,
    BoolArray,
    IntArray,
)
from unite.modalities.molecule.perception.molecule import Molecule
from unite.modalities.molecule.perception.sanitizing import sanitize


@dataclass(frozen=True, eq=False)
class EdmStability:
    """Stability of M molecules by EDM's table of bond distances, each array of shape (M,).

    Attributes:
        num_atoms: Atoms, counted hydrogens included.
        num_stable_atoms: Atoms whose bond orders add up to their valence.
        is_stable: Whether all atoms are stable (and there are any).
        is_valid: Whether RDKit would sanitize the bonds of the table. This is EDM's validity; it does not ask
            for one connected piece and fills up missing hydrogens, so atoms flying apart are valid.
    """

    num_atoms: IntArray
    num_stable_atoms: IntArray
    is_stable: BoolArray
    is_valid: BoolArray


def edm_stability(molecules: Sequence[Molecule]) -> EdmStability:
    """Stability and validity by EDM's table of bond lengths.

    An atom is stable when its bond orders add up to its valence: H 1, C 4, N 3, O 2, F 1. Non-finite
    coordinates make all atoms of a molecule unstable and the molecule invalid (in the original, NaN compares
    as "no bond").

    United atoms have only bonds between heavy atoms to look up; each counted hydrogen adds one to the order
    of its atom and is stable itself. Lengths of bonds to hydrogen then cannot fail, so the figures come out
    higher than for the same molecules with explicit hydrogens: compare them only with other united atoms.

    Of elements beside H, C, N, O and F the table knows nothing: their atoms are not stable, and figures of molecules
    that have some mean nothing.

    Args:
        molecules: M molecules.

    Returns:
        Arrays of shape (M,).
    """
    num_atoms = np.zeros(len(molecules), dtype=np.int64)
    num_stable_atoms = np.zeros(len(molecules), dtype=np.int64)
    is_valid = np.zeros(len(molecules), dtype=np.bool_)
    for batch in _batches(molecules):
        pairs = batch.elements[:, :, None], batch.elements[:, None, :]
        orders = np.zeros(batch.distances.shape, dtype=np.int64)
        for cutoffs in _EDM_CUTOFFS:  # a triple bond is shorter than the double and single ones, so they add up
            orders += batch.distances < cutoffs[pairs]
        valences = orders.sum(-1) + batch.num_hydrogens  # (B, A)
        allowed = _EDM_VALENCES[batch.elements]  # (B, A)
        is_stable = batch.is_site & (valences == allowed) & batch.is_finite[:, None]
        stable_hydrogens = batch.num_hydrogens.sum(-1) * batch.is_finite
        num_atoms[batch.indices] = batch.num_atoms
        num_stable_atoms[batch.indices] = is_stable.sum(-1) + stable_hydrogens
        is_valid[batch.indices] = _sanitizes(batch, orders, valences, allowed)
    is_stable_molecule = (num_atoms > 0) & (num_stable_atoms == num_atoms)
    return EdmStability(num_atoms, num_stable_atoms, is_stable_molecule, is_valid)


def is_outside_edm(molecule: Molecule) -> bool:
    """Whether a molecule has elements that perception knows and EDM's table does not.

    Elements that do not exist, or that nothing knows, are no molecule's: they are rejected, and counted as unstable.
    """
    elements = set(molecule.atomic_numbers.tolist())
    return elements <= _KNOWN and not elements <= _OF_QM9


_KNOWN: Final = frozenset(ELEMENTS)
_OF_QM9: Final = frozenset(QM9_ELEMENTS)


def _sanitizes(batch: _Batch, orders: IntArray, valences: IntArray, allowed: IntArray) -> BoolArray:
    """Whether RDKit sanitizes neutral atoms with these bond orders, shape (B,).

    With H, C, N, O, F, no charges and no aromatic bonds given, sanitizing comes down to comparing valences,
    which needs no RDKit. The exception is nitrogen of valence five, from which RDKit makes charged groups
    (nitro, azide): there it is asked.
    """
    is_known = (~batch.is_site | (batch.elements < _NUM_QM9)).all(-1)
    is_candidate = batch.is_finite & is_known & (batch.num_sites > 0)
    excess = np.where(batch.is_site, valences - allowed, 0)  # (B, A)
    is_pentavalent_nitrogen = (batch.elements == QM9_ELEMENTS.index(7)) & (excess == 2)
    is_valid: BoolArray = is_candidate & (excess <= 0).all(-1)
    is_open = is_candidate & ~is_valid & ((excess <= 0) | is_pentavalent_nitrogen).all(-1)
    with rdBase.BlockLogs():
        for row in np.flatnonzero(is_open):
            is_valid[row] = _rdkit_sanitizes(
                [QM9_ELEMENTS[element] for element in batch.elements[row, batch.is_site[row]]],
                orders[row],
                batch.num_hydrogens[row],
            )
    return is_valid


def _rdkit_sanitizes(atomic_numbers: list[int], orders: IntArray, num_hydrogens: IntArray) -> bool:
    mol = Chem.RWMol()
    for atomic_number in atomic_numbers:
        mol.AddAtom(Chem.Atom(atomic_number))
    for first, second in np.argwhere(np.triu(orders)).tolist():
        mol.AddBond(first, second, Chem.BondType.values[int(orders[first, second])])
    for atom, count in enumerate(num_hydrogens.tolist()):
        for _ in range(count):
            mol.AddBond(atom, mol.AddAtom(Chem.Atom(1)), Chem.BondType.SINGLE)
    try:
        sanitize(mol)  # one with too many rings for it is not valid
    except (ValueError, RuntimeError):
        return False
    return True
