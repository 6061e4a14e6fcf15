"""The second pass of a training step: the Generative Encoder denoises copies of its own latents.

``UniteModule.training_step`` shows its place in a step; :mod:`unite.flow` has the path, the times and the loss. Below
the pass are two departures from the paper, off by default: other samples for it than those that are reconstructed, and
latents of the averaged weights.
Letters: B samples, K latents, C latent channels, D width, S flow steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from unite.engine.deferred import DeferredLoss
from unite.errors import UserError, require
from unite.flow import TimeDistribution, flow_loss, path_sample
from unite.modalities.base import ModalityAdapter, Template
from unite.modalities.batches import part_of
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
    flow_target: Literal["current", "average"] = "current"
    reconstruction_share: float = 1.0

    def __post_init__(self) -> None:
        require(self.flow_steps >= 1, f"model.flow_steps is {self.flow_steps}; it must be at least 1")
        if self.flow_chunk is not None and self.flow_chunk < 1:
            raise UserError(f"model.flow_chunk is {self.flow_chunk}; it must be at least 1, or null for all flow steps")
        share, target = self.reconstruction_share, self.flow_target
        require(0 < share <= 1, f"model.reconstruction_share is {share}; it must be above 0 and at most 1")
        if not self.stop_gradient and self.has_separate_target:
            changed = f"flow_target is {target}" if target == "average" else f"reconstruction_share is {share}"
            raise UserError(
                f"model.{changed}, and then the latents of the flow pass have no gradient: "
                "leave model.stop_gradient at true"
            )

    @property
    def has_separate_target(self) -> bool:
        """Whether the flow pass learns other latents than those that are reconstructed."""
        return self.flow_target == "average" or self.reconstruction_share < 1


class LossOfLatents(Protocol):
    """A second pass through the network: made before the latents are, and asked for its loss once they are there."""

    @property
    def registers(self) -> Tokens:
        """Registers of the samples, values (B, K, D) or (1, K, D)."""

    def loss(self, latents: Tensor) -> Tensor:
        """Loss on clean latents (B, K, C)."""


class SecondPass(Protocol):
    """Makes a second pass; the arguments are those of :class:`FlowPass`."""

    def __call__(
        self,
        denoiser: GenerativeEncoder,
        adapter: ModalityAdapter,
        template: Template,
        registers: Tokens,
        settings: FlowSettings,
        /,
    ) -> LossOfLatents:
        """Made for a batch."""


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
        # (S * B, D), copy by copy, or (1, D) for none; dropped anew in each copy.
        self.condition, self.context = adapter.conditions(template, settings.flow_steps)
        self.is_deferred = settings.flow_chunk is not None and denoiser.training and torch.is_grad_enabled()
        self.deferred: DeferredLoss | None = None
        if self.is_deferred and settings.stop_gradient:
            self.deferred = self._defer()

    def loss(self, latents: Tensor) -> Tensor:
        """Denoising error of the latents' copies, summed over the S copies; zero until differentiated if in chunks.

        Args:
            latents: Clean latents, shape (B, K, C).
        """
        settings = self.settings
        clean = latents.detach() if settings.stop_gradient else latents
        batch, steps = len(clean), settings.flow_steps
        # In float32, or latents of mixed precision would get other noise than those of float32.
        copies = clean.repeat(steps, 1, 1)  # (S * B, K, C), copy by copy
        noise = torch.randn_like(copies.float()).to(copies.dtype)
        timesteps = settings.time.sample(len(noise), noise.device)

        def error(
            first: int, last: int, condition: Tensor, registers: Tensor, words: Tensor, clean: Tensor = clean
        ) -> Tensor:
            """Of the copies from ``first`` to before ``last``."""
            rows = slice(first * batch, last * batch)
            path = path_sample(clean.repeat(last - first, 1, 1), noise[rows], timesteps[rows])
            slots = _repeat_registers(replace(self.registers, values=registers), last - first)
            context = None if self.context is None else replace(self.context, values=words)[rows]
            own = condition if len(condition) == 1 else condition[rows]
            prediction = self.denoiser.denoise(path.noisy_latents, path.timesteps, own, slots, context)
            return (last - first) * flow_loss(prediction, path, slots.mask, settings.flow_loss)

        if not self.is_deferred:
            return error(0, steps, *self._inputs())
        if self.deferred is None:  # the flow loss goes on into the latents
            self.deferred = self._defer(latents)
        chunk = settings.flow_chunk or steps
        self.deferred.parts = [partial(error, i, min(i + chunk, steps)) for i in range(0, steps, chunk)]
        return self.deferred.scalar

    def _inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the loss depends on beside the latents: condition, registers and context, which may be empty."""
        words = self.condition.new_zeros(0) if self.context is None else self.context.values
        return self.condition, self.registers.values, words

    def _defer(self, *latents: Tensor) -> DeferredLoss:
        return DeferredLoss((*self._inputs(), *latents), list(self.denoiser.parameters()))


def _repeat_registers(registers: Tokens, repeats: int) -> Tokens:
    """The registers of ``repeats`` copies of a batch, copy by copy; one for all samples stays one."""
    values = registers.values if len(registers.values) == 1 else registers.values.repeat(repeats, 1, 1)
    mask = None if registers.mask is None else registers.mask.repeat(repeats, 1)
    return replace(registers, values=values, mask=mask)


# ------------------------------------------------------------------ other latents than those that are reconstructed


class Tokenizing(Protocol):
    """What :func:`separate_target` needs of a module."""

    encoder: GenerativeEncoder
    adapters: dict[str, ModalityAdapter]
    flow_settings: FlowSettings
    averaged_weights: Mapping[str, Tensor] | None


def random_part(samples: Any, share: float, total: int) -> Any:
    """A share of the samples of a batch, at least one, drawn anew each time, in the order of the batch.

    Args:
        samples: A batch of ``total`` samples as the datamodule yields it.
        share: Share of them to take.
        total: Number of samples B.
    """
    num = max(1, round(share * total))
    return part_of(samples, sorted(torch.randperm(total)[:num].tolist()), total)


def tokenized(
    encoder: GenerativeEncoder,
    adapter: ModalityAdapter,
    prepared: Any,
    template: Template,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Latents (B, K, C) of prepared samples.

    Args:
        encoder: The network.
        adapter: Adapter of the modality.
        prepared: The samples.
        template: Their template.
        generator: Source of the registers' noise and time.
    """
    registers, tokens = adapter.registers(template), adapter.tokens(prepared)
    return encoder.tokenize(tokens, registers, adapter.null_condition(), generator=generator)


@torch.no_grad()
def separate_target(module: Tokenizing, modality: str, prepared: Any, template: Template) -> Tensor | None:
    """Latents (B, K, C) of all samples for the flow pass to learn; None where it learns those that are reconstructed.

    They are made with fresh noise on the registers, by the current weights or by the average, as the settings say.

    Args:
        module: The module in training.
        modality: Name of the adapter.
        prepared: All samples of the batch.
        template: Their template.

    Raises:
        UserError: There is no average.
    """
    settings = module.flow_settings
    if not settings.has_separate_target:
        return None
    if settings.flow_target == "current":
        return tokenized(module.encoder, module.adapters[modality], prepared, template)
    require_average(module)
    tokenizer = _Tokenizer(module.encoder, module.adapters[modality])
    places = {
        "encoder.": "encoder.",
        f"adapters.{modality}.": "adapter.",
    }  # of names in the module and in the tokenizer
    weights = {
        own + name.removeprefix(there): value
        for name, value in (module.averaged_weights or {}).items()
        for there, own in places.items()
        if name.startswith(there)
    }
    latents: Tensor = functional_call(tokenizer, weights, (prepared, template))
    return latents


def require_average(module: Tokenizing) -> None:
    """Refuse ``flow_target: average`` with a :class:`UserError` where nothing averages the weights."""
    require(
        module.flow_settings.flow_target == "current" or module.averaged_weights is not None,
        "model.flow_target is average, but nothing averages the weights: add unite.callbacks.WeightAveraging to "
        "trainer.callbacks, or set it to current",
    )


class _Tokenizer(nn.Module):
    """:func:`tokenized` as a module, whose weights can be replaced for a call."""

    def __init__(self, encoder: GenerativeEncoder, adapter: ModalityAdapter) -> None:
        super().__init__()
        self.encoder = encoder
        self.adapter = adapter
        self.training = encoder.training

    def forward(self, prepared: Any, template: Template) -> Tensor:
        return tokenized(self.encoder, self.adapter, prepared, template)
