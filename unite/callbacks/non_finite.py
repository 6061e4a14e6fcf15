"""Stops training, or skips the step, when a number is not finite, and names the loss term or the gradient."""

import math
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from unite.console import shown
from unite.errors import TrainingError, UserError
from unite.module import UniteModule
from unite.runs.folder import read_checkpoint

UNHEALTHY = "unhealthy"
"""Entry of a checkpoint that was written while :class:`unite.callbacks.BurstGuard` saw a burst or a collapse."""


class NonFiniteGuard(Callback):
    """Stops, or skips the step, when a loss or a gradient is infinite or not a number.

    It checks the norm of all gradients, which any such loss makes non-finite, and the terms of the loss, to name the
    one responsible. All processes see the same norm, so they take the same decision.

    On a GPU, ``stop`` checks the previous step, whose numbers have been copied to the CPU meanwhile, so that nothing
    waits. No checkpoint is written before its step was checked. ``skip`` must know before the weights change, so it
    waits in each step. With 16-mixed precision infinite gradients are expected: a single process then checks the terms
    only, and several check nothing.

    Args:
        action: ``stop`` ends the run with a :class:`unite.errors.TrainingError`; ``skip`` leaves the weights as they
            are, and prints it.
        patience: Skipped steps in a row after which ``skip`` stops, too.
    """

    def __init__(self, action: Literal["stop", "skip"] = "stop", patience: int = 10) -> None:
        self.action = action
        self.patience = patience
        self.num_skipped = 0  # in a row
        self.num_skipped_in_all = 0
        self.is_delayed = False
        self._first_step = 0
        self._pending: tuple[int, list[str], Callable[[], Tensor]] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the state of an earlier run."""
        self.num_skipped, self.num_skipped_in_all, self._pending = 0, 0, None
        self._first_step = trainer.global_step
        self.is_delayed = self.action == "stop" and pl_module.device.type == "cuda"

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check the numbers of this step, or of the previous one.

        Raises:
            TrainingError: They are not finite.
        """
        names, values = _step_numbers(trainer, pl_module)
        if self.is_delayed:
            self.look_at_pending(trainer)
            self._pending = (trainer.global_step, names, sent_to_cpu(values))
            return
        culprit = _culprit(names, values, trainer.world_size)
        if not culprit:
            self.num_skipped = 0
            return
        if self.action == "stop" or self.num_skipped >= self.patience:
            raise TrainingError(_message(trainer, trainer.global_step, culprit, self.num_skipped))
        self.num_skipped += 1
        self.num_skipped_in_all += 1
        optimizer.zero_grad()  # no gradient, no change: momenta, too, stay as they are
        if trainer.is_global_zero:
            print(f"\nstep {trainer.global_step} skipped: {culprit}", file=sys.stderr)

    def look_at_pending(self, trainer: Trainer) -> None:
        """Check the numbers of the previous step, unless that is done.

        Raises:
            TrainingError: They are not finite.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            step, names, arrived = pending
            culprit = _culprit(names, arrived(), trainer.world_size)
            if culprit:
                raise TrainingError(_message(trainer, step, culprit, 0))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the last step before its weights are evaluated."""
        self.look_at_pending(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the last step, and report the skipped ones."""
        self.look_at_pending(trainer)
        if self.num_skipped_in_all and trainer.is_global_zero:
            num_steps = trainer.global_step - self._first_step
            warnings.warn(
                f"{self.num_skipped_in_all} of the {num_steps} steps were skipped, since loss or gradient were not "
                "finite: they changed no weight; try a smaller --model.optimizer.lr or --trainer.gradient_clip_val",
                stacklevel=1,
            )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check the last step before its weights are written."""
        self.look_at_pending(trainer)


def _step_numbers(trainer: Trainer, module: LightningModule) -> tuple[list[str], Tensor]:
    """Names and values of the terms of the loss and of the norm of the gradients, on the module's device."""
    steps = module.step_terms.items() if isinstance(module, UniteModule) else ()
    named = {f"{modality}/{name}": term.float() for modality, step in steps for name, term in step.terms.items()}
    if getattr(trainer.precision_plugin, "scaler", None) is None:
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).float()
        named["gradient"] = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    values = [value.to(module.device) for value in named.values()]
    return list(named), torch.stack(values) if values else torch.empty(0)


def sent_to_cpu(values: Tensor) -> Callable[[], Tensor]:
    """Start a copy to the CPU, and return a function that waits for its end.

    A copy that is started later would wait for all work that the GPU was given since.
    """
    copy = values.detach().to("cpu", non_blocking=True)
    if values.device.type != "cuda":
        return lambda: copy
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(values.device))

    def arrived() -> Tensor:
        event.synchronize()
        return copy

    return arrived


def _culprit(names: list[str], values: Tensor, num_processes: int) -> str:
    """What is not finite, in words; empty if all is."""
    numbers = dict(zip(names, values.tolist(), strict=True))
    wrong = {name: value for name, value in numbers.items() if not math.isfinite(value)}
    if num_processes > 1 and "gradient" not in wrong:
        return ""  # terms differ between processes, which have to decide alike
    terms = [f"the loss term {name} is {value}" for name, value in wrong.items() if name != "gradient"]
    if terms:
        return ", ".join(terms)
    if wrong:
        return f"the norm of the gradients is {wrong['gradient']}, though all terms of the loss are finite here"
    return ""


def _message(trainer: Trainer, step: int, culprit: str, num_skipped: int) -> str:
    skipped = f", after {num_skipped} skipped steps in a row" if num_skipped else ""
    other = "" if num_skipped else "; --trainer.non_finite skip leaves such steps out"
    return f"step {step}: {culprit}{skipped}; {advice(trainer)}{other}"


def advice(trainer: Trainer, last_step: int | None = None) -> str:
    """Which checkpoint to continue from, and with which settings.

    Args:
        trainer: Knows the run folder.
        last_step: The last step whose losses were known to be sound; None if that is not asked.
    """
    knobs = "a smaller --model.optimizer.lr or --trainer.gradient_clip_val"
    folder = Path(trainer.default_root_dir)
    good = last_good_checkpoint(folder, last_step)
    if good is not None:
        return f"the last good checkpoint is {shown(good)}; continue it with --ckpt_path {shown(good)} and {knobs}"
    written = any(folder.glob("*.ckpt"))
    before = "" if last_step is None else " and from before that"
    state = f"no checkpoint here is whole and finite{before}" if written else "no checkpoint was written yet"
    return f"{state}; try again with {knobs}"


def last_good_checkpoint(folder: Path, last_step: int | None = None) -> Path | None:
    """The newest checkpoint in a folder that is whole, has finite weights, and was written by a healthy run.

    Args:
        folder: The run folder.
        last_step: Leave out checkpoints of later steps.
    """
    for path in sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(UserError):
            checkpoint = read_checkpoint(path)
            is_late = last_step is not None and checkpoint.get("global_step", 0) > last_step
            if not is_late and not checkpoint.get(UNHEALTHY):
                return path
    return None
