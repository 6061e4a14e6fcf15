"""Whether two crystals are the same, by pymatgen's StructureMatcher, in processes that may take too long."""

from collections.abc import Sequence
from contextlib import closing
from functools import cache
from itertools import chain
from typing import Any, Final, NamedTuple

from unite.engine.workers import Divisible, in_order, num_cpus, work_apart
from unite.errors import require_packages
from unite.modalities.crystal.crystal import EXTRA, Crystal
from unite.modalities.crystal.metrics.validity import Composition, structure_reason

LOOSE: Final = {"stol": 0.5, "angle_tol": 10.0, "ltol": 0.3}
"""Tolerances of the literature (CDVAE, arXiv:2110.06197): angles in degrees, the others relative."""
STRICT: Final = {"stol": 0.3, "angle_tol": 5.0, "ltol": 0.2}
"""pymatgen's own, which random coordinates do not pass."""

PAIRS_AT_ONCE: Final = 20
JOB_SECONDS: Final = 40.0
PAIR_SECONDS: Final = 5.0
"""Time of a processor for a pair, of which most take under a tenth of a second."""
GROUP_SECONDS: Final = 20.0
MAX_COMPARED: Final = 100
"""Comparisons within crystals of one composition, in the search for distinct ones."""


class Match(NamedTuple):
    """What comparing two crystals gives.

    Attributes:
        loose: Root mean square of displacements with tolerances :data:`LOOSE`, relative to the cube root of the volume
            of an atom, without a unit; None if they do not match.
        strict: The same with :data:`STRICT`.
        is_cut: Whether comparing them took too long; they then count as no match.
    """

    loose: float | None = None
    strict: float | None = None
    is_cut: bool = False


def match(first: Crystal, second: Crystal) -> Match:
    """Compare two crystals."""
    if first.composition != second.composition or structure_reason(first) or structure_reason(second):
        return Match()
    pair = first.to_pymatgen(), second.to_pymatgen()
    loose = _matcher("loose").get_rms_dist(*pair)
    if loose is None:  # what is strict is loose
        return Match()
    strict = _matcher("strict").get_rms_dist(*pair)
    return Match(float(loose[0]), None if strict is None else float(strict[0]))


@cache
def _matcher(name: str) -> Any:
    require_packages("matching of crystals", EXTRA, "pymatgen.core")
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(**{"loose": LOOSE, "strict": STRICT}[name])


Pair = tuple[Crystal, Crystal]


def match_all(pairs: Sequence[Pair], num_workers: int | None = None) -> list[Match]:
    """What :func:`match` gives of many pairs, in their order; pairs of different composition cost nothing.

    Args:
        pairs: Crystals to compare.
        num_workers: Processes; None for one per CPU, at most eight.
    """
    _matcher("loose")  # imported before processes are forked
    results = [Match()] * len(pairs)
    alike = [index for index, (first, second) in enumerate(pairs) if first.composition == second.composition]
    parts = [alike[start : start + PAIRS_AT_ONCE] for start in range(0, len(alike), PAIRS_AT_ONCE)]
    jobs = [[pairs[index] for index in part] for part in parts]
    matching: Divisible[list[Pair], list[Match]] = Divisible(
        work=_match_pairs,
        split=lambda job: [[pair] for pair in job],
        refuse=lambda job, failure: [Match(is_cut=True)],
        join=lambda found: list(chain.from_iterable(found)),
    )
    with closing(in_order(work_apart(matching, jobs, num_workers or num_cpus(), JOB_SECONDS, PAIR_SECONDS))) as done:
        for part, found in zip(parts, done, strict=True):
            for index, result in zip(part, found, strict=True):
                results[index] = result
    return results


def _match_pairs(pairs: list[Pair]) -> list[Match]:
    return [match(*pair) for pair in pairs]


class Distinct(NamedTuple):
    """Which crystals are no copies.

    Attributes:
        is_first: Whether each crystal is unlike all before it.
        is_known: Whether each is like one of the reference.
        num_cut: Crystals that were not compared with all, because that would take too long; they count as copies, and
            as known.
    """

    is_first: list[bool]
    is_known: list[bool]
    num_cut: int


def find_distinct(
    crystals: Sequence[Crystal], reference: Sequence[Crystal] = (), num_workers: int | None = None
) -> Distinct:
    """Find crystals that are neither copies of earlier ones nor in the reference.

    Two are copies if StructureMatcher, with pymatgen's tolerances (:data:`STRICT`), says so; only those of one
    composition are compared.

    Args:
        crystals: Structurally valid crystals.
        reference: Such as the training crystals.
        num_workers: Processes; None for one per CPU, at most eight.
    """
    _matcher("strict")
    groups: dict[Composition, list[int]] = {}
    for index, crystal in enumerate(crystals):
        groups.setdefault(crystal.composition, []).append(index)
    known: dict[Composition, list[Crystal]] = {composition: [] for composition in groups}
    for crystal in reference:
        if crystal.composition in known:
            known[crystal.composition].append(crystal)
    parts = [list(groups.items())[start : start + PAIRS_AT_ONCE] for start in range(0, len(groups), PAIRS_AT_ONCE)]
    jobs = [[([crystals[i] for i in indices], known[key]) for key, indices in part] for part in parts]
    comparing: Divisible[list[_Group], list[Distinct]] = Divisible(
        work=_compare_groups,
        split=lambda job: [[group] for group in job],
        refuse=lambda job, failure: [_all_cut(len(job[0][0]))],
        join=lambda found: list(chain.from_iterable(found)),
    )
    is_first, is_known, num_cut = [False] * len(crystals), [False] * len(crystals), 0
    with closing(in_order(work_apart(comparing, jobs, num_workers or num_cpus(), JOB_SECONDS, GROUP_SECONDS))) as done:
        for part, found in zip(parts, done, strict=True):
            for (_, indices), result in zip(part, found, strict=True):
                num_cut += result.num_cut
                for place, index in enumerate(indices):
                    is_first[index], is_known[index] = result.is_first[place], result.is_known[place]
    return Distinct(is_first, is_known, num_cut)


_Group = tuple[list[Crystal], list[Crystal]]  # crystals of one composition, and those of the reference


def _all_cut(size: int) -> Distinct:
    """What is said of crystals of one composition that took too long: one of them is distinct."""
    return Distinct([True] + [False] * (size - 1), [True] * size, size)


def _compare_groups(groups: list[_Group]) -> list[Distinct]:
    return [_compare(*group) for group in groups]


def _compare(crystals: list[Crystal], known: list[Crystal]) -> Distinct:
    """Crystals of one composition, with each other and with those of the reference."""
    if len(crystals) == 1 and not known:  # most are alone
        return Distinct([True], [False], 0)
    matcher = _matcher("strict")
    distinct: list[Any] = []
    reference = [crystal.to_pymatgen() for crystal in known]
    is_first, is_known, num_cut, num_compared = [], [], 0, 0
    for crystal in crystals:
        if num_compared > MAX_COMPARED:
            num_cut += 1
            is_first.append(False)
            is_known.append(True)
            continue
        structure = crystal.to_pymatgen()
        is_new = not any(matcher.fit(structure, other) for other in distinct)
        num_compared += len(distinct)
        if is_new:
            distinct.append(structure)
            num_compared += len(reference)
        is_first.append(is_new)
        # Novelty is asked of distinct ones only.
        is_known.append(not is_new or any(matcher.fit(structure, other) for other in reference))
    return Distinct(is_first, is_known, num_cut)
