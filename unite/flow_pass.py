"""The second pass of a training step: the Generative Encoder denoises copies of its own latents.

``UniteModule.training_step`` shows its place in a step; :mod:`unite.flow` has the path, the times and the loss.
Letters: B samples, K latents, C latent channels, D width, S flow steps.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from unite.engine.deferred import DeferredLoss
from unite.errors import UserError, require
from unite.flow import TimeDistribution, flow_loss, path_sample
from unite.modalities.base import ModalityAdapter, Template
from unite.nn.generative_encoder import GenerativeEncoder, Tokens


@dataclass(frozen=True)
class FlowSettings:
    """Settings of the second pass: the arguments of the same names of :class:`~unite.module.UniteModule`.

    Raises:
        UserError: A number is outside its range.
    """

    flow_steps: int
    flow_chunk: int | None
    flow_loss: Literal["velocity", "data"]
    stop_gradient: bool
    time: TimeDistribution

    def __post_init__(self) -> None:
        require(self.flow_steps >= 1, f"model.flow_steps is {self.flow_steps}; it must be at least 1")
        if self.flow_chunk is not None and self.flow_chunk < 1:
            raise UserError(f"model.flow_chunk is {self.flow_chunk}; it must be at least 1, or null for all flow steps")


class FlowPass:
    """Denoises S noisy copies of the latents, all at once or chunk by chunk.

    All random numbers are drawn for all copies before any is denoised, so that chunks change nothing but
    rounding.

    With ``flow_chunk``, make this before the latents: autograd goes backwards, so the chunks are then computed when
    the reconstruction is differentiated and freed; see :mod:`unite.engine.deferred`.

    Args:
        denoiser: The network.
        adapter: Adapter of the modality.
        template: Template of the samples.
        registers: Registers of the samples, values (B, K, D) or (1, K, D).
        settings: Settings of the second pass.
    """

    def __init__(
        self,
        denoiser: GenerativeEncoder,
        adapter: ModalityAdapter,
        template: Template,
        registers: Tokens,
        settings: FlowSettings,
    ) -> None:
        self.denoiser = denoiser
        self.settings = settings
        self.registers = registers
        self.condition = adapter.null_condition()  # (1, D)
        if template.condition is not None and adapter.num_classes:  # (S * B, D), copy by copy; dropped anew in each
            self.condition = torch.cat([adapter.condition(template) for _ in range(settings.flow_steps)])
        self.is_deferred = settings.flow_chunk is not None and denoiser.training and torch.is_grad_enabled()
        self.deferred: DeferredLoss | None = None
        if self.is_deferred and settings.stop_gradient:
            self.deferred = self._defer(self.condition, registers.values)

    def loss(self, latents: Tensor) -> Tensor:
        """Denoising error of the latents' copies, summed over the S copies; zero until differentiated if in chunks.

        Args:
            latents: Clean latents, shape (B, K, C).
        """
        settings = self.settings
        clean = latents.detach() if settings.stop_gradient else latents
        batch, steps = len(clean), settings.flow_steps
        noise = torch.randn_like(clean.repeat(steps, 1, 1))  # (S * B, K, C), copy by copy
        timesteps = settings.time.sample(len(noise), noise.device)

        def error(first: int, last: int, condition: Tensor, registers: Tensor, clean: Tensor = clean) -> Tensor:
            """Of the copies from ``first`` to before ``last``."""
            rows = slice(first * batch, last * batch)
            path = path_sample(clean.repeat(last - first, 1, 1), noise[rows], timesteps[rows])
            slots = _repeat_registers(replace(self.registers, values=registers), last - first)
            prediction = self.denoiser.denoise(
                path.noisy_latents, path.timesteps, condition if len(condition) == 1 else condition[rows], slots
            )
            return (last - first) * flow_loss(prediction, path, slots.mask, settings.flow_loss)

        if not self.is_deferred:
            return error(0, steps, self.condition, self.registers.values)
        if self.deferred is None:  # the flow loss goes on into the latents
            self.deferred = self._defer(self.condition, self.registers.values, latents)
        chunk = settings.flow_chunk or steps
        self.deferred.parts = [partial(error, i, min(i + chunk, steps)) for i in range(0, steps, chunk)]
        return self.deferred.scalar

    def _defer(self, *inputs: Tensor) -> DeferredLoss:
        return DeferredLoss(inputs, list(self.denoiser.parameters()))


def _repeat_registers(registers: Tokens, repeats: int) -> Tokens:
    """The registers of ``repeats`` copies of a batch, copy by copy."""
    values = registers.values if len(registers.values) == 1 else registers.values.repeat(repeats, 1, 1)
    mask = None if registers.mask is None else registers.mask.repeat(repeats, 1)
    return replace(registers, values=values, mask=mask)
