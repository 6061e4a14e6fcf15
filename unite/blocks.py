"""Building blocks of the Generative Encoder: normalisation, rotary positions, attention, SwiGLU, adaptive norm.

Numerically these are the blocks of the authors' released code (arXiv:2603.22283). Letters: B batch, N tokens,
D width, H heads, E = D / H channels of a head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROPE_BASE = 10_000.0
NORM_EPS = 1e-6


class RotaryAngles:
    """Cosines and sines of rotary position embedding, computed once per forward pass for all blocks.

    Channel pair ``(2j, 2j + 1)`` at position p is rotated by ``p * base ** (-2j / E)``. With several axes (2D images)
    the channels are divided evenly among them.

    Args:
        positions: Place of every token, shape (N,) or (N, axes); fractional places are allowed.
        head_channels: Channels E of one head; must be divisible by twice the number of axes.
    """

    def __init__(self, positions: Tensor, head_channels: int) -> None:
        if positions.ndim == 1:
            positions = positions[:, None]
        num_axes = positions.shape[1]
        if head_channels % (2 * num_axes):
            raise ValueError(
                f"rotary positions with {num_axes} axes need head channels divisible by {2 * num_axes}, "
                f"not {head_channels}: change width or num_heads"
            )
        axis_channels = head_channels // num_axes
        exponents = torch.arange(0, axis_channels, 2, device=positions.device, dtype=torch.float32) / axis_channels
        angles = (positions.float()[:, :, None] * ROPE_BASE**-exponents).flatten(1)  # (N, E / 2)
        self.cos = angles.cos().repeat_interleave(2, dim=-1)  # (N, E)
        self.sin = angles.sin().repeat_interleave(2, dim=-1)  # (N, E)

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate the channel pairs of ``x`` (B, H, N, E): (a, b) becomes (a cos - b sin, b cos + a sin)."""
        quarter_turn = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)  # (-b, a)
        return (x * self.cos + quarter_turn * self.sin).to(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotary positions and, by default, RMS-normalised queries and keys."""

    def __init__(self, width: int, num_heads: int, qk_norm: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm = nn.RMSNorm(width // num_heads, eps=NORM_EPS) if qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(width // num_heads, eps=NORM_EPS) if qk_norm else nn.Identity()
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, rotary: RotaryAngles, mask: Tensor | None) -> Tensor:
        """Attend among the tokens ``x`` (B, N, D); ``mask`` (B, 1, 1, N) is True where a key may be seen."""
        batch, num_tokens, width = x.shape
        qkv = self.qkv(x).view(batch, num_tokens, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, N, E)
        query = rotary.rotate(self.query_norm(query))
        key = rotary.rotate(self.key_norm(key))
        attended = F.scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value, attn_mask=mask)
        out: Tensor = self.out(attended.transpose(1, 2).reshape(batch, num_tokens, width))
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


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive norm: ``x * (1 + scale) + shift`` with one shift and scale (B, 1, D) per sample."""
    return torch.addcmul(shift, x, 1 + scale)


class Block(nn.Module):
    """Transformer block with adaptive norm, and a third norm over the whole residual stream after it.

    The modulation starts at zero, so that a new block is the identity up to its last norm.
    """

    def __init__(self, width: int, num_heads: int, qk_norm: bool = True) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.attention = SelfAttention(width, num_heads, qk_norm)
        self.mlp_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.mlp = SwiGLU(width)
        self.stream_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, activated_condition: Tensor, rotary: RotaryAngles, mask: Tensor | None) -> Tensor:
        """Update the tokens.

        Args:
            x: Tokens, shape (B, N, D).
            activated_condition: SiLU of time plus condition embedding, shape (B, D).
            rotary: Rotary angles of the N tokens.
            mask: True where a token is real, shape (B, 1, 1, N), or None if all are.
        """
        modulation = self.modulation(activated_condition)[:, None]  # (B, 1, 6D)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation.chunk(6, dim=-1)
        x = x + gate_1 * self.attention(modulate(self.attention_norm(x), shift_1, scale_1), rotary, mask)
        x = x + gate_2 * self.mlp(modulate(self.mlp_norm(x), shift_2, scale_2))
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
