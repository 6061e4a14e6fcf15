"""Building blocks of the Generative Encoder: normalisation, rotary positions, attention, SwiGLU, adaptive norm.

Numerically these are the blocks of the authors' released code (arXiv:2603.22283). Letters: B batch, N tokens,
D width, H heads, E = D / H channels of a head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unite.errors import UserError

ROPE_BASE = 10_000.0
NORM_EPS = 1e-6


class RotaryAngles:
    """Angles of rotary position embedding, computed once per forward pass for all blocks.

    Channel pair ``(2j, 2j + 1)`` at position p is rotated by ``p * base ** (-2j / E)``. With several axes (2D images)
    the channels are divided evenly among them.

    Args:
        positions: Place of every token, shape (N,) or (N, axes); fractional places are allowed.
        head_channels: Channels E of one head; must be divisible by twice the number of axes.

    Raises:
        UserError: The channels do not divide.
    """

    def __init__(self, positions: Tensor, head_channels: int) -> None:
        if positions.ndim == 1:
            positions = positions[:, None]
        num_axes = positions.shape[1]
        if head_channels % (2 * num_axes):
            raise UserError(
                f"rotary positions with {num_axes} axes need head channels divisible by {2 * num_axes}, "
                f"not {head_channels}: change width or num_heads"
            )
        axis_channels = head_channels // num_axes
        exponents = torch.arange(0, axis_channels, 2, device=positions.device, dtype=torch.float32) / axis_channels
        angles = (positions.float()[:, :, None] * ROPE_BASE**-exponents).flatten(1)  # (N, E / 2)
        self.turns = torch.polar(torch.ones_like(angles), angles)[:, None]  # complex, (N, 1, E / 2)

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate the channel pairs of ``x`` (B, N, H, E): (a, b) becomes (a cos - b sin, b cos + a sin)."""
        pairs = x.float().unflatten(-1, (-1, 2))
        if torch.compiler.is_compiling():  # compilers fuse real arithmetic, and know no complex numbers
            turns = torch.view_as_real(self.turns)
            (a, b), (cos, sin) = pairs.unbind(-1), turns.unbind(-1)
            rotated = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1)
        else:  # one pass over memory instead of five
            rotated = torch.view_as_real(torch.view_as_complex(pairs) * self.turns)
        return rotated.flatten(-2).to(x.dtype)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x ** 2) + 1e-6) * weight``, statistics in float32.

    Own code because PyTorch's takes twice as long on a CPU, where it is not one kernel, and cannot take in an adaptive
    scale and shift on the way.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, shift: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        """Normalise the last axis of ``x`` (B, N, D), then apply ``* (1 + scale) + shift``, both (B, 1, D)."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        normed = x * torch.rsqrt(norm.square() / x.shape[-1] + NORM_EPS)
        if shift is None or scale is None:
            return normed * self.weight
        return torch.addcmul(shift.to(normed.dtype), normed, self.weight * (1 + scale))


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotary positions and, by default, RMS-normalised queries and keys."""

    def __init__(self, width: int, num_heads: int, qk_norm: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm = RMSNorm(width // num_heads) if qk_norm else nn.Identity()
        self.key_norm = RMSNorm(width // num_heads) if qk_norm else nn.Identity()
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, rotary: RotaryAngles, mask: Tensor | None, outputs: slice = slice(None)) -> Tensor:
        """Attend among the tokens ``x`` (B, N, D).

        Args:
            x: Tokens.
            rotary: Rotary angles of the N tokens.
            mask: True where a key may be seen, shape (B, 1, 1, N), or None.
            outputs: Tokens to return; all are seen.
        """
        batch, num_tokens, width = x.shape
        qkv = self.qkv(x).view(batch, num_tokens, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.unbind(2)  # each (B, N, H, E)
        query = rotary.rotate(self.query_norm(query)).to(value.dtype)[:, outputs]
        key = rotary.rotate(self.key_norm(key)).to(value.dtype)
        attended = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask
        )  # (B, H, N, E)
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out


class SwiGLU(nn.Module):
    """Gated feed-forward layer with ``floor(2/3 * 4D)`` hidden channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(2 / 3 * 4 * width)
        self.gate_and_value = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (..., D) to (..., D)."""
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        out: Tensor = self.out(F.silu(gate) * value)
        return out


class Block(nn.Module):
    """Transformer block with adaptive norm, and a third norm over the whole residual stream after it.

    The modulation starts at zero, so that a new block is the identity up to its last norm.
    """

    def __init__(self, width: int, num_heads: int, qk_norm: bool = True) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width)
        self.attention = SelfAttention(width, num_heads, qk_norm)
        self.mlp_norm = RMSNorm(width)
        self.mlp = SwiGLU(width)
        self.stream_norm = RMSNorm(width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(
        self,
        x: Tensor,
        activated_condition: Tensor,
        rotary: RotaryAngles,
        mask: Tensor | None,
        outputs: slice = slice(None),
    ) -> Tensor:
        """Update the tokens.

        Args:
            x: Tokens, shape (B, N, D).
            activated_condition: SiLU of time plus condition embedding, shape (B, D) or (1, D).
            rotary: Rotary angles of the N tokens.
            mask: True where a token is real, shape (B, 1, 1, N), or None if all are.
            outputs: Tokens to return; nothing is computed for the others but what these attend to.
        """
        modulation = self.modulation(activated_condition)[:, None]  # (B, 1, 6D)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation.chunk(6, dim=-1)
        attended = self.attention(self.attention_norm(x, shift_1, scale_1), rotary, mask, outputs)
        x = torch.addcmul(x[:, outputs], gate_1, attended)
        x = torch.addcmul(x, gate_2, self.mlp(self.mlp_norm(x, shift_2, scale_2)))
        normed: Tensor = self.stream_norm(x)
        return normed


class TimeEmbedding(nn.Module):
    """Timestep t as random Fourier features (256 fixed frequencies), then a two-layer network."""

    frequencies: Tensor

    def __init__(self, width: int, num_frequencies: int = 256) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(num_frequencies))
        self.mlp = nn.Sequential(nn.Linear(2 * num_frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timesteps: Tensor) -> Tensor:
        """Embed times (B,), 0 noise and 1 data, as (B, D)."""
        angles = 2 * math.pi * timesteps.float()[:, None] * self.frequencies
        embedded: Tensor = self.mlp(torch.cat((angles.sin(), angles.cos()), dim=-1))
        return embedded


def sinusoidal_embedding(positions: Tensor, width: int) -> Tensor:
    """Fixed embedding of places: all sines, then all cosines.

    Args:
        positions: Places, shape (N,).
        width: Even number of channels D.

    Returns:
        Embedding of shape (N, D).
    """
    exponents = torch.arange(width // 2, device=positions.device, dtype=torch.float64) / (width / 2)
    angles = positions.double()[:, None] * ROPE_BASE**-exponents
    return torch.cat((angles.sin(), angles.cos()), dim=-1).float()
