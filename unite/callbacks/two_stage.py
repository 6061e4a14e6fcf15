"""The two-stage baseline: first a tokenizer, then, with the tokenizer frozen, a denoiser of its latents.

This is how latent generative models are usually trained, and what the paper argues against (arXiv:2603.22283). One run,
one config, the same networks as with ``weight_sharing: false``:

- *Stage 1* trains encoder, embeddings and decoder on the reconstruction loss. The flow loss is not computed.
- *Stage 2* freezes the average of those weights and trains the separate denoiser, and the embeddings of classes,
  on the flow loss. The tokenizer runs without gradients, the decoder not at all.

Each stage has a warmup, a decay, an average and optimizer states of its own.

**Equal compute.** A step of one stage is cheaper than one of joint training: stage 1 saves the flow passes, stage 2 the
decoder and the tokenizer's backward pass. :func:`training_flops` counts all three, and :meth:`TrainingFlops.steps`
says how many steps cost as much; ``benchmarks/two_stage_flops.py`` prints both for a config.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unite.callbacks.averaging import WeightAveraging
from unite.engine.optimizer import rate_factor
from unite.engine.sharding import require_undivided
from unite.errors import UserError
from unite.module import UniteModule


class TwoStageTraining(Callback):
    """Trains the tokenizer first and then the denoiser; needs ``model.weight_sharing: false``.

    Metrics of generation mean nothing before the second stage. With several processes use
    ``--trainer.strategy ddp_find_unused_parameters_true``, since each stage leaves parameters without gradients.

    Args:
        tokenizer_share: Share of the optimizer steps that the first stage takes.

    Raises:
        UserError: The share is not between 0 and 1.
    """

    def __init__(self, tokenizer_share: float = 0.5) -> None:
        if not 0 < tokenizer_share < 1:
            raise UserError(f"TwoStageTraining.tokenizer_share is {tokenizer_share}; it must lie between 0 and 1")
        self.tokenizer_share = tokenizer_share
        self.switch_step = 0
        self.is_second_stage = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse settings that two stages cannot be trained with.

        Raises:
            UserError: There is no separate denoiser, or something would move the frozen weights.
        """
        assert isinstance(pl_module, UniteModule)
        if stage != "fit":
            return
        if pl_module.separate_denoiser is None:
            raise UserError("TwoStageTraining trains a denoiser of its own: set model.weight_sharing to false")
        if pl_module.flow_settings.has_separate_target:
            raise UserError(
                "TwoStageTraining needs model.flow_target at current and model.reconstruction_share at 1: stage one "
                "reconstructs every sample, and stage two learns latents that stand still"
            )
        require_undivided(trainer, "TwoStageTraining", "ddp_find_unused_parameters_true")
        settings = pl_module.optimizer_settings
        if settings.two_stage is not None:
            raise UserError("TwoStageTraining gives each stage a cosine: leave out model.optimizer.two_stage")
        if settings.weight_decay and any(adapter.num_classes for adapter in pl_module.adapters.values()):
            raise UserError(
                f"model.optimizer.weight_decay is {settings.weight_decay}, but with TwoStageTraining and classes it "
                "must be 0: the frozen null condition lies in one table with the trained classes and would decay"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Divide the schedule between the stages; a run that is continued in its second stage stays in it.

        Raises:
            UserError: The run is too short for two stages.
        """
        assert isinstance(pl_module, UniteModule)
        total_steps = int(trainer.estimated_stepping_batches)
        if not self.is_second_stage:
            self.switch_step = round(self.tokenizer_share * total_steps)
        if not 0 < self.switch_step < total_steps:
            raise UserError(f"a run of {total_steps} steps has no two stages: raise trainer.max_steps")
        first = rate_factor(pl_module.optimizer_settings, self.switch_step)
        second = rate_factor(pl_module.optimizer_settings, total_steps - self.switch_step)

        def factor(step: int) -> float:
            return first(step) if step < self.switch_step else second(step - self.switch_step)

        scheduler: Any = trainer.lr_scheduler_configs[0].scheduler
        scheduler.lr_lambdas = [factor for _ in scheduler.lr_lambdas]
        if self.is_second_stage:
            begin_second_stage(pl_module)
        else:
            pl_module.trains_denoiser = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Switch to the second stage at its first step."""
        assert isinstance(pl_module, UniteModule)
        if self.is_second_stage or trainer.global_step < self.switch_step:
            return
        self.is_second_stage = True
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging):
                callback.restart(pl_module)  # evaluations and the denoiser see one and the same tokenizer
        for optimizer in trainer.optimizers:
            optimizer.state.clear()
        begin_second_stage(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """State of the callback in a checkpoint."""
        return {"switch_step": self.switch_step, "is_second_stage": self.is_second_stage}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.switch_step = state_dict["switch_step"]
        self.is_second_stage = state_dict["is_second_stage"]


def begin_second_stage(module: UniteModule) -> None:
    """Freeze all but the denoiser and the embeddings of conditions; let training steps compute the flow loss alone."""
    denoiser = set(module.denoiser.parameters())
    for parameter in module.parameters():
        parameter.requires_grad_(parameter in denoiser)
    for adapter in module.adapters.values():
        if adapter.num_classes:
            # The tokenizer reads the null condition, the last row of the table: that one stays as it is.
            embedding: nn.Embedding = adapter.condition_embedding
            embedding.weight.requires_grad_(True)
            embedding.weight.register_hook(_without_last_row)
        if adapter.property_embedding is not None:
            adapter.property_embedding.requires_grad_(True)
    module.trains_tokenizer, module.trains_denoiser = False, True


def _without_last_row(gradient: Tensor) -> Tensor:
    return torch.cat((gradient[:-1], torch.zeros_like(gradient[-1:])))


@dataclass(frozen=True)
class TrainingFlops:
    """Floating-point operations of one training step, forward and backward, in matrix products and attention.

    Attributes:
        joint: A step of one-stage training, the same with and without weight sharing.
        tokenizer: A step of the first of two stages.
        denoiser: A step of the second.
    """

    joint: int
    tokenizer: int
    denoiser: int

    def steps(self, joint_steps: int, tokenizer_share: float = 0.5) -> int:
        """Steps of two-stage training that cost as much as ``joint_steps`` of one-stage training."""
        two_stage = tokenizer_share * self.tokenizer + (1 - tokenizer_share) * self.denoiser
        return round(joint_steps * self.joint / two_stage)


def training_flops(module: UniteModule, batch: dict[str, Any]) -> TrainingFlops:
    """Count the operations of training steps on a batch, by running them on a copy of a module.

    Args:
        module: A module with ``weight_sharing`` off, not in a trainer.
        batch: A training batch as the datamodule yields it; its padding is counted, as it is computed.

    Raises:
        UserError: The module has no separate denoiser.
    """
    if module.separate_denoiser is None:
        raise UserError("operations of two stages are counted with a denoiser of its own: set weight_sharing to false")

    def tokenizer_alone(module: UniteModule) -> None:
        module.trains_denoiser = False

    return TrainingFlops(
        joint=_count(module, batch, lambda module: None),
        tokenizer=_count(module, batch, tokenizer_alone),
        denoiser=_count(module, batch, begin_second_stage),
    )


def _count(module: UniteModule, batch: dict[str, Any], arrange: Callable[[UniteModule], None]) -> int:
    module = copy.deepcopy(module).train()
    arrange(module)
    counter = FlopCounterMode(display=False)
    # Attention as plain matrix products: fused kernels are not all known to the counter.
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH), counter:
        warnings.filterwarnings("ignore", ".*self.trainer")  # nothing to log to
        module.training_step(batch, 0).backward()
    return int(counter.get_total_flops())
