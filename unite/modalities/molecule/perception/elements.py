"""What perception knows of elements: radii, valences, and the bond lengths that follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # judging molecules needs no torch
    pass


IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

ELEMENTS: Final = (1, 6, 7, 8, 9)
"""Atomic numbers in the order of the tables below; index ``len(ELEMENTS)`` stands for all others."""

# Rows and columns of every table: H, C, N, O, F, other. "Other" never bonds.
_OTHER = len(ELEMENTS)
_COVALENT_RADII = np.array([0.31, 0.76, 0.71, 0.66, 0.57])  # Å
_HEAVY_FACTOR, _HYDROGEN_FACTOR = 1.15, 1.30
_MAX_DEGREES = np.array([1, 4, 4, 2, 1, 0])  # four for nitrogen: zwitterions
_EDM_VALENCES = np.array([1, 4, 3, 2, 1, -1])  # -1 is never reached: other elements are not stable

_ELEMENT_INDICES = np.full(119, _OTHER)
_ELEMENT_INDICES[list(ELEMENTS)] = np.arange(len(ELEMENTS))


def _bond_cutoffs() -> FloatArray:
    """Largest bond length in Å by pair of elements, shape (6, 6); zero where no bond is possible."""
    factors = np.full((len(ELEMENTS), len(ELEMENTS)), _HEAVY_FACTOR)
    factors[0, :] = factors[:, 0] = _HYDROGEN_FACTOR  # looser, for nothing else lies near a hydrogen
    factors[0, 0] = 0.0  # H2 is not in QM9, and geminal hydrogens come close
    cutoffs = np.zeros((_OTHER + 1, _OTHER + 1))
    cutoffs[:_OTHER, :_OTHER] = factors * (_COVALENT_RADII[:, None] + _COVALENT_RADII[None, :])
    return cutoffs


def _edm_cutoffs() -> FloatArray:
    """Largest length in Å of single, double and triple bonds by pair of elements, shape (3, 6, 6).

    Typical bond lengths in pm and margins as EDM lists them (``qm9/bond_analyze.py`` of its code).
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
    cutoffs[:, :_OTHER, :_OTHER] = np.nan_to_num((lengths + margins[:, None, None]) / 100)
    return cutoffs


_BOND_CUTOFFS = _bond_cutoffs()
_EDM_CUTOFFS = _edm_cutoffs()
