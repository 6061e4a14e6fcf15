"""Scores of crystals in files from any source: parsed and judged in processes that may crash or take too long."""

from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from tqdm import tqdm

from unite.console import is_quiet
from unite.engine.workers import Divisible, Failure, in_order, num_cpus, work_apart
from unite.errors import UserError, require_packages
from unite.modalities.base import FileScores
from unite.modalities.crystal.crystal import EXTRA, Crystal, UnusableCrystalError
from unite.modalities.crystal.files.reading import Record, find_files, parse, read_records
from unite.modalities.crystal.metrics.counts import copy_metrics, reject_metrics, validity_metrics, verdict
from unite.modalities.crystal.metrics.validity import REASONS

FILE_REASONS: Final = ("unreadable", "no_cell", "partial_occupancy", "disordered", "crashed", "too_slow")
"""Reasons to reject a record beside those of :data:`~unite.modalities.crystal.metrics.validity.REASONS`."""

RECORDS_AT_ONCE: Final = 20
JOB_SECONDS: Final = 60.0
RECORD_SECONDS: Final = 20.0


class Judged(NamedTuple):
    """What is found of a record: the crystal, if there is one, and why it is rejected, if it is."""

    crystal: Crystal | None
    reason: str | None
    detail: str


def score_crystals(path: Path, num_workers: int | None = None) -> FileScores:
    """Metrics of the crystals in a file or folder, as :class:`CrystalGenerationMetrics` has them.

    Every record counts, the broken ones as rejected: fractions are of all records, and each kind of what is wrong has a
    ``reject/KIND``.

    Args:
        path: CIF, POSCAR or extended XYZ file, or a folder with such files.
        num_workers: Processes; None for one per CPU, at most eight.

    Raises:
        UserError: There is nothing to score, or a package is missing.
    """
    require_packages("scores of crystals", EXTRA, "pymatgen.core", "smact")
    files = find_files(path)
    counts: Counter[str] = Counter()
    crystals: list[Crystal] = []
    valid: list[Crystal] = []
    rejects: list[dict[str, Any]] = []
    with closing(judge_all(files, num_workers)) as judged:
        for record, found in tqdm(judged, desc="score", unit="crystal", leave=False, disable=is_quiet() or None):
            if found.crystal is not None:
                crystals.append(found.crystal)
            if found.crystal is not None and found.reason is None:
                valid.append(found.crystal)
            else:
                counts[str(found.reason)] += 1
                reject = {"file": record.file, "record": record.number, "reason": found.reason, "detail": found.detail}
                rejects.append({name: value for name, value in reject.items() if value})
    total = len(valid) + len(rejects)
    if not crystals:
        raise UserError(
            f"{path} has no crystals"
            if not rejects
            else f"none of the {total:,} records of {path} is a crystal; the first: {rejects[0]['reason']}, "
            f"{rejects[0].get('detail', '')}"
        )
    # Of all records: what is no crystal is not valid either.
    values = {
        name: value if name == "mean_atoms" else value * len(crystals) / total
        for name, value in validity_metrics(crystals).items()
    }
    values |= copy_metrics(valid, None, num_workers)
    values |= reject_metrics({name: counts[name] for name in (*FILE_REASONS, *REASONS, "composition")}, total)
    return FileScores(total, {"num_crystals": float(total), **values}, rejects, valid)


def valid_crystals(path: Path, num_workers: int | None = None) -> Generator[Crystal, None, None]:
    """The valid crystals of a file or folder, one after another.

    Raises:
        UserError: There is no such file.
    """
    with closing(judge_all(find_files(path), num_workers)) as judged:
        for _, found in judged:
            if found.crystal is not None and found.reason is None:
                yield found.crystal


def judge_all(files: list[Path], num_workers: int | None = None) -> Generator[tuple[Record, Judged], None, None]:
    """Records of files, each with what is found of it, in their order."""
    records = read_records(files)
    waiting: list[list[Record]] = []

    def chunks() -> Iterator[list[Record]]:
        while chunk := list(islice(records, RECORDS_AT_ONCE)):
            waiting.append(chunk)
            yield chunk

    judging: Divisible[list[Record], list[Judged]] = Divisible(
        work=judge,
        split=lambda chunk: [[record] for record in chunk],
        refuse=_refused,
        join=lambda parts: list(chain.from_iterable(parts)),
    )
    done = in_order(work_apart(judging, chunks(), num_workers or num_cpus(), JOB_SECONDS, RECORD_SECONDS))
    with closing(done):
        for number, part in enumerate(done):
            yield from zip(waiting[number], part, strict=True)


def judge(records: list[Record]) -> list[Judged]:
    """Parse and judge records."""
    return [_judge(record) for record in records]


def _judge(record: Record) -> Judged:
    try:
        crystal = parse(record)
    except UnusableCrystalError as error:
        return Judged(None, error.kind, error.detail)
    return Judged(crystal, verdict(crystal), "" if verdict(crystal) is None else crystal.formula)


def _refused(chunk: list[Record], failure: Failure) -> list[Judged]:
    return [Judged(None, failure.reason, failure.detail)]
