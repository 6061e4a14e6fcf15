"""Whether a crystal can be one: distances and volume (structure), charges and electronegativity (composition)."""

from collections.abc import Iterable
from functools import cache
from math import gcd
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from unite.errors import require_packages
from unite.modalities.crystal.crystal import EXTRA, MIN_VOLUME, Crystal
from unite.modalities.crystal.elements import MAX_ELEMENT, SYMBOLS

OxidationSet = Literal["smact14", "icsd24"]
Composition = tuple[tuple[int, int], ...]

MIN_DISTANCE: Final = 0.5
"""Å; atoms closer than this are no structure (CDVAE, arXiv:2110.06197)."""

MAX_ATOMS: Final = 500
"""Larger cells are rejected unseen, as ``too_large``: pairs grow with the square."""

REASONS: Final = ("empty", "too_large", "nonfinite", "unknown_element", "no_volume", "too_close")
"""Why a structure can be rejected, in the order of the checks."""

_MAX_IMAGES = 4


def structure_reason(crystal: Crystal) -> str | None:
    """Why a crystal is structurally invalid, one of :data:`REASONS`; None of a valid one."""
    if crystal.num_atoms == 0:
        return "empty"
    if crystal.num_atoms > MAX_ATOMS:
        return "too_large"
    if not (np.isfinite(crystal.fractional).all() and np.isfinite(crystal.cell).all()):
        return "nonfinite"
    if not ((crystal.atomic_numbers > 0) & (crystal.atomic_numbers <= MAX_ELEMENT)).all():
        return "unknown_element"
    if crystal.volume < MIN_VOLUME:
        return "no_volume"
    return "too_close" if has_close_atoms(crystal) else None


def has_close_atoms(crystal: Crystal, cutoff: float = MIN_DISTANCE) -> bool:
    """Whether two atoms, periodic images and an atom and its own image included, are closer than ``cutoff`` (Å)."""
    matrix = crystal.matrix
    heights = crystal.volume / np.linalg.norm(np.cross(matrix[[1, 2, 0]], matrix[[2, 0, 1]]), axis=1)
    # With differences within half a cell, an image farther than this along a vector is farther than the cutoff.
    reach = np.floor(cutoff / heights + 0.5).astype(int)
    if (reach > _MAX_IMAGES).any():
        return True  # a cell so flat that its atoms meet their own images, or so skewed that it is none
    images = _images(tuple(reach.tolist()))  # (I, 3)
    first, second = np.triu_indices(crystal.num_atoms, 1)
    differences = crystal.fractional[first] - crystal.fractional[second]
    differences -= np.round(differences)
    apart = (differences[:, None] + images) @ matrix  # (pairs, I, 3)
    own = images[(images != 0).any(axis=1)] @ matrix
    squared = np.concatenate([(apart**2).sum(axis=-1).ravel(), (own**2).sum(axis=-1)])
    return bool((squared < cutoff**2).any())


@cache
def _images(reach: tuple[int, int, int]) -> NDArray[np.float64]:
    return np.stack(np.meshgrid(*(np.arange(-n, n + 1.0) for n in reach), indexing="ij"), axis=-1).reshape(-1, 3)


@cache
def is_composition_valid(composition: Composition, oxidation_set: OxidationSet = "smact14") -> bool:
    """Whether smact's rules allow a composition: charges in balance, and anions the more electronegative.

    The same answer as ``smact.screening.smact_validity``: pure elements and alloys of metals are valid; else each
    element needs one oxidation state so that the charges add up to zero, every cation less electronegative than every
    anion. smact tries all combinations, which for ten elements takes minutes. Here, for every electronegativity that
    may lie between cations and anions, the sums that are possible are collected element by element: microseconds,
    whatever the number of elements.

    Args:
        composition: Pairs of atomic number and count, see :attr:`Crystal.composition`.
        oxidation_set: Oxidation states: ``smact14`` is the set that CDVAE and others have used; ``icsd24`` is the
            default of smact 4, which allows less.

    Raises:
        UserError: smact is not installed.
    """
    if any(number < 1 or number > MAX_ELEMENT for number, _ in composition) or not composition:
        return False
    if len(composition) == 1 or all(SYMBOLS[number] in metals() for number, _ in composition):
        return True
    parts = [(*_element(SYMBOLS[number], oxidation_set), count) for number, count in composition]
    if any(states is None for states, _, _ in parts):
        return False
    divisor = gcd(*(count for _, _, count in parts))
    known = sorted({negativity for _, negativity, _ in parts if negativity is not None})
    return any(_is_balanced(parts, border, divisor) for border in [-1.0, *known])


_Part = tuple[tuple[int, ...] | None, float | None, int]


def _is_balanced(parts: Iterable[_Part], border: float, divisor: int) -> bool:
    """Whether charges can add up to zero with all cations at or below an electronegativity, all anions above."""
    sums = {0}
    for states, negativity, count in parts:
        assert states is not None
        if negativity is None:
            return False
        allowed = [q for q in states if q == 0 or (q > 0) == (negativity <= border)]
        sums = {total + charge * (count // divisor) for total in sums for charge in allowed}
    return 0 in sums


@cache
def metals() -> frozenset[str]:
    """Symbols of smact's metals.

    Raises:
        UserError: smact is not installed.
    """
    require_packages("validity of compositions", EXTRA, "smact")
    import smact

    return frozenset(smact.metals)


@cache
def _element(symbol: str, oxidation_set: OxidationSet) -> tuple[tuple[int, ...] | None, float | None]:
    """Oxidation states and Pauling electronegativity, as smact has them."""
    import smact

    element = smact.Element(symbol)
    states = element.oxidation_states_smact14 if oxidation_set == "smact14" else _icsd24_states().get(symbol)
    return (tuple(states) if states else None), element.pauling_eneg


@cache
def _icsd24_states() -> dict[str, list[int]]:
    """Oxidation states by symbol that the ICSD of 2024 has at least three times, as smact 4 takes them by default."""
    from smact.utils.oxidation import ICSD24OxStatesFilter

    table = ICSD24OxStatesFilter().filter(consensus=3, include_zero=False, commonality="low")
    return {row.element: [int(state) for state in str(row.oxidation_state).split()] for row in table.itertuples()}
