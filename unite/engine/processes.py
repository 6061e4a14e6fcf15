"""Processes that run one command together: each does a share, and the first one collects the results.

Lightning starts them, or torchrun does, as for training. Its loops are not used, since what is made here has to be put
in order and written once. All that is exchanged goes over the CPU.
"""

import itertools
import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from subprocess import Popen, TimeoutExpired
from typing import Any, TypeVar

import torch.distributed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch.distributed import ProcessGroup

from unite.errors import TrainingError, UserError
from unite.files import is_alive

Made = TypeVar("Made")

#: A process waits for the slowest of all pieces of work; of one that dies the others hear at once.
PATIENCE = timedelta(days=1)
#: Seconds that the other processes have to end by themselves when the first one does.
GRACE = 2.0


class LostProcessError(TrainingError):
    """Another process has ended unexpectedly."""


class Processes:
    """The processes of a command. One alone does all of the work.

    An error in one of them ends all: the first one raises it, and the others end silently. They learn of it when
    they next agree, which each method does.

    Args:
        rank: Number of this process.
        size: How many there are.
        group: The processes, connected over the CPU; None for one alone.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: ProcessGroup | None = None) -> None:
        self.rank = rank
        self.size = size
        self.group = group
        self.is_told = False
        """Whether all processes have heard of the error that ends them."""
        self._first = socket.gethostname(), os.getpid()
        self._first = self.from_first(lambda: self._first)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that collects the results."""
        return self.rank == 0

    def agree(self, failure: BaseException | None = None, content: Any = None) -> list[Any]:
        """Exchange something small, and check that no process has failed.

        Args:
            failure: Why this process cannot go on.
            content: Anything that can be pickled.

        Returns:
            What each process gave, in their order.

        Raises:
            BaseException: The error of this process, or of the first one that has one.
            LostProcessError: A process has ended without an error.
        """
        found = [(failure, content)]
        if self.size > 1:
            found = self._exchanged(failure, content)
        failures = [failed for failed, _ in found if failed is not None]
        if failures:
            self.is_told = True
            raise failures[0] if failure is None else failure
        return [content for _, content in found]

    def _exchanged(self, failure: BaseException | None, content: Any) -> list[tuple[BaseException | None, Any]]:
        found: list[Any] = [None] * self.size
        with self._hearing_of_losses():
            torch.distributed.all_gather_object(found, (_portable(failure), content), group=self.group)
        return found

    @contextmanager
    def _hearing_of_losses(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # as gloo tells that a connection was closed
            raise LostProcessError(
                f"one of the {self.size} processes of this command was killed or lost, most often for want of memory"
            ) from error

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Let an error in any process within the block end all of them after it."""
        failure = None
        try:
            yield
        except BaseException as error:
            failure = error
        self.agree(failure)

    def from_first(self, make: Callable[[], Made]) -> Made:
        """What the first process makes, in all of them."""
        made: list[Any] = [None]
        with self.agreed():
            if self.is_first:
                made = [make()]
        if self.size > 1:
            with self._hearing_of_losses():
                torch.distributed.broadcast_object_list(made, src=0, group=self.group)
        value: Made = made[0]
        return value

    def gather(self, made: Made) -> list[Made]:
        """What each process gives, in their order, in the first one; nothing in the others."""
        if self.size == 1:
            return [made]
        found: list[Any] = [None] * self.size
        with self._hearing_of_losses():
            torch.distributed.gather_object(made, found if self.is_first else None, dst=0, group=self.group)
        return found if self.is_first else []

    def share(self, pieces: Iterable[Made], take: Callable[[Made], None]) -> None:
        """Do this process's pieces of work one after the other, in step with the other processes.

        Args:
            pieces: Makes a piece whenever it is asked for one.
            take: Called in the first process with each piece that any process has made, and in the order of processes
                with those that they made at the same time.
        """
        remaining = iter(pieces)
        failure: BaseException | None = None
        while True:
            made: list[Made] = []
            if failure is None:
                try:
                    made = list(itertools.islice(remaining, 1))
                except BaseException as error:
                    failure = error
            if not any(self.agree(failure, bool(made))):
                return
            gathered = self.gather(made)
            try:
                for piece in itertools.chain.from_iterable(gathered):
                    take(piece)
            except BaseException as error:
                failure = error

    def is_first_lost(self) -> bool:
        """Whether the first process is gone, if it runs on the same machine, so that this can be known."""
        host, pid = self._first
        deadline = time.monotonic() + 1.0  # until the process that started it has noticed
        while host == socket.gethostname() and time.monotonic() < deadline:
            if not is_alive(pid):
                return True
            time.sleep(0.05)
        return False


ALONE = Processes()
"""One process, which does all of the work."""


def run_together(trainer: Trainer, work: Callable[[Processes], None]) -> None:
    """Call a function in each of the processes that a trainer is set up for, started here unless they are there.

    Args:
        trainer: Says how many, on which devices.
        work: What to call.

    Raises:
        UserError: The trainer's strategy has no processes that each run the whole command.
        LostProcessError: One of the other processes has ended without an error.
    """
    launcher = trainer.strategy.launcher
    if trainer.world_size == 1:
        work(ALONE)
    elif not isinstance(launcher, _SubprocessScriptLauncher):
        raise UserError(
            f"{trainer.world_size} processes of {type(trainer.strategy).__name__} cannot share this command: give "
            "--trainer.strategy ddp, or --trainer.devices 1"
        )
    else:
        launcher.launch(_in_each_process, trainer, launcher, work)


def _in_each_process(trainer: Trainer, launcher: Any, work: Callable[[Processes], None]) -> None:
    trainer.strategy.setup_environment()
    children = list(launcher.procs)
    launcher.procs.clear()  # or Lightning would kill this process silently if one of the others fails
    is_done = False
    try:
        group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
        processes = Processes(trainer.global_rank, trainer.world_size, group)
        try:
            work(processes)
        except BaseException as error:
            if not processes.is_first and _is_told_elsewhere(error, processes):
                raise SystemExit(1) from error
            raise
        is_done = True
    finally:
        _end(children, is_done)


def _portable(failure: BaseException | None) -> BaseException | None:
    """An error as another process can raise it."""
    if failure is None:
        return None
    if isinstance(failure, Exception) and not isinstance(failure, UserError | TrainingError | OSError):
        # To fix it one has to know where it was raised; Python prints notes behind a stack trace.
        failure.add_note("".join(traceback.format_exception(failure)))
    try:
        pickle.loads(pickle.dumps(failure))
    except Exception:
        return RuntimeError(f"{type(failure).__name__}: {failure}")
    return failure


def _is_told_elsewhere(error: BaseException, processes: Processes) -> bool:
    """Whether the user hears of an error from another process."""
    if isinstance(error, LostProcessError):
        return not processes.is_first_lost()
    return processes.is_told or not isinstance(error, Exception)  # all are interrupted together


def _end(children: list["Popen[bytes]"], is_done: bool) -> None:
    """Wait for the processes that were started from this one; end them if there is nothing left to do for them."""
    deadline = time.monotonic() + GRACE
    for child in children:
        with suppress(TimeoutExpired):
            child.wait(None if is_done else max(deadline - time.monotonic(), 0))
    for child in children:
        child.kill()  # nothing happens to those that have ended
        child.wait()
