"""What perception knows of elements: radii, valences, and the bond lengths that follow."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from rdkit import Chem

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

QM9_ELEMENTS: Final = (1, 6, 7, 8, 9)
"""Atomic numbers of H, C, N, O, F, of which QM9 is made. EDM's table knows only these."""

_NUM_QM9 = len(QM9_ELEMENTS)

# Most neighbours of an atom, QM9's elements first; then B, Si, P, S, Cl, Ge, As, Se, Br, Te, I. Nitrogen has four in
# ions, boron in adducts, the heavier ones have them in PF5, SF6, HClO4 and IF5.
_NEIGHBOURS: Final = (1, 4, 4, 2, 1, 4, 4, 5, 6, 4, 4, 5, 6, 4, 6, 5)

ELEMENTS: Final = (*QM9_ELEMENTS, 5, 14, 15, 16, 17, 32, 33, 34, 35, 52, 53)
"""Atomic numbers in the order of the tables below, QM9's first; index ``len(ELEMENTS)`` stands for all others.

The others are metals and noble gases, whose bonds do not follow from covalent radii.
"""

# Rows and columns of every table are `ELEMENTS` and "other", which never bonds.
_OTHER = len(ELEMENTS)
_COVALENT_RADII = np.array([Chem.GetPeriodicTable().GetRcovalent(number) for number in ELEMENTS])  # Å, Cordero's
_HEAVY_FACTOR, _HYDROGEN_FACTOR = 1.15, 1.30
_MAX_DEGREES = np.array([*_NEIGHBOURS, 0])
_EDM_VALENCES = np.array([1, 4, 3, 2, 1, *[-1] * (_OTHER + 1 - _NUM_QM9)])  # -1 is never reached: others are not stable

MIN_DISTANCE: Final = 0.5
"""Å; atoms of H, C, N, O, F that are closer than this clash."""

_ELEMENT_INDICES = np.full(119, _OTHER)
_ELEMENT_INDICES[list(ELEMENTS)] = np.arange(len(ELEMENTS))


def _bond_cutoffs() -> FloatArray:
    """Largest bond length in Å by pair of elements, shape (17, 17); zero where no bond is possible."""
    factors = np.full((len(ELEMENTS), len(ELEMENTS)), _HEAVY_FACTOR)
    factors[0, :] = factors[:, 0] = _HYDROGEN_FACTOR  # looser, for nothing else lies near a hydrogen
    factors[0, 0] = 0.0  # H2 is not in QM9, and geminal hydrogens come close
    cutoffs = np.zeros((_OTHER + 1, _OTHER + 1))
    cutoffs[:_OTHER, :_OTHER] = factors * (_COVALENT_RADII[:, None] + _COVALENT_RADII[None, :])
    return cutoffs


def _clash_distances() -> FloatArray:
    """Distance in Å below which two atoms clash, by pair of elements, shape (17, 17).

    One distance within QM9's elements and for unknown ones; for others a share of the sum of covalent radii, of which
    the shortest bonds (P≡N, S=O) have 0.83.
    """
    clashes = np.full((_OTHER + 1, _OTHER + 1), MIN_DISTANCE)
    others = 0.7 * (_COVALENT_RADII[:, None] + _COVALENT_RADII[None, :])
    clashes[_NUM_QM9:_OTHER, :_OTHER] = others[_NUM_QM9:]
    clashes[:_OTHER, _NUM_QM9:_OTHER] = others[:, _NUM_QM9:]
    return clashes


def _edm_cutoffs() -> FloatArray:
    """Largest length in Å of single, double and triple bonds by pair of elements, shape (3, 17, 17).

    Zero for elements beside those of QM9. Typical bond lengths in pm and margins as EDM lists them
    (``qm9/bond_analyze.py`` of its code).
    """
    nan = np.nan  # no such bond
    lengths = np.array(
        [
            # H    C    N    O    F
            [
                [74, 109, 101, 96, 92],
                [109, 154, 147, 143, 135],
                [101, 147, 145, 140, 136],
                [96, 143, 140, 148, 142],
                [92, 135, 136, 142, 142],
            ],
            [
                [nan, nan, nan, nan, nan],
                [nan, 134, 129, 120, nan],
                [nan, 129, 125, 121, nan],
                [nan, 120, 121, 121, nan],
                [nan, nan, nan, nan, nan],
            ],
            [
                [nan, nan, nan, nan, nan],
                [nan, 120, 116, 113, nan],
                [nan, 116, 110, nan, nan],
                [nan, 113, nan, nan, nan],
                [nan, nan, nan, nan, nan],
            ],
        ]
    )
    margins = np.array([10.0, 5.0, 3.0])
    cutoffs = np.zeros((3, _OTHER + 1, _OTHER + 1))
    cutoffs[:, :_NUM_QM9, :_NUM_QM9] = np.nan_to_num((lengths + margins[:, None, None]) / 100)
    return cutoffs


_BOND_CUTOFFS = _bond_cutoffs()
_CLASH_DISTANCES = _clash_distances()
_EDM_CUTOFFS = _edm_cutoffs()
