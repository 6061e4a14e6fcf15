"""Detects steps that become far slower than the first ones, and an overloaded machine."""

import os
import statistics
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from unite.callbacks.monitor import in_seconds, say
from unite.console import shown
from unite.errors import require


class SlowSteps(Callback):
    """Warns once when steps take several times as long as at first, or more processes run than there are cores.

    On a shared CPU, the threads of an operation wait for the slowest of them, so that two threads can be many times
    slower than one. Medians over windows of batches are compared, without validations, checkpoints, waiting for data
    and the first batch. When a run starts to train something else (another stage of
    :class:`unite.callbacks.TwoStageTraining`), the comparison starts again.

    Args:
        factor: Multiple of the first window's median that is slow.
        num_batches: Batches of a window.
        seconds: Shortest duration of a window, so that a short disturbance does not fill it.
        patience: Seconds after which three batches make a window.

    Raises:
        UserError: ``factor`` is not above 1, or ``num_batches`` below 3.
    """

    def __init__(
        self, factor: float = 3.0, num_batches: int = 10, seconds: float = 10.0, patience: float = 120.0
    ) -> None:
        require(factor > 1, f"SlowSteps.factor is {factor}; it must be above 1")
        require(num_batches >= 3, f"SlowSteps.num_batches is {num_batches}; it must be at least 3")
        self.factor, self.num_batches, self.seconds, self.patience = factor, num_batches, seconds, patience
        self._has_spoken = False
        self._start = 0.0
        self._begin(None)

    def _begin(self, trained: object) -> None:
        """Forget earlier batches."""
        self._trained = trained
        self._is_first = True
        self._window: list[float] = []
        self._reference: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the state of an earlier run."""
        self._has_spoken = False
        self._begin(_what_is_trained(pl_module))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start measuring a batch."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure the batch, and compare the window if it is full."""
        seconds = time.perf_counter() - self._start
        if self._has_spoken or not trainer.is_global_zero:
            return
        if _what_is_trained(pl_module) != self._trained:
            self._begin(_what_is_trained(pl_module))
        if self._is_first:
            self._is_first = False
            return
        self._window.append(seconds)
        total, number = sum(self._window), len(self._window)
        if (number >= self.num_batches and total >= self.seconds) or (number >= 3 and total >= self.patience):
            median, self._window = statistics.median(self._window), []
            self._judge(trainer, median)

    def _judge(self, trainer: Trainer, median: float) -> None:
        """Warn if a window's median is far above the first one's, or other processes keep all cores busy."""
        load, cores, threads = _load(), os.cpu_count() or 1, torch.get_num_threads()
        is_first, self._reference = self._reference is None, self._reference or median
        is_slow = median > self.factor * self._reference
        is_crowded = load - threads > cores and trainer.strategy.root_device.type == "cpu"
        # At first, the average over the last minute is of what came before; and one thread waits for no other.
        if not is_slow and (is_first or not is_crowded or threads == 1):
            return
        self._has_spoken = True
        told = f"a batch takes {in_seconds(median)}"
        if is_slow:
            told += f", {median / self._reference:.0f} times as long as at first ({in_seconds(self._reference)})"
        if is_crowded:
            told += f"; the load average is {load:.0f} on {cores} cores"
        say(f"{told}: {_advice(trainer, threads, is_crowded)}")


def _what_is_trained(module: LightningModule) -> object:
    return getattr(module, "trains_tokenizer", None), getattr(module, "trains_denoiser", None)


def _load() -> float:
    """Processes that wait for a core or have one, on average over the last minute; 0 where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _advice(trainer: Trainer, threads: int, is_crowded: bool) -> str:
    device = trainer.strategy.root_device.type
    if device != "cpu":
        return f"see who else uses this machine ({'nvidia-smi, ' * (device == 'cuda')}top)"
    if threads == 1:
        return "end what else runs on this machine" if is_crowded else "see what else this machine does (top)"
    folder = shown(trainer.default_root_dir)
    return (
        f"{threads} threads that wait for one another can be slower than one; Ctrl-C, then: "
        f"OMP_NUM_THREADS=1 unite fit --ckpt_path {folder}"
    )
