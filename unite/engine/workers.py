"""Work in processes that may die: a crash or the out-of-memory killer costs one piece of work, not the run.

A worker is given one job at a time, so that it is known which one ended it. It ends with its parent, and the kernel
ends it if a job takes too much time of the processor.

Imports nothing heavy: workers are forked where that is safe.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

JOB_SECONDS: Final = 120.0
"""Time of a processor for a job of many records, which takes a second or two."""

RECORD_SECONDS: Final = 30.0
"""Time of a processor for a single record, when the job that it was part of has failed."""

_ENDING: Final = (signal.SIGINT, signal.SIGTERM)
_HEARTBEAT: Final = 1.0  # s, after which an idle worker looks whether its parent is there


class Failure(NamedTuple):
    """Why a job failed: how its worker ended, or the error it raised.

    Attributes:
        reason: ``too_slow`` for one that took too long, ``crashed`` for any other end.
        detail: What there is to say about it.
    """

    reason: Literal["crashed", "too_slow"]
    detail: str


@dataclass(frozen=True)
class Divisible(Generic[Job, Result]):
    """Work on jobs of many records.

    Attributes:
        work: Does a job.
        split: The records of a job as jobs of one.
        refuse: Stands in for the result of a single record that ends its worker.
        join: One result from those of single records, in their order.
    """

    work: Callable[[Job], Result]
    split: Callable[[Job], list[Job]]
    refuse: Callable[[Job, Failure], Result]
    join: Callable[[list[Result]], Result]


def num_cpus() -> int:
    """CPUs that this process may use, at most eight."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, 8)


def work_apart(
    kind: Divisible[Job, Result],
    jobs: Iterable[Job],
    num_workers: int,
    job_seconds: float = JOB_SECONDS,
    record_seconds: float = RECORD_SECONDS,
) -> Generator[tuple[int, Result], None, None]:
    """Do jobs in processes of their own, and one that fails again record by record.

    Args:
        kind: What to do.
        jobs: Jobs of one or more records, taken as workers become free.
        num_workers: Processes at a time.
        job_seconds: Time of a processor for a job.
        record_seconds: Time of a processor for a single record, when the job that it was part of has failed.

    Yields:
        Number of a job, from 0, and its result, in the order in which they are done.
    """
    for number, job, result in _attempts(kind.work, jobs, num_workers, job_seconds):
        if isinstance(result, Failure):
            records = kind.split(job)
            results: dict[int, Result] = {}
            for index, record, found in _attempts(kind.work, records, num_workers, record_seconds):
                results[index] = kind.refuse(record, found) if isinstance(found, Failure) else found
            yield number, kind.join([results[index] for index in range(len(records))])
        else:
            yield number, result


def in_order(done: Generator[tuple[int, Result], None, None]) -> Generator[Result, None, None]:
    """The results of :func:`work_apart` in the order of their jobs."""
    early: dict[int, Result] = {}
    num_yielded = 0
    with closing(done):
        for number, result in done:
            early[number] = result
            while num_yielded in early:
                yield early.pop(num_yielded)
                num_yielded += 1


def _attempts(
    work: Callable[[Job], Result], jobs: Iterable[Job], num_workers: int, seconds: float
) -> Generator[tuple[int, Job, Result | Failure], None, None]:
    """Number, job, and result or failure of each job, as they are done."""
    remaining = enumerate(jobs)
    upcoming = next(remaining, None)
    idle: list[_Worker] = []
    busy: dict[Connection, tuple[_Worker, int, Job]] = {}
    try:
        while upcoming or busy:
            while upcoming and len(busy) < num_workers:
                worker = _give(upcoming[1], idle, work, seconds)
                busy[worker.connection] = (worker, *upcoming)
                upcoming = next(remaining, None)
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                worker, number, job = busy.pop(connection)
                result = worker.result()
                if worker.is_alive:
                    idle.append(worker)
                yield number, job, result
    finally:
        with _undisturbed():
            for worker in (*idle, *(worker for worker, _, _ in busy.values())):
                worker.end()


def _give(job: Job, idle: "list[_Worker]", work: Callable[[Job], Any], seconds: float) -> "_Worker":
    """Hand a job to an idle worker or to a new one."""
    while idle:
        worker = idle.pop()
        with suppress(OSError):  # it died in the meantime
            worker.connection.send(job)
            return worker
        worker.end()
    worker = _Worker(work, seconds)
    with suppress(OSError):  # it died before it had all of it, which asking for its result tells
        worker.connection.send(job)
    return worker


class _Worker:
    """A process that does jobs, seen from its parent."""

    def __init__(self, work: Callable[[Any], Any], seconds: float) -> None:
        # A forked process need not import anything; elsewhere than on Linux that is not safe.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self.seconds = seconds
        self.is_alive = True
        with _undisturbed():
            self.connection, theirs = context.Pipe()
            arguments = (theirs, self.connection, work, seconds, os.getpid())
            self.process = context.Process(target=_serve, args=arguments, daemon=True)  # type: ignore[attr-defined]
            self.process.start()
            theirs.close()

    def result(self) -> Any:
        """The result, or the failure."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            failure = _failure(self.process.exitcode, self.seconds)
            self.end()
            return failure

    def end(self) -> None:
        """End it, whatever it is doing."""
        self.is_alive = False
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.process.close()


def _failure(code: int | None, seconds: float) -> Failure:
    if code is not None and -code == getattr(signal, "SIGPROF", None):
        return Failure("too_slow", f"took more than {seconds:g} s")
    if code is not None and code < 0:
        return Failure("crashed", f"its process was ended by {signal.Signals(-code).name}")
    return Failure("crashed", f"its process ended with status {code}")


def _serve(
    connection: Connection, parents: Connection, work: Callable[[Any], Any], seconds: float, parent: int
) -> None:
    """Do the jobs that come, until the parent is gone."""
    parents.close()  # or a dead parent would look alive
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that distributes the work handles Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)  # it was started undisturbed
    with suppress(EOFError, OSError):
        while True:
            while not connection.poll(_HEARTBEAT):
                if os.getppid() != parent:
                    return
            job = connection.recv()
            _limit_time(seconds)
            try:
                found = work(job)
            except Exception as error:
                found = Failure("crashed", " ".join(f"{type(error).__name__}: {error}".split()))
            _limit_time(0)
            connection.send(found)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Within the block, let Ctrl-C and SIGTERM wait: half way, they would leave a process or print a traceback."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _limit_time(seconds: float) -> None:
    """Let the kernel end this process after so much time of a processor; 0 for never."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)
