"""What is seen of a run while it trains: speed and learning rates beside its losses, and a progress bar."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from unite.module import UniteModule


class TrainingMonitor(Callback):
    """Logs ``train/samples_per_second``, ``train/steps_per_second`` and ``lr/ALGORITHM`` with the training losses.

    Speed is that of all processes together since the last value, waiting for data included, validations not. Own code
    because Lightning's ``ThroughputMonitor`` needs to be told the size of a batch, which for a batch of several
    modalities only the module knows.
    """

    def __init__(self) -> None:
        self._logged_step = -1
        self._start = (0.0, 0, 0)
        self._rates: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure from here."""
        self._logged_step = trainer.global_step
        self._start = _now(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out the time that a validation took."""
        self._start = _now(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the rates that the coming step takes: at its end the schedule has moved on."""
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self._rates = {f"lr/{group.get('algorithm', index)}": group["lr"] for index, group in enumerate(groups)}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log where Lightning does."""
        step, interval = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not trainer.loggers or step == self._logged_step or not interval or step % interval:
            return
        self._logged_step = step
        before, self._start = self._start, _now(trainer, pl_module)
        seconds, steps, samples = (now - then for now, then in zip(self._start, before, strict=True))
        values = dict(self._rates)
        if seconds > 0 and steps > 0:
            values["train/steps_per_second"] = steps / seconds
            if samples:
                values["train/samples_per_second"] = samples * trainer.world_size / seconds
        pl_module.log_dict(values)


class LossProgressBar(TQDMProgressBar):
    """Lightning's progress bar, with the training loss as of at most a second ago.

    Own code because what is logged for Lightning's bar is read from the accelerator in each step, even without a bar.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[str, float] = {}
        self._next_reading = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the loss of an earlier run."""
        super().on_train_start(trainer, pl_module)
        self._shown, self._next_reading = {}, 0.0

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands beside the bar."""
        loss = trainer.callback_metrics.get("train/loss")
        if loss is not None and time.monotonic() >= self._next_reading:
            self._shown = {"train/loss": float(loss)}
            self._next_reading = time.monotonic() + 1
        return {**super().get_metrics(trainer, pl_module), **self._shown}


def _now(trainer: Trainer, module: LightningModule) -> tuple[float, int, int]:
    """Time, optimizer steps, and samples of this process."""
    return time.perf_counter(), trainer.global_step, module.num_trained if isinstance(module, UniteModule) else 0
