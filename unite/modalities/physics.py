"""Relaxation by a physical model, for every modality that has one: many objects, each in a process that may fail.

The modality chooses what is relaxed, and by which model. Here are the processes, the caps and the summary. Needs no
torch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Final, TypeVar

import numpy as np
from tqdm import tqdm

from unite.console import is_quiet
from unite.engine.workers import Divisible, Failure, in_order, num_cpus, work_apart
from unite.errors import require, require_packages

Item = TypeVar("Item")
Measured = Mapping[str, float]
"""What relaxing one object gives, by name."""

RECORD_SECONDS: Final = 120.0
"""Time of a processor for one object; one that takes more has failed."""


def require_physics(num: int | None, packages: Sequence[str]) -> None:
    """Be sure that ``--physics`` makes sense and its packages are there.

    Args:
        num: How many objects to relax; None for none.
        packages: What it takes, as it is imported.

    Raises:
        UserError: The number is below 1, or a package is missing.
    """
    if num is None:
        return
    require(num >= 1, f"--physics is {num}; it must be at least 1")
    require_packages("--physics", "physics", *packages)


def relax_first(
    relax: Callable[[Item], Measured | None],
    items: Iterable[Item],
    most: int,
    description: str,
    unit: str,
    num_workers: int | None = None,
) -> list[Measured | None]:
    """Relax objects, each in a process of its own, until there are enough.

    Args:
        relax: Relaxes one; None of one that is not to count.
        items: The objects, taken as they are needed.
        most: Stop after so many that count.
        description: Of the progress bar.
        unit: Of the progress bar.
        num_workers: Processes; None for one per CPU, at most eight.

    Returns:
        What is found of those that count, in their order; None of one that could not be relaxed: it raised, ended its
        process, or took more than :data:`RECORD_SECONDS`.
    """
    one_by_one: Divisible[Item, Measured | Failure | None] = Divisible(
        work=relax, split=lambda item: [item], refuse=lambda item, failure: failure, join=lambda parts: parts[0]
    )
    found: list[Measured | None] = []
    bar = tqdm(total=most, desc=description, unit=unit, leave=False, disable=is_quiet() or None)
    working = work_apart(one_by_one, items, num_workers or num_cpus(), RECORD_SECONDS, RECORD_SECONDS)
    with bar, closing(in_order(working)) as done:
        for result in done:
            if result is not None:
                found.append(None if isinstance(result, Failure) else result)
                bar.update()
            if len(found) == most:
                break
    return found


def summary(
    found: Sequence[Measured | None],
    prefix: str,
    *,
    medians: Sequence[str] = (),
    upper: Sequence[str] = (),
    means: Sequence[str] = (),
    below: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, float]:
    """Metrics of relaxed objects.

    Args:
        found: What :func:`relax_first` gives.
        prefix: Of the names.
        medians: Values whose median is reported, as ``NAME_median``.
        upper: Values whose 90th percentile is reported, as ``NAME_90th``.
        means: Values whose mean is reported under their name, such as shares.
        below: Bounds by value: the share of all objects, the failed ones included, that are below is reported as
            ``NAME_below_BOUND``.

    Returns:
        Metrics by name, with ``num``, the objects, and ``failed``, the share of them that could not be relaxed and
        that the medians, percentiles and means leave out.
    """
    relaxed = [item for item in found if item is not None]
    values = {"num": float(len(found)), "failed": found.count(None) / max(len(found), 1)}
    if relaxed:
        values |= {f"{name}_median": float(np.median([item[name] for item in relaxed])) for name in medians}
        values |= {f"{name}_90th": float(np.percentile([item[name] for item in relaxed], 90)) for name in upper}
        values |= {name: float(np.mean([item[name] for item in relaxed])) for name in means}
    for name, bounds in (below or {}).items():
        for bound in bounds:
            values[f"{name}_below_{bound:g}"] = sum(item[name] < bound for item in relaxed) / max(len(found), 1)
    return {f"{prefix}/{name}": value for name, value in values.items()}
