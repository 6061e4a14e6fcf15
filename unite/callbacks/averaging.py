"""Averaged weights, used for every evaluation."""

import weakref
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from unite.engine.sharding import gather, load_whole, part_like, release
from unite.engine.training import TrainingEngine
from unite.errors import UserError


class WeightAveraging(Callback):
    """Exponential moving average of the weights, used for every evaluation and kept in checkpoints.

    Own code because Lightning's ``EMAWeightAveraging`` updates parameter by parameter (a hundred times slower than
    one ``foreach`` call), starts on the wrong device, and leaves the two sets of weights swapped after an exception in
    validation. The layout of the checkpoint is Lightning's: ``state_dict`` holds the averaged weights,
    ``current_model_state`` the raw ones. After ``fit`` the module holds the averaged weights.

    Args:
        decay: Share of the old average that is kept per optimizer step (0.9978 in the paper).
        warmup: Start with a smaller decay, min(decay, (1 + n) / (10 + n)) after n steps, so that short runs are not
            averaged with their random start. The released code has none.
    """

    def __init__(self, decay: float = 0.9978, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"WeightAveraging.decay is {decay}; it must lie in [0, 1)")
        self.decay = decay
        self.warmup = warmup
        self.num_updates = 0
        self._last_step = 0
        # Weights that the module does not hold at the moment: the average, or the raw ones while they are swapped.
        self._other: dict[str, Tensor] = {}
        self._is_swapped = False
        self._module: weakref.ref[LightningModule] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Drop the weights of another module, if this callback was used before.

        Raises:
            UserError: A checkpoint callback would leave out the averaged weights.
        """
        savers = [saver for saver in trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint)]
        if any(saver.save_weights_only for saver in savers):
            raise UserError("ModelCheckpoint.save_weights_only leaves out the averaged weights; set it to false")
        if self._module is None or self._module() is not pl_module:
            self._other, self._is_swapped, self.num_updates = {}, False, 0
            self._module = weakref.ref(pl_module)
        if stage == "fit":
            self._show(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the average as a copy of the weights, or take it from the checkpoint, on the module's device."""
        self._swap_back(pl_module)
        self._other = {
            name: self._other.get(name, parameter.detach()).to(parameter.device, copy=True)
            for name, parameter in _trainable(pl_module)
        }
        self._show(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count optimizer steps from here: only now has Lightning restored their number."""
        self._last_step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average if the batch ended with an optimizer step."""
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates)) if self.warmup else self.decay
        parameters = dict(_trainable(pl_module))
        torch._foreach_lerp_([self._other[name] for name in parameters], list(parameters.values()), 1 - decay)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate with the averaged weights."""
        self._swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue training with the raw weights."""
        if trainer.state.fn == "fit":
            self._swap_back(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the module with the averaged weights."""
        self._swap_in(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """What the module was shown is no average any more."""
        if isinstance(pl_module, TrainingEngine):
            pl_module.averaged_weights = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the raw weights, whatever happened."""
        self._swap_back(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """State of the callback in a checkpoint, without the weights."""
        return {"num_updates": self.num_updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.num_updates = state_dict["num_updates"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put averaged weights into ``state_dict`` and raw ones into ``current_model_state``."""
        if not self._other:
            return
        held = checkpoint["state_dict"]
        other = {**held, **gather(self._other)}
        averaged, raw = (held, other) if self._is_swapped else (other, held)
        checkpoint["state_dict"] = averaged
        checkpoint["current_model_state"] = raw
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self.num_updates)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Continue training from both sets of weights."""
        if trainer.state.fn == "fit" and "current_model_state" in checkpoint:
            self._is_swapped = False
            averaged = checkpoint["state_dict"]
            self._other = {name: part_like(parameter, averaged[name]) for name, parameter in _trainable(pl_module)}
            load_whole(pl_module, checkpoint["current_model_state"])

    def restart(self, pl_module: LightningModule) -> None:
        """Continue training from the averaged weights, and start a new average with them."""
        self._swap_in(pl_module)
        self._is_swapped = False
        self.num_updates = 0
        self._other = {name: parameter.detach().clone() for name, parameter in _trainable(pl_module)}
        self._show(pl_module)

    def _show(self, pl_module: LightningModule) -> None:
        """Let training steps use the average; while the weights are swapped, in evaluations, there are none."""
        if isinstance(pl_module, TrainingEngine):
            pl_module.averaged_weights = self._other

    def _swap_in(self, pl_module: LightningModule) -> None:
        if self._other and not self._is_swapped:
            self._swap(pl_module)

    def _swap_back(self, pl_module: LightningModule) -> None:
        if self._is_swapped:
            self._swap(pl_module)

    @torch.no_grad()
    def _swap(self, pl_module: LightningModule) -> None:
        release(pl_module)
        for name, parameter in _trainable(pl_module):
            held = parameter.detach().clone()
            parameter.copy_(self._other[name])
            self._other[name] = held
        self._is_swapped = not self._is_swapped


def _trainable(module: LightningModule) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
