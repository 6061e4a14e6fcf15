"""From atoms and coordinates to chemistry: bonds, validity and keys of generated molecules.

A generated molecule is a list of elements with coordinates; whether it *is* a molecule has to be perceived.
Two perceptions live here:

- :func:`perceive`, the strict one behind ``validity``: pair-specific bond cutoffs, RDKit's bond-order search
  with a cap on its work, and no unconnected pieces, radicals or hydrogens that nobody generated. On QM9 it
  accepts 99.99 %.
- :func:`edm_stability`, the distance table of EDM (Hoogeboom et al. 2022, arXiv:2203.17003), for comparison
  with the literature. On QM9 it calls 95.2 % of the molecules stable.

Both run on many molecules at once: everything that can be decided from distances is decided in numpy for a
padded batch, so that RDKit gets only molecules that may be valid.

Dimension letters: M molecules, B molecules of one padded batch, A atoms.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
from rdkit import rdBase

from unite.modalities.molecule.perception.bond_orders import _assign_bond_orders, _require_capped_bond_orders
from unite.modalities.molecule.perception.distances import (
    _Batch,
    _batches,
    _bond_lists,
    _has_clash,
    _is_bond,
    _is_one_piece,
)
from unite.modalities.molecule.perception.elements import _MAX_DEGREES, _OTHER, ELEMENTS, BoolArray
from unite.modalities.molecule.perception.molecule import _REASONS_WITHOUT_GRAPH, Molecule, Perception


def perceive(molecule: Molecule) -> Perception:
    """Bonds of a molecule, or why it has none that make sense.

    1. At least two atoms, all coordinates finite, elements known, no two atoms closer than 0.5 Å, or than 0.7 times the
       sum of their covalent radii where one is not H, C, N, O or F.
    2. A bond where the distance is below ``f * (r_i + r_j)`` with covalent radii r; f is 1.15 between heavy
       atoms, 1.30 to a hydrogen; never between hydrogens.
    3. No atom with more than 1 (H, F), 4 (B, C, N, Si, Cl, Ge, Br), 2 (O), 5 (P, As, I) or 6 (S, Se, Te) neighbours
       or with none, and one connected piece, of at most 32 fused rings.
    4. Bond orders for the total charge (formal charges allowed): RDKit's for neutral molecules of H, C, N, O, F, as
       those of QM9; ours (:func:`~unite.modalities.molecule.perception.valences.assign_orders`) for all others, and
       for those of more than nine heavy atoms where RDKit finds none. Then RDKit's sanitization.
    5. No radical electron and no implicit hydrogen.

    For united atoms, the counted hydrogens take part from step 3 on as neighbours without a position. A
    single atom with hydrogens, such as methane, is then a molecule.

    Never hangs: see :data:`MAX_BOND_ORDER_ITERATIONS`, :data:`MAX_STATES` and :data:`MAX_FUSED_RINGS`. RDKit's log is
    silenced while it runs.

    Args:
        molecule: Molecule to look at.

    Returns:
        The RDKit molecule or the reason of rejection. Rotating and shifting the positions changes nothing, nor does the
        order of the atoms: RDKit's search, to which it matters, gets them in an order that follows from the bonds.

    Raises:
        RuntimeError: If the installed RDKit cannot limit its bond-order search.
    """
    return perceive_all([molecule])[0]


def perceive_all(molecules: Sequence[Molecule]) -> list[Perception]:
    """What :func:`perceive` gives for each of the molecules, faster than one by one.

    Metrics, files and pictures ask for the same molecules: what was found of one is kept as long as it exists.
    """
    fresh = [molecule for molecule in dict.fromkeys(molecules) if molecule not in _perceived]
    _perceived.update(zip(fresh, _perceive_all(fresh), strict=True))
    return [_perceived[molecule] for molecule in molecules]


_perceived: WeakKeyDictionary[Molecule, Perception] = WeakKeyDictionary()


def _perceive_all(molecules: Sequence[Molecule]) -> list[Perception]:
    _require_capped_bond_orders()
    perceptions: list[Perception | None] = [None] * len(molecules)
    with rdBase.BlockLogs():
        for batch in _batches(molecules):
            is_bond = _is_bond(batch)
            is_connected = _is_one_piece(is_bond, batch.num_sites)
            reasons = _reasons_without_rdkit(batch, is_bond, is_connected)
            is_connected &= batch.num_atoms >= 2
            is_open = np.array([reason is None for reason in reasons])
            bonds = _bond_lists(is_bond & is_open[:, None, None])
            for row, index in enumerate(batch.indices):
                mol, reason = None, reasons[row]
                if reason is None:
                    mol, reason = _assign_bond_orders(molecules[index], bonds[row])
                has_meaning = reason not in _REASONS_WITHOUT_GRAPH
                perceptions[index] = Perception(mol, reason, has_meaning and bool(is_connected[row]))
    return [perception for perception in perceptions if perception is not None]


def _reasons_without_rdkit(batch: _Batch, is_bond: BoolArray, is_connected: BoolArray) -> list[str | None]:
    """First reason to reject each of the B molecules that needs no bond orders; None for those left."""
    max_degrees = _MAX_DEGREES[batch.elements]  # (B, A)
    degrees = is_bond.sum(-1) + batch.num_hydrogens  # (B, A)
    is_unknown = (batch.elements == _OTHER) | (batch.is_united[:, None] & (batch.elements == ELEMENTS.index(1)))
    checks: dict[str, BoolArray] = {
        "empty": batch.num_sites == 0,
        "nonfinite": ~batch.is_finite,
        "unknown_element": (batch.is_site & is_unknown).any(-1),
        "clash": _has_clash(batch),
        "overvalent_atom": (batch.is_site & (degrees > max_degrees)).any(-1),
        "isolated_atom": (batch.is_site & (degrees == 0)).any(-1),
        "disconnected": ~is_connected,
    }
    reasons: list[str | None] = [None] * len(batch.indices)
    for reason, fails in reversed(checks.items()):  # so that the first one is written last
        for row in np.flatnonzero(fails):
            reasons[row] = reason
    return reasons
