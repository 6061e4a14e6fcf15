"""Speed and learning rates in the logs of a run, and its progress bar."""

import math
import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from unite.console import is_quiet
from unite.module import UniteModule


def say(text: str) -> None:
    """Print a message as :func:`unite.console.info` does, above any progress bars."""
    if not is_quiet():
        Tqdm.write(text)
        sys.stdout.flush()  # into a file or a pipe, too, when it is said


def in_seconds(seconds: float) -> str:
    """``0.21 s``, ``360 s``."""
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:,.0f} s"


class TrainingMonitor(Callback):
    """Logs ``train/samples_per_second``, ``train/steps_per_second`` and ``lr/ALGORITHM`` with the training losses.

    Speed is that of all processes together since the previous value, including waiting for data, excluding validations.
    Own code because Lightning's ``ThroughputMonitor`` needs to be told the size of a batch, which for a batch of
    several modalities only the module knows.
    """

    def __init__(self) -> None:
        self._logged_step = -1
        self._start: tuple[float, int, int] | None = None  # set when the first batch begins: much is looked at before
        self._rates: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the state of an earlier run."""
        self._logged_step = trainer.global_step
        self._start = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exclude the time of a validation."""
        self._start = _now(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Record the learning rates of the coming step, before the schedule changes them."""
        self._start = self._start or _now(trainer, pl_module)
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self._rates = {f"lr/{group.get('algorithm', index)}": group["lr"] for index, group in enumerate(groups)}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log at the steps at which Lightning logs."""
        step, interval = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not trainer.loggers or step == self._logged_step or not interval or step % interval:
            return
        self._logged_step = step
        now = _now(trainer, pl_module)
        before, self._start = self._start or now, now
        seconds, steps, samples = (after - then for after, then in zip(now, before, strict=True))
        values = dict(self._rates)
        if seconds > 0 and steps > 0:
            values["train/steps_per_second"] = steps / seconds
            if samples:
                values["train/samples_per_second"] = samples * trainer.world_size / seconds
        pl_module.log_dict(values)


class LossProgressBar(TQDMProgressBar):
    """Lightning's progress bar, with the training loss as of at most a second ago, over the optimizer steps of the run.

    Own code because what is logged for Lightning's bar is read from the accelerator in each step, even without a bar;
    and because Lightning's bar counts the batches of an epoch, and includes those from before a run was continued in
    its rate. Here rate and remaining time come from the steps since this start, validations included.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[str, float] = {}
        self._next_reading = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the loss of an earlier run."""
        super().on_train_start(trainer, pl_module)
        self._shown, self._next_reading = {}, 0.0

    def init_train_tqdm(self) -> Tqdm:
        """A bar over all steps of the run that begins at the present one."""
        total = self.trainer.estimated_stepping_batches
        return Tqdm(
            desc=self.train_description,
            total=int(total) if math.isfinite(total) else None,
            initial=self.trainer.global_step,
            unit="step",
            position=2 * self.process_position,
            disable=self.is_disabled,
            leave=True,
            dynamic_ncols=True,
            file=sys.stdout,
            miniters=self.refresh_rate,
            smoothing=0,
        )

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Name the epoch."""
        self.train_progress_bar.set_description(f"Epoch {trainer.current_epoch}", refresh=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar to the current step."""
        if self.is_enabled:
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
            self.train_progress_bar.update(trainer.global_step - self.train_progress_bar.n)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the line before Lightning prints why the run ends."""
        if trainer.global_step == self.train_progress_bar.total:
            self.train_progress_bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the lines before the error is printed."""
        for bar in (self._val_progress_bar, self._test_progress_bar, self._train_progress_bar):
            if bar is not None:
                bar.close()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The values shown beside the bar."""
        loss = trainer.callback_metrics.get("train/loss")
        if loss is not None and time.monotonic() >= self._next_reading:
            self._shown = {"train/loss": float(loss)}
            self._next_reading = time.monotonic() + 1
        return {**super().get_metrics(trainer, pl_module), **self._shown}


def _now(trainer: Trainer, module: LightningModule) -> tuple[float, int, int]:
    """Time, optimizer steps, and samples of this process."""
    return time.perf_counter(), trainer.global_step, module.num_trained if isinstance(module, UniteModule) else 0
