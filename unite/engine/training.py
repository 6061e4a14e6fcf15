"""What a training step needs beside the method: its terms logged, one optimizer, compiled blocks, divided weights."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from unite.console import info
from unite.engine.optimizer import MuonAdamW, OptimizerSettings, samples_per_step, warmup_cosine
from unite.engine.seeding import ReproducibleModule
from unite.engine.sharding import ShardedStrategy, shard
from unite.engine.step_terms import SampleMean, StepTerms
from unite.errors import UserError
from unite.nn.blocks import Block
from unite.nn.decoder import DecoderBlock
from unite.nn.generative_encoder import mark_step_of_cuda_graphs


def require_precision(precision: str) -> None:
    """Refuse precisions that round the weights themselves: updates are smaller than 16 bits resolve.

    ``16-mixed`` goes on a GPU, with Lightning's scaler of gradients; on a CPU Lightning takes ``bf16-mixed`` instead.

    Raises:
        UserError: The precision is one of those.
    """
    if precision in ("16-true", "bf16-true", "64-true"):
        raise UserError(f"--trainer.precision {precision} is not supported; use bf16-mixed or 32-true")


class TrainingEngine(ReproducibleModule):
    """A module whose training steps leave their loss terms in ``step_terms``, and whose matrices Muon trains.

    Args:
        optimizer: Optimizer and schedule.
    """

    def __init__(self, optimizer: OptimizerSettings) -> None:
        super().__init__()
        self.optimizer_settings = optimizer
        self.step_terms: dict[str, StepTerms] = {}  # of the last training step, by modality
        self.averaged_weights: Mapping[str, Tensor] | None = None  # by name, while WeightAveraging averages them
        self.further_loss: Callable[[], Tensor] | None = None  # of a callback, added in each training step
        self.num_trained = 0  # samples that training steps of this process have seen
        self._means: dict[str, SampleMean] = {}  # of loss terms over an evaluation

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters by half of the optimizer."""
        raise NotImplementedError

    def log_step(self) -> None:
        """Log the terms of the running step, and their weighted sum as ``train/loss``.

        Not with ``prog_bar=True``: Lightning would read the value in each step, and so wait for the accelerator.
        :class:`unite.callbacks.monitor.LossProgressBar` shows it.
        """
        for modality, step in self.step_terms.items():
            self.num_trained += step.batch_size
            self.log_terms("train", modality, step.terms, step.batch_size)
        loss = sum(terms.loss for terms in self.step_terms.values())
        self.log("train/loss", loss)

    def log_terms(self, stage: str, modality: str, terms: dict[str, Tensor], batch_size: int) -> None:
        """Log unweighted loss terms as ``stage/modality/term``; those of an evaluation as the mean over all samples."""
        for name, term in terms.items():
            key = f"{stage}/{modality}/{name}"
            if stage == "train":
                self.log(key, term.detach(), batch_size=batch_size)
            else:
                mean = self._means.setdefault(key, SampleMean()).to(self.device)
                mean.update(term.detach(), batch_size)
                self.log(key, mean, metric_attribute=key)

    def configure_model(self) -> None:
        """Divide the weights among the processes if the strategy does that; see :mod:`unite.engine.sharding`."""
        strategy = None if self._trainer is None else self._trainer.strategy  # load_from_checkpoint has no trainer
        if isinstance(strategy, ShardedStrategy):
            shard(self, strategy)

    def compile_blocks(self, mode: Literal["default", "reduce-overhead"] = "default") -> None:
        """Compile each block in place. All blocks of a kind share what is compiled, so it takes no longer for more.

        Sizes are left open: batches of molecules differ in length, and the two passes in the number of tokens.

        Args:
            mode: As of :func:`torch.compile`.
        """
        for part in self.modules():
            if isinstance(part, Block | DecoderBlock):
                part.compile(dynamic=True, mode=mode)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Draw the seeds of the batch, and free what CUDA graphs hold of the last one."""
        super().on_train_batch_start(batch, batch_idx)
        mark_step_of_cuda_graphs()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Evaluation mode (nothing is augmented or dropped), and afterwards the mode there was."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in place of the current ones, where they are averaged."""
        average = self.averaged_weights or {}
        own = {name: parameter for name, parameter in self.named_parameters() if name in average}
        held = {name: parameter.detach().clone() for name, parameter in own.items()}
        try:
            with torch.no_grad():
                for name, parameter in own.items():
                    parameter.copy_(average[name])
            yield
        finally:
            with torch.no_grad():
                for name, parameter in own.items():
                    parameter.copy_(held[name])

    def scaled_optimizer_settings(self) -> OptimizerSettings:
        """The optimizer's settings with the learning rate for this run's steps."""
        settings = self.optimizer_settings
        return settings if settings.lr_reference_batch is None else settings.scaled(samples_per_step(self.trainer))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Muon and AdamW in one optimizer; the schedule counts optimizer steps."""
        settings = self.scaled_optimizer_settings()
        optimizer = MuonAdamW(self.parameter_groups(), settings)
        total_steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(total_steps):
            raise UserError("the learning rate falls until the end of training: set trainer.max_steps or max_epochs")
        scheduler = warmup_cosine(optimizer, settings, int(total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Let a continued run take rates and constants from its own settings, where they differ from the checkpoint's.

        Only now has Lightning restored optimizer and schedule, rates included.
        """
        if self.trainer.ckpt_path:
            optimizer, scheduler = self.trainer.optimizers[0], self.trainer.lr_scheduler_configs[0].scheduler
            if isinstance(optimizer, MuonAdamW) and isinstance(scheduler, LambdaLR):
                restored = scheduler.base_lrs[0]
                optimizer.use_settings(scheduler)
                if scheduler.base_lrs[0] != restored and self.trainer.is_global_zero:
                    info(f"learning rate {scheduler.base_lrs[0]:.4g} from here on, in place of {restored:.4g}")

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Free the gradients after the step: the next forward pass has no use for them."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()
