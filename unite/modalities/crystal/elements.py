"""Data of the periodic table for each element: electronegativity, group and period. Index is the atomic number."""

from typing import Final

import numpy as np
from rdkit import Chem

MAX_ELEMENT: Final = 103
"""Largest atomic number that a crystal may have; nothing heavier is known as a solid."""

SYMBOLS: Final = ("", *(Chem.GetPeriodicTable().GetElementSymbol(z) for z in range(1, MAX_ELEMENT + 1)))
"""Symbol by atomic number; that of 0 is empty."""

NUMBERS: Final = {symbol: number for number, symbol in enumerate(SYMBOLS) if symbol}
"""Atomic number by symbol."""

MASSES: Final = np.array([0.0, *(Chem.GetPeriodicTable().GetAtomicWeight(z) for z in range(1, MAX_ELEMENT + 1))])
"""Standard atomic weights in u, shape (104,)."""

# fmt: off
ELECTRONEGATIVITY: Final = np.array([
    0, 2.20, 99, 0.98, 1.57, 2.04, 2.55, 3.04, 3.44, 3.98, 99, 0.93, 1.31, 1.61, 1.90, 2.19, 2.58, 3.16, 99, 0.82,
    1.00, 1.36, 1.54, 1.63, 1.66, 1.55, 1.83, 1.88, 1.91, 1.90, 1.65, 1.81, 2.01, 2.18, 2.55, 2.96, 3.00, 0.82, 0.95,
    1.22, 1.33, 1.60, 2.16, 1.90, 2.20, 2.28, 2.20, 1.93, 1.69, 1.78, 1.96, 2.05, 2.10, 2.66, 2.60, 0.79, 0.89, 1.10,
    1.12, 1.13, 1.14, 1.13, 1.17, 1.20, 1.20, 1.10, 1.22, 1.23, 1.24, 1.25, 1.10, 1.27, 1.30, 1.50, 2.36, 1.90, 2.20,
    2.20, 2.28, 2.54, 2.00, 1.62, 2.33, 2.02, 2.00, 2.20, 2.20, 0.70, 0.90, 1.10, 1.30, 1.50, 1.38, 1.36, 1.28, 1.30,
    1.30, 1.30, 1.30, 1.30, 1.30, 1.30, 1.30, 1.30,
])
# fmt: on
"""Pauling's electronegativities, shape (104,), as pymatgen has them; those that have none come last (99)."""

_NOBLE = (2, 10, 18, 36, 54, 86, 118)


def period(atomic_number: int) -> int:
    """Row of the periodic table, from 1; 0 of no element."""
    return 0 if atomic_number == 0 else 1 + sum(atomic_number > noble for noble in _NOBLE)


def group(atomic_number: int) -> int:
    """Column of the periodic table, 1 to 18, 3 for lanthanides and actinides; 0 of no element."""
    if atomic_number in (0, 1, 2):
        return (0, 1, 18)[atomic_number]
    row = period(atomic_number)
    place = atomic_number - _NOBLE[row - 2]  # from 1, within the row
    length = _NOBLE[row - 1] - _NOBLE[row - 2]
    if place <= 2:
        return place
    return max(place + 18 - length, 3)


def by_electronegativity(atomic_numbers: np.ndarray) -> np.ndarray:
    """Places (A,) of atoms (A,) in rising order of electronegativity; like elements keep their order.

    Elements of equal electronegativity are ordered by atomic number, so that those of a kind are together.
    """
    return np.lexsort((np.arange(len(atomic_numbers)), atomic_numbers, ELECTRONEGATIVITY[atomic_numbers]))
