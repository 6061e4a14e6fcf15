"""The decoder's transformer: latents back to a sequence of hidden vectors, from which an adapter reads its data.

Numerically the released ViT decoder (arXiv:2603.22283): pre-norm blocks, LayerNorm with eps 1e-12, exact GELU, added
position embedding, an optional class token that is dropped at the end. Letters as in ``generative_encoder``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unite.errors import UserError

DECODER_NORM_EPS = 1e-12


class DecoderBlock(nn.Module):
    """Pre-norm block: attention, then a GELU network of ``mlp_width`` hidden channels."""

    def __init__(self, width: int, num_heads: int, mlp_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width, eps=DECODER_NORM_EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=DECODER_NORM_EPS)
        self.mlp_in = nn.Linear(width, mlp_width)
        self.mlp_out = nn.Linear(mlp_width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Update tokens ``x`` (B, N, D); ``mask`` (B, 1, 1, N) is True where a key may be seen."""
        batch, num_tokens, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, num_tokens, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, N, E)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.attention_out(attended.transpose(1, 2).reshape(batch, num_tokens, width))
        out: Tensor = x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))
        return out


class LatentDecoder(nn.Module):
    """Transformer from latents (B, K, C) to hidden vectors (B, K, width).

    Args:
        latent_channels: Channels C of a latent.
        width: Channels of the decoder.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_width: Hidden channels of the feed-forward layers; four times the width if None.
        embedding_width: Width of an extra linear layer before the blocks (768 in the released image model).
        class_token: Prepend a learned token that gives the blocks a scratch place, and drop it at the end.
        gradient_checkpointing: Recompute the blocks in the backward pass instead of keeping their activations.

    Raises:
        UserError: The width is not divisible by the number of heads.
    """

    def __init__(
        self,
        latent_channels: int,
        width: int,
        depth: int,
        num_heads: int,
        mlp_width: int | None = None,
        embedding_width: int | None = None,
        class_token: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = gradient_checkpointing
        if width % num_heads:
            raise UserError(f"decoder width {width} must be divisible by its number of heads {num_heads}")
        self.embedding_in = None if embedding_width is None else nn.Linear(latent_channels, embedding_width)
        self.latent_in = nn.Linear(latent_channels if embedding_width is None else embedding_width, width)
        self.class_token = nn.Parameter(torch.zeros(width)) if class_token else None
        self.blocks = nn.ModuleList(
            DecoderBlock(width, num_heads, 4 * width if mlp_width is None else mlp_width) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=DECODER_NORM_EPS)

    def forward(
        self, latents: Tensor, position_embedding: Tensor, mask: Tensor | None = None, queries: Tensor | None = None
    ) -> Tensor:
        """Hidden vectors, one for each latent (B, K, width), or one for each query (B, N, width) if there are any.

        Args:
            latents: Latents, shape (B, K, C).
            position_embedding: Added to the vectors of the K latents, shape (K, width).
            mask: True where a latent, then a query, is real, shape (B, K + N), or None if all are.
            queries: Vectors that attend to the latents where outputs do not match latents, shape (B, N, width).
        """
        hidden = self.latent_in(latents if self.embedding_in is None else self.embedding_in(latents))
        hidden = hidden + position_embedding
        if queries is not None:
            hidden = torch.cat((hidden, queries.to(hidden.dtype)), dim=1)  # (B, K + N, width)
        if self.class_token is not None:
            hidden = torch.cat((self.class_token.expand(len(hidden), 1, -1).to(hidden.dtype), hidden), dim=1)
            mask = None if mask is None else F.pad(mask, (1, 0), value=True)
        key_mask = None if mask is None else mask[:, None, None]
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(block, hidden, key_mask, use_reentrant=False)
            else:
                hidden = block(hidden, key_mask)
        num_dropped = (self.class_token is not None) + (0 if queries is None else latents.shape[1])
        out: Tensor = self.norm(hidden[:, num_dropped:])
        return out
