"""Detects training that fails while all numbers stay finite: losses that burst, latents that collapse."""

import math
import statistics
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from unite.callbacks.non_finite import UNHEALTHY, advice, sent_to_cpu
from unite.errors import TrainingError, require
from unite.module import UniteModule

MIN_SPREAD = 0.01
"""Spread of latents (:func:`unite.engine.step_terms.latent_spread`) below which they have collapsed.

Flow matching mixes them with noise of standard deviation 1, in which so little cannot be seen. In a healthy run of
``digits.yaml`` it is 0 before the first step and above 0.03 from the third on; latents that had died were at 0.0005.
"""


class BurstGuard(Callback):
    """Warns, or stops the run, when a loss stays far above its recent median, or when latents become alike.

    The flow loss is divided by the variance of the latents, because it grows with it. Only the steps at which Lightning
    logs are examined, each at the next such step, when its numbers have reached the CPU: nothing waits for a GPU. A
    condition that holds at ``patience`` examined steps in a row is reported once, and again at the end of the run.

    Args:
        action: ``warn``, or ``stop`` with a :class:`unite.errors.TrainingError`. Several processes see different terms,
            so each of them only warns.
        factor: Multiple of the median above which a loss counts as a burst.
        patience: Number of examined steps in a row at which the condition must hold.
        history: Number of examined steps that the median is taken over; nothing is reported before half of them are
            available.

    Raises:
        UserError: ``factor`` is not above 1, ``patience`` below 1, or ``history`` below 4.
    """

    def __init__(
        self, action: Literal["warn", "stop"] = "warn", factor: float = 20.0, patience: int = 3, history: int = 10
    ) -> None:
        require(action in ("warn", "stop"), f"BurstGuard.action is {action!r}; it must be warn or stop")
        require(factor > 1, f"BurstGuard.factor is {factor}; it must be above 1")
        require(patience >= 1, f"BurstGuard.patience is {patience}; it must be at least 1")
        require(history >= 4, f"BurstGuard.history is {history}; it must be at least 4")
        self.action, self.factor, self.patience, self.history = action, factor, patience, history
        self._forget()

    def _forget(self) -> None:
        self._values: dict[str, deque[float]] = {}
        self._num_bad: dict[str, int] = {}
        self._told: list[str] = []
        self._pending: tuple[int, list[str], Callable[[], Tensor]] | None = None
        self._looked_at = -1
        self._healthy_until = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the state of an earlier run."""
        self._forget()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Examine the previous logged step, and start copying the numbers of this one."""
        step, interval = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not interval or step % interval or step == self._looked_at:
            return
        self._looked_at = step
        self._judge_pending(trainer)
        named = dict(_numbers(pl_module))
        if named:
            values = [value.detach().float().to(pl_module.device) for value in named.values()]
            self._pending = (step, list(named), sent_to_cpu(torch.stack(values)))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Mark a checkpoint of unhealthy weights, so that it is not recommended as the last good one."""
        self._judge_pending(trainer)
        if wrong := [name for name, num in self._num_bad.items() if num]:
            checkpoint[UNHEALTHY] = wrong

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Examine the last numbers, and repeat the warnings."""
        self._judge_pending(trainer)
        if self._told and trainer.is_global_zero:
            more = f" and {len(self._told) - 1} more" if len(self._told) > 1 else ""
            warnings.warn(f"this run was not healthy: {self._told[0]}{more}; look at its losses", stacklevel=1)

    def _judge_pending(self, trainer: Trainer) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        step, names, arrived = pending
        found = dict(zip(names, arrived().tolist(), strict=True))
        wrong = {name: self._what_is_wrong(name, value) for name, value in found.items()}
        if not any(wrong.values()):
            self._healthy_until = step
        for name, value in found.items():
            self._judge(trainer, step, name, value, wrong[name])

    def _judge(self, trainer: Trainer, step: int, name: str, value: float, wrong: str) -> None:
        """Count how long a number has been wrong; what is wrong does not enter the median."""
        if not wrong:
            self._num_bad[name] = 0
            is_untrained = name.endswith("/spread") and value < MIN_SPREAD
            if math.isfinite(value) and not is_untrained:
                self._values.setdefault(name, deque(maxlen=self.history)).append(value)
            return
        self._num_bad[name] = self._num_bad.get(name, 0) + 1
        if self._num_bad[name] != self.patience:
            return
        text = f"step {step}: {wrong}, for {self.patience} looks in a row"
        if self.action == "stop" and trainer.world_size == 1:
            raise TrainingError(f"{text}; {advice(trainer, self._healthy_until)}")
        self._told.append(text)
        if trainer.is_global_zero:
            warnings.warn(f"{text}; {advice(trainer, self._healthy_until)}", stacklevel=1)

    def _what_is_wrong(self, name: str, value: float) -> str:
        """A burst or a collapse in words; empty if there is none, or too little is known."""
        modality, _, term = name.rpartition("/")
        if term == "spread":
            if value < MIN_SPREAD and self._values.get(name):  # at first, latents may be those of an untrained network
                return f"the latents of {modality} differ by {value:.2g} only (below {MIN_SPREAD}): they have collapsed"
            return ""
        known = self._values.get(name, ())
        median = statistics.median(known) if 2 * len(known) >= self.history else 0.0
        if median <= 0 or not value > self.factor * median or math.isinf(value):
            return ""
        per = " per variance of the latents" if term == "flow" else ""
        return f"the loss term {name}{per} is {value:.3g}, {value / median:.0f} times its median of before"


def _numbers(module: LightningModule) -> Iterator[tuple[str, Tensor]]:
    """Terms of the last step's loss, and how far latents are apart, by name."""
    for modality, step in module.step_terms.items() if isinstance(module, UniteModule) else ():
        yield f"{modality}/spread", step.spread
        for name, term in step.terms.items():
            yield f"{modality}/{name}", term / step.spread.square() if name == "flow" else term
