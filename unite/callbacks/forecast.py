"""How long a run will take, said early."""

import math
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from unite.console import info
from unite.files import require_writable as require_writable


class Forecast(Callback):
    """Says, after a few steps, how long the run will take, if that is longer than an hour.

    Args:
        num_steps: Steps to measure, after a first one that is not typical.
        patience: Seconds after which fewer steps will do.
    """

    def __init__(self, num_steps: int = 3, patience: float = 20.0) -> None:
        self.num_steps = num_steps
        self.patience = patience
        self._has_spoken = False
        self._steps = 0
        self._start = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, and speak once."""
        self._steps += 1
        if self._steps == 1:
            self._start = time.perf_counter()
        elapsed = time.perf_counter() - self._start
        is_time = self._steps > self.num_steps or (self._steps > 1 and elapsed > self.patience)
        if not is_time or self._has_spoken or not trainer.is_global_zero:
            return
        self._has_spoken = True
        seconds = elapsed / (self._steps - 1)
        steps_left = (trainer.estimated_stepping_batches - trainer.global_step) * trainer.accumulate_grad_batches
        hours = seconds * steps_left / 3600
        if 1 < hours < math.inf:
            time_left = f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:.0f} days"
            where = "this CPU" if trainer.strategy.root_device.type == "cpu" else "this machine"
            info(f"\n{seconds:.2g} s per step on {where}: {steps_left:,.0f} more steps will take about {time_left}")
