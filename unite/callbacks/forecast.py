"""An early estimate of how long a run will take."""

import datetime
import math
import statistics
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from unite.callbacks.monitor import in_seconds, say
from unite.files.shipped import small_config

_MINUTE, _HOUR, _DAY, _YEAR = 60, 3600, 86_400, 31_557_600


class Forecast(Callback):
    """Prints, after a few steps, how long the run will take and when it will end, if that is more than a minute.

    The first step is slower than the others, so the estimate uses the median time of the next ones, including waiting
    for data and excluding validations. If the first step alone takes longer than ``patience``, its time is used, unless
    it has compiled the model.

    For a run of more than a day on a CPU, the message names the config for the same data that is meant for such a
    machine, if there is one.

    Args:
        num_steps: Batches to measure, after the first.
        patience: Seconds after which fewer batches are enough.
    """

    def __init__(self, num_steps: int = 3, patience: float = 20.0) -> None:
        self.num_steps = num_steps
        self.patience = patience
        self._forget()

    def _forget(self) -> None:
        self._has_spoken = False
        self._seconds: list[float] = []
        self._since = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the state of an earlier run."""
        self._forget()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start measuring."""
        if not self._seconds:
            self._since = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exclude the time of a validation."""
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, and print the estimate once."""
        if self._has_spoken or not trainer.is_global_zero:
            return
        before, self._since = self._since, time.perf_counter()
        self._seconds.append(self._since - before)
        is_slow = sum(self._seconds) >= self.patience and not getattr(pl_module, "is_compiled", False)
        if is_slow or len(self._seconds) > self.num_steps:
            self._has_spoken = True
            seconds = statistics.median(self._seconds[1:] or self._seconds) * trainer.accumulate_grad_batches
            _say_what_is_left(trainer, pl_module, seconds)


def _say_what_is_left(trainer: Trainer, module: LightningModule, seconds: float) -> None:
    """Time and end of the run at so many seconds per optimizer step."""
    steps_left = trainer.estimated_stepping_batches - trainer.global_step
    total = seconds * steps_left
    if not _MINUTE < total < math.inf:
        return
    is_cpu = trainer.strategy.root_device.type == "cpu"
    where = "this CPU" if is_cpu else "this machine"
    say(
        f"{in_seconds(seconds)} per step on {where}: {steps_left:,.0f} more steps take about {_in_words(total)}, "
        f"{_end_in_words(total)}, and validations some more"
    )
    if is_cpu and total > _DAY:
        encoder = module.hparams.get("encoder") or {}
        datamodule = type(trainer.datamodule).__name__  # type: ignore[attr-defined]
        if small := small_config(datamodule, encoder.get("init_args", {})):
            say(f"that is long for a CPU; a smaller model of the same data, made for one: unite fit {small}")


def _in_words(seconds: float) -> str:
    if seconds < 2 * _HOUR:
        minutes = round(seconds / _MINUTE)
        return f"{minutes} minutes" if minutes > 1 else "1 minute"
    if seconds < 2 * _DAY:
        return f"{seconds / _HOUR:.0f} hours"
    return f"{seconds / _DAY:,.0f} days" if seconds < 2 * _YEAR else f"{seconds / _YEAR:,.0f} years"


def _end_in_words(seconds: float) -> str:
    """``until 14:32``, with the day if that is another one."""
    now = datetime.datetime.now().astimezone()
    try:
        end = now + datetime.timedelta(seconds=seconds)
    except OverflowError:
        return "beyond the year 9999"
    if end.date() == now.date():
        return f"until {end:%H:%M}"
    return f"until {end:%Y-%m-%d %H:%M}" if seconds < 7 * _DAY else f"until {end:%Y-%m-%d}"
