"""The checkpoint from which a run continues exactly, whatever ended it."""

import os
import signal
import subprocess
import threading
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from unite.errors import UserError, require
from unite.runs.checkpoint_io import LAST_CHECKPOINT


class StepAgreement:
    """Shares a signal or a timeout that one process has seen, so that all processes act on it in the same step.

    The processes communicate on the CPU while the next step runs, so that none waits for the accelerator.
    """

    def __init__(self) -> None:
        self.group = torch.distributed.new_group(backend="gloo")
        self.known = torch.zeros(2, dtype=torch.int64)
        self.exchange: torch.distributed.Work | None = None

    def agree(self, signum: int, is_time: bool) -> tuple[int, bool]:
        """The signal that any process had received one step ago, 0 for none, and whether the time of any was up."""
        agreed, was_time = 0, 0
        if self.exchange is not None:
            self.exchange.wait()
            agreed, was_time = self.known.tolist()
        self.known = torch.tensor([signum, int(is_time)])
        maximum = torch.distributed.ReduceOp.MAX
        self.exchange = torch.distributed.all_reduce(self.known, maximum, group=self.group, async_op=True)
        return agreed, bool(was_time)


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt`` in the run folder, from which a run continues exactly, whatever ended it.

    Lightning's ``save_last`` writes only when a *best* checkpoint is written as well, and not at the end of a
    run that stops within an epoch. This one is written after every validation, every ``every_n_train_steps``
    steps, every ``every_minutes`` by the first process's clock, at the end, and when the run is asked to stop: by
    Ctrl-C, by SIGTERM (a preempted SLURM job), or by SIGUSR1 under SLURM (its time is nearly over), after which the
    job is put back into the queue.

    A run that is asked to stop first finishes the current step and its accumulation, the same step in all processes, so
    that no half-updated weights are saved. A second Ctrl-C stops at once.

    A checkpoint is never written where it would not continue exactly: not between the batches of an accumulation,
    whose gradients are in no checkpoint, and not right before a validation, which Lightning would then skip.

    Args:
        every_n_train_steps: Optimizer steps between two checkpoints where validation is rarer than that.
        every_minutes: Minutes between two checkpoints where steps are slower than that; None for no such limit.

    Raises:
        UserError: ``every_n_train_steps`` is below 1, or ``every_minutes`` not above 0.
    """

    def __init__(self, every_n_train_steps: int = 1000, every_minutes: float | None = 5.0) -> None:
        require(
            every_n_train_steps >= 1,
            f"LastCheckpoint.every_n_train_steps is {every_n_train_steps}; it must be at least 1",
        )
        if every_minutes is not None and not every_minutes > 0:
            raise UserError(f"LastCheckpoint.every_minutes is {every_minutes}; it must be above 0, or null")
        self.every_n_train_steps = every_n_train_steps
        self.every_minutes = every_minutes
        self.path = Path()
        self.saved_step = 0
        self.asked_by = 0
        self.stopped_by = 0
        self.is_accumulating = False
        self.is_due = False
        self._last_step = 0
        self._saved_at = 0.0
        self._trainer: Trainer | None = None
        self._agreement: StepAgreement | None = None
        self._handlers: dict[int, Any] = {}

    def save(self, trainer: Trainer) -> None:
        """Write ``last.ckpt``, unless it holds this step already or nothing is to be written."""
        is_dry_run = bool(trainer.fast_dev_run) or trainer.sanity_checking  # type: ignore[attr-defined]
        if is_dry_run or trainer.state.fn != "fit" or trainer.global_step == self.saved_step:
            return
        trainer.save_checkpoint(self.path, weights_only=False)
        self.saved_step = trainer.global_step
        self._saved_at = monotonic()
        self.is_due = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the run folder from the first process."""
        self.path = trainer.strategy.broadcast(Path(trainer.default_root_dir) / LAST_CHECKPOINT)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count steps from where the run starts or continues, forget an earlier signal, and listen for new ones."""
        self.saved_step = self._last_step = trainer.global_step
        self.asked_by = self.stopped_by = 0
        self.is_accumulating = self.is_due = False
        self._saved_at = monotonic()
        self._trainer = trainer
        self._agreement = None
        if trainer.world_size > 1 and torch.distributed.is_initialized():
            self._agreement = StepAgreement()
            # Lightning asks the first process before each step, and so makes the CPU wait for the accelerator.
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        self.listen()

    def listen(self) -> None:
        """Handle the signals that ask a run to stop.

        Lightning's own handlers save, or communicate with the other processes, in the middle of a step.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        signals = [signal.SIGINT, signal.SIGTERM]
        if SLURMEnvironment.detect():
            signals.append(signal.SIGUSR1)
        self._handlers = {signum: signal.signal(signum, self.interrupt) for signum in signals}

    def stop_listening(self) -> None:
        """Restore the earlier handlers."""
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal: note that the run is to stop after the running step.

        Raises:
            KeyboardInterrupt: A second Ctrl-C, or one in a validation of the only process: stop at once.
        """
        trainer = self._trainer
        assert trainer is not None
        is_evaluating_alone = trainer.world_size == 1 and not trainer.training
        if signum == signal.SIGINT and (self.asked_by or is_evaluating_alone):
            raise KeyboardInterrupt
        self.asked_by = signum
        if is_evaluating_alone and not self.is_accumulating:
            self._stop(trainer, signum)  # Lightning ends a validation at its next batch
        if trainer.is_global_zero:
            again = " (Ctrl-C again: at once)" if signum == signal.SIGINT else ""
            os.write(2, f"\nstopping after this step{again}\n".encode())  # print may have been interrupted itself

    def _stop(self, trainer: Trainer, signum: int) -> None:
        """Let Lightning end the run as soon as the present batch is complete and logged."""
        self.stopped_by = signum
        trainer._signal_connector.received_sigterm = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save or stop if it is time. Lightning calls checkpoint callbacks last: averaged weights are up to date."""
        asked_by, is_time = self.asked_by, trainer.is_global_zero and self._is_time()
        if self._agreement:
            asked_by, is_time = self._agreement.agree(asked_by, is_time)
        self.is_due |= is_time  # within an accumulation: at its end
        self.is_accumulating = trainer.global_step == self._last_step
        self._last_step = trainer.global_step
        if self.is_accumulating:
            return
        is_due = self.is_due or trainer.global_step >= self.saved_step + self.every_n_train_steps
        if asked_by:
            self._stop(trainer, asked_by)
        elif is_due and not _validation_follows(trainer):
            self.save(trainer)

    def _is_time(self) -> bool:
        """Whether the last checkpoint is too old by the clock of this process; says so once, and waits anew."""
        now = monotonic()
        if self.every_minutes is None or now - self._saved_at < 60 * self.every_minutes:
            return False
        self._saved_at = now
        return True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the count of validation batches, or a later checkpoint would mark this validation as unfinished."""
        if trainer.state.fn == "fit":
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after every validation within a fit."""
        if self.is_accumulating:
            self.is_due = True
        else:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of the run, at whatever step of an epoch it comes.

        Not in ``on_train_end``, where weight averaging has replaced the raw weights already.
        """
        is_out_of_steps = 0 <= trainer.max_steps <= trainer.global_step
        is_out_of_epochs = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch + 1
        if is_out_of_steps or is_out_of_epochs or trainer.should_stop or self.stopped_by:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Return the signals to Lightning, which restores the earlier handlers."""
        self.stop_listening()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save if the run was asked to stop. After an error, or within a step, the previous checkpoint is kept."""
        self.stop_listening()
        is_evaluating_alone = trainer.world_size == 1 and trainer.validating and not self.is_accumulating
        is_between_steps = self.stopped_by or is_evaluating_alone
        if is_between_steps and isinstance(exception, KeyboardInterrupt | SIGTERMException):
            if trainer.validating:
                # Told that the first batch was begun and not finished, a continued run validates again, from the start.
                progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
                progress.reset()
                progress.increment_ready()
                progress.increment_started()
            self.save(trainer)
            if self.stopped_by == signal.SIGUSR1 and trainer.is_global_zero:
                _requeue()


def _validation_follows(trainer: Trainer) -> bool:
    """Whether Lightning validates right after the present training batch."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def _requeue() -> None:
    """Put this SLURM job back into the queue."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    subprocess.run(["scontrol", "requeue", job], check=False)
