"""Training whose losses burst or collapse, though they stay finite, is noticed and told."""

import math
import statistics
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from unite.callbacks.non_finite import advice, sent_to_cpu, step_terms
from unite.errors import TrainingError, require


class BurstGuard(Callback):
    """Warns, or stops, when a loss term is many times its recent median, or the flow loss a small part of it.

    Terms are looked at where Lightning logs, and one look later, when their numbers have been copied to the CPU:
    nothing waits for a GPU. A burst is told once, when it begins, and again at the end of the run. A flow loss that
    falls so far is not learned: the latents have collapsed to a point, which anything predicts.

    Args:
        action: ``warn``, or ``stop`` with a :class:`unite.errors.TrainingError` once a burst lasts ``patience`` looks.
            Several processes see different terms, so there each only warns.
        factor: Multiple of the median that is a burst; a flow loss below the median divided by it is a collapse.
        patience: Looks in a row after which ``stop`` ends the run.
        history: Looks whose median is the measure; until a quarter of them is there, nothing is judged.

    Raises:
        UserError: ``factor`` is not above 1, ``patience`` below 1, or ``history`` below 4.
    """

    def __init__(
        self, action: Literal["warn", "stop"] = "warn", factor: float = 20.0, patience: int = 3, history: int = 20
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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run."""
        self._forget()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge the numbers of the last look, and begin to copy those of this one."""
        step, interval = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not interval or step % interval or step == self._looked_at:
            return
        self._looked_at = step
        self._judge_pending(trainer)
        names, values = step_terms(pl_module)
        if names:
            self._pending = (step, names, sent_to_cpu(values))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the last numbers, and say again what happened."""
        self._judge_pending(trainer)
        if self._told and trainer.is_global_zero:
            more = f" and {len(self._told) - 1} more" if len(self._told) > 1 else ""
            warnings.warn(f"this run was not healthy: {self._told[0]}{more}; look at its losses", stacklevel=1)

    def _judge_pending(self, trainer: Trainer) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            step, names, arrived = pending
            for name, value in zip(names, arrived().tolist(), strict=True):
                self._judge(trainer, step, name, value)

    def _judge(self, trainer: Trainer, step: int, name: str, value: float) -> None:
        """Compare one term with its median; what is wrong does not enter the median."""
        known = self._values.setdefault(name, deque(maxlen=self.history))
        wrong = self._what_is_wrong(step, name, value, known)
        if not wrong:
            self._num_bad[name] = 0
            if math.isfinite(value):
                known.append(value)
            return
        self._num_bad[name] = self._num_bad.get(name, 0) + 1
        if self._num_bad[name] == 1:
            self._told.append(wrong)
            if trainer.is_global_zero:
                warnings.warn(f"{wrong}; {advice(trainer)}", stacklevel=1)
        if self.action == "stop" and self._num_bad[name] >= self.patience and trainer.world_size == 1:
            raise TrainingError(f"{wrong}, for {self._num_bad[name]} looks in a row; {advice(trainer)}")

    def _what_is_wrong(self, step: int, name: str, value: float, known: deque[float]) -> str:
        """A burst or a collapse in words; empty if there is none, or too little is known."""
        median = statistics.median(known) if len(known) >= self.history // 4 else 0.0
        if median <= 0 or not math.isfinite(value):
            return ""
        before = f"the loss term {name} is {value:.3g}, before it was {median:.3g}"
        if value > self.factor * median:
            return f"step {step}: {before} ({value / median:.0f} times as much): training has burst"
        if name.endswith("/flow") and 0 <= value < median / self.factor:
            return f"step {step}: {before}: the latents have probably collapsed"
        return ""
