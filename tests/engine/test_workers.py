"""Processes that may die, by a signal, a loop without end, or with their parent."""

import faulthandler
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from unite.engine.workers import Divisible, in_order, work_apart

JOBS = [[0, 1, 2], [3, 4], [5], [6, 7, 8]]


def doing(work: Callable[[int], int]) -> Divisible[list[int], list[int | str]]:
    return Divisible(
        work=lambda job: [work(record) for record in job],
        split=lambda job: [[record] for record in job],
        refuse=lambda job, failure: [f"{job[0]} {failure.reason} {failure.detail}"],
        join=lambda parts: [record for part in parts for record in part],
    )


def done(work: Callable[[int], int], num_workers: int = 2) -> list[list[int | str]]:
    return list(in_order(work_apart(doing(work), JOBS, num_workers)))


@pytest.mark.parametrize("num_workers", [1, 2, 9])
def test_results_come_in_the_order_of_their_jobs(num_workers: int) -> None:
    assert done(lambda record: 2 * record, num_workers) == [[2 * record for record in job] for job in JOBS]
    assert list(work_apart(doing(abs), [], num_workers)) == []


@pytest.mark.parametrize(("ending", "name"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGSEGV, "SIGSEGV")])
def test_a_record_that_ends_its_process_is_refused_by_itself(ending: signal.Signals, name: str) -> None:
    def work(record: int) -> int:
        if record in (1, 5):
            faulthandler.disable()  # pytest's, which would tell of it
            os.kill(os.getpid(), ending)
        return record

    assert done(work) == [
        [0, f"1 crashed its process was ended by {name}", 2], [3, 4], [f"5 crashed its process was ended by {name}"],
        [6, 7, 8],
    ]  # fmt: skip


def test_a_process_that_is_killed_once_costs_nothing(tmp_path: Path) -> None:
    def work(record: int) -> int:
        if record == 4 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return record

    assert done(work) == JOBS
    assert (tmp_path / "killed").exists()


def test_a_record_without_end_is_too_slow() -> None:
    def work(record: int) -> int:
        while record == 3:
            pass
        return record

    found = in_order(work_apart(doing(work), JOBS, 2, job_seconds=0.3, record_seconds=0.3))
    assert list(found) == [[0, 1, 2], ["3 too_slow took more than 0.3 s", 4], [5], [6, 7, 8]]


def test_an_error_is_told_with_its_record() -> None:
    assert done(lambda record: [0, 1, 2, 3][record])[1] == [3, "4 crashed IndexError: list index out of range"]


@pytest.mark.parametrize("is_working", [False, True])
def test_processes_end_with_their_parent(is_working: bool) -> None:
    alive, ours = os.pipe()  # at its end when no process has it open any more
    parent = os.fork()
    if parent == 0:
        work = doing(lambda record: record if record < 6 or not is_working else _loop())
        started = work_apart(work, JOBS, 2, job_seconds=0.5)
        next(started)
        next(started)
        os.write(ours, b"started")
        if is_working:
            next(started)
        time.sleep(100)
        os._exit(0)
    os.close(ours)
    assert os.read(alive, 7) == b"started"
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert os.read(alive, 1) == b""
    os.close(alive)


def _loop() -> int:
    while True:
        pass
