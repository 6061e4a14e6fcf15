"""What :func:`unite.engine.workers.work_apart` does, in this process, where a test can count and interrupt it."""

from collections.abc import Generator, Iterable
from typing import Any

from unite.engine.workers import Divisible


def in_this_process(
    kind: Divisible[Any, Any], jobs: Iterable[Any], num_workers: int
) -> Generator[tuple[int, Any], None, None]:
    """Do the jobs one after another."""
    yield from ((number, kind.work(job)) for number, job in enumerate(jobs))
