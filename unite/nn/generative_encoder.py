"""The Generative Encoder: one transformer that tokenizes data into latents and generates latents from noise.

Both acts are the same forward pass over K *registers* that start as noise (arXiv:2603.22283, section 3):

- ``tokenize``: the registers see the tokens of an observation and become its latents.
- ``denoise``: the registers see nothing but a noisy latent, its time and a condition.

Letters: B batch, K registers, N data tokens, C latent channels, D width.
"""

import copy
import sys
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unite.configurable import Configurable
from unite.errors import UserError, require
from unite.nn.blocks import Block, RMSNorm, RotaryAngles, TimeEmbedding


@dataclass(frozen=True)
class Tokens:
    """A padded batch of vectors for the transformer; registers have the same form.

    Attributes:
        values: The vectors, shape (B, N, D); registers that are alike in all samples may have B = 1.
        positions: Places for the rotary embedding, shape (N,) or (N, axes), alike in all samples.
        mask: True where a token is real, shape (B, N), or None if all are.
        is_full: Whether the mask is known to hide nothing.
    """

    values: Tensor
    positions: Tensor
    mask: Tensor | None = None
    is_full: bool = False

    def __getitem__(self, rows: slice) -> Self:
        """The tokens of some samples, each of which has its own."""
        return replace(self, values=self.values[rows], mask=None if self.mask is None else self.mask[rows])

    @property
    def hiding_mask(self) -> Tensor | None:
        """The mask, or None if it hides nothing: without one, attention has faster kernels on a GPU."""
        return None if self.is_full else self.mask


class Size(NamedTuple):
    """Depth, width and heads of a named size."""

    depth: int
    width: int
    num_heads: int


SIZES = {
    "XS": Size(4, 96, 4),
    "S": Size(12, 384, 6),
    "B": Size(12, 768, 12),
    "M": Size(12, 1024, 16),
    "L": Size(24, 1024, 16),
    "XL": Size(28, 1152, 16),
}
LATENT_NORM_EPS = 1e-5
CUDA_GRAPHS = "torch._inductor.cudagraph_trees"
"""The module of torch that a block compiled with CUDA graphs imports when it runs."""


class GenerativeEncoder(Configurable, nn.Module):
    """Shared transformer of tokenizer and denoiser. Knows nothing of images or molecules.

    Args:
        size: Named size: XS (4 blocks, width 96, 4 heads), S (12, 384, 6), B (12, 768, 12), M (12, 1024, 16),
            L (24, 1024, 16), XL (28, 1152, 16).
        latent_channels: Channels C of a latent.
        depth: Number of blocks, instead of the named size's.
        width: Channels D of the transformer, instead of the named size's.
        num_heads: Attention heads, instead of the named size's.
        qk_norm: RMS-normalise queries and keys.
        final_norm: What latents and predictions end with: affine LayerNorm (the paper's best), affine RMSNorm, none.
        context_start: Block before which the in-context condition tokens join the sequence; None for no such tokens.
        context_length: Number of in-context condition tokens.
        max_tokenize_time: Tokenization runs at times drawn from U[0, this], the noise end of the time axis.
        gradient_checkpointing: Recompute the blocks in the backward pass instead of keeping their activations.

    Raises:
        UserError: The sizes contradict each other.
    """

    adamw_parameters = ("final_modulation", "final_out", "context_embedding")

    def __init__(
        self,
        size: Literal["XS", "S", "B", "M", "L", "XL"] = "S",
        latent_channels: int = 16,
        depth: int | None = None,
        width: int | None = None,
        num_heads: int | None = None,
        qk_norm: bool = True,
        final_norm: Literal["layer", "rms", "none"] = "layer",
        context_start: int | None = None,
        context_length: int = 0,
        max_tokenize_time: float = 0.01,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.depth = SIZES[size].depth if depth is None else depth
        self.width = SIZES[size].width if width is None else width
        self.num_heads = SIZES[size].num_heads if num_heads is None else num_heads
        self.latent_channels = latent_channels
        self.context_start = context_start
        self.max_tokenize_time = max_tokenize_time
        self.gradient_checkpointing = gradient_checkpointing
        self._check_sizes(context_length)

        self.latent_in = nn.Linear(latent_channels, self.width)
        self.time_embedding = TimeEmbedding(self.width)
        if context_start is not None:
            self.context_embedding = nn.Parameter(torch.empty(context_length, self.width))
        self.blocks = nn.ModuleList(Block(self.width, self.num_heads, qk_norm) for _ in range(self.depth))
        self.stream_norm = RMSNorm(self.width)
        self.final_modulation = nn.Linear(self.width, 2 * self.width)
        self.final_out = nn.Linear(self.width, latent_channels)
        self.latent_norm: nn.Module = {
            "layer": nn.LayerNorm(latent_channels, eps=LATENT_NORM_EPS),
            "rms": nn.RMSNorm(latent_channels, eps=LATENT_NORM_EPS),
            "none": nn.Identity(),
        }[final_norm]
        self.reset_parameters()

    def _check_sizes(self, context_length: int) -> None:
        for name, value in (("depth", self.depth), ("width", self.width), ("num_heads", self.num_heads)):
            require(value >= 1, f"encoder.{name} is {value}; it must be at least 1")
        require(self.latent_channels >= 1, f"encoder.latent_channels is {self.latent_channels}; it must be at least 1")
        if not 0 <= self.max_tokenize_time <= 1:
            raise UserError(f"encoder.max_tokenize_time is {self.max_tokenize_time}; it must lie in [0, 1]")
        if self.width % (2 * self.num_heads):
            raise UserError(
                f"encoder.width {self.width} must be divisible by twice encoder.num_heads {self.num_heads} "
                "(rotary positions need an even number of channels per head)"
            )
        if self.context_start is not None and not 0 <= self.context_start < self.depth:
            raise UserError(
                f"encoder.context_start is {self.context_start}; it must lie in [0, {self.depth - 1}], or be null"
            )
        if (self.context_start is None) != (context_length == 0):
            raise UserError("encoder.context_start and encoder.context_length go together: set both or neither")

    def fresh_copy(self) -> Self:
        """An encoder of the same sizes with weights of its own."""
        separate = copy.deepcopy(self)
        separate.reset_parameters()
        return separate

    def reset_parameters(self) -> None:
        """Initialise as the released code does: Xavier, small time network, zero modulations and output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in self.time_embedding.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        if self.context_start is not None:
            nn.init.normal_(self.context_embedding, std=0.02)
        modulations = [block.modulation for block in self.blocks if isinstance(block, Block)]
        for layer in (*modulations, self.final_modulation, self.final_out):
            nn.init.zeros_(layer.weight)

    def tokenize(
        self,
        tokens: Tokens,
        registers: Tokens,
        null_condition: Tensor,
        *,
        noise: Tensor | None = None,
        timesteps: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Clean latents of an observation. Random also in evaluation, unless ``noise`` and ``timesteps`` are given.

        Args:
            tokens: Data tokens, values (B, N, D).
            registers: Slots to read the latents from, values (B, K, D) or (1, K, D).
            null_condition: Embedding of "no condition", shape (B, D) or (1, D): tokenization is never conditioned.
            noise: State of the registers, standard normal, shape (B, K, C).
            timesteps: Small times near the noise end, shape (B,).
            generator: Source of the two draws.

        Returns:
            Latents z, shape (B, K, C).
        """
        batch, num_registers = tokens.values.shape[0], registers.values.shape[1]
        device = tokens.values.device
        if noise is None:
            noise = torch.randn(batch, num_registers, self.latent_channels, device=device, generator=generator)
        if timesteps is None:
            timesteps = torch.rand(batch, device=device, generator=generator) * self.max_tokenize_time
        return self.forward(noise, timesteps, null_condition, registers, tokens)

    def denoise(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        registers: Tokens,
        context: Tokens | None = None,
    ) -> Tensor:
        """Predict the clean latents from noisy ones.

        Args:
            noisy_latents: Point x_t on the path from noise to data, shape (B, K, C).
            timesteps: Times t, shape (B,), or (1,) for a common one; 0 is noise, 1 is data.
            condition: Condition embedding, shape (B, D) or (1, D).
            registers: The slots, values (B, K, D) or (1, K, D).
            context: Tokens of the condition, such as those of a caption, that are read in context: values (B, L, D).

        Returns:
            Predicted clean latents, shape (B, K, C).
        """
        return self.forward(noisy_latents, timesteps, condition, registers, None, context)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        registers: Tokens,
        tokens: Tokens | None = None,
        context: Tokens | None = None,
    ) -> Tensor:
        """The pass that both acts share: registers (and tokens) in, normalised latents (B, K, C) out."""
        return self.normalize(self.hidden_to_latents(latents, timesteps, condition, registers, tokens, context))

    def normalize(self, latents: Tensor) -> Tensor:
        """The norm that clean latents and predictions end with."""
        normed: Tensor = self.latent_norm(latents)
        return normed

    def hidden_to_latents(
        self,
        latents: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        registers: Tokens,
        tokens: Tokens | None,
        context: Tokens | None = None,
    ) -> Tensor:
        """Latents (B, K, C) before the last norm; arguments as in :meth:`forward`."""
        batch, num_registers = latents.shape[:2]
        if not torch.is_grad_enabled():
            mark_step_of_cuda_graphs()  # nothing of the last pass is needed any more
        hidden = self.latent_in(latents) + registers.values  # (B, K, D)
        positions, mask = registers.positions, registers.hiding_mask
        if tokens is not None:
            hidden = torch.cat((hidden, tokens.values.to(hidden.dtype)), dim=1)  # (B, K + N, D)
            positions = torch.cat((positions, tokens.positions))
            mask = _join_masks(mask, tokens.hiding_mask, batch, num_registers, tokens.values.shape[1])
        activated = F.silu(self.time_embedding(timesteps) + condition)  # (B, D), or (1, D) if alike in all samples

        head_channels = self.width // self.num_heads
        rotary = RotaryAngles(positions, head_channels)
        key_mask = None if mask is None else mask[:, None, None]  # (B, 1, 1, K + N)
        num_context = 0
        start = 0 if self.context_start is None and context is not None else self.context_start
        for index, block in enumerate(self.blocks):
            if index == start:
                values, context_mask = self._context(condition, context, batch)
                num_context = values.shape[1]
                mask = _join_masks(context_mask, mask, batch, num_context, hidden.shape[1])
                key_mask = None if mask is None else mask[:, None, None]
                hidden = torch.cat((values.to(hidden.dtype), hidden), dim=1)
                # Condition tokens have no place: position 0 rotates by nothing.
                rotary = RotaryAngles(
                    torch.cat((positions.new_zeros(num_context, *positions.shape[1:]), positions)), head_channels
                )
            # After the last block, only the registers are read.
            is_last = index == self.depth - 1
            outputs = slice(num_context, num_context + num_registers) if is_last else slice(None)
            arguments = (hidden, activated, rotary, key_mask, outputs)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                # Blocks draw no random numbers, whose state would be kept and put back for each.
                hidden = checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden = block(*arguments)

        shift, scale = self.final_modulation(activated)[:, None].chunk(2, dim=-1)
        out: Tensor = self.final_out(self.stream_norm(hidden, shift, scale))  # (B, K, C)
        return out

    def _context(self, condition: Tensor, context: Tokens | None, batch: int) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, L, D) that join the sequence, and their mask: given ones, then those of the condition vector."""
        values = [] if context is None else [context.values]
        mask = None if context is None else context.hiding_mask
        if self.context_start is not None:
            own = condition[:, None] + self.context_embedding  # (B or 1, context_length, D)
            values.append(own.expand(batch, -1, -1))
            mask = None if mask is None else F.pad(mask, (0, own.shape[1]), value=True)
        return torch.cat(values, dim=1), mask


def mark_step_of_cuda_graphs() -> None:
    """Let blocks compiled with ``mode="reduce-overhead"`` write over what they gave before; others do not care.

    Without such blocks there is nothing to mark, and the call alone would import the compiler, which takes two seconds.
    """
    if not torch.compiler.is_compiling() and CUDA_GRAPHS in sys.modules:
        torch.compiler.cudagraph_mark_step_begin()


def _join_masks(
    first: Tensor | None, second: Tensor | None, batch: int, num_first: int, num_second: int
) -> Tensor | None:
    """Mask (B, N1 + N2) of two joined sequences, either of which may have none."""
    if first is None and second is None:
        return None
    known = first if first is not None else second
    assert known is not None
    if first is None:
        first = known.new_ones(batch, num_first)
    if second is None:
        second = known.new_ones(batch, num_second)
    return torch.cat((first, second), dim=1)
