"""The released image model a second time, written from its formulas alone, on a state_dict of official names.

Slow, plain and separate from ``unite``: nothing here imports it. With the authors' full reference numbers (a tiny
model with random weights, computed by the released code of arXiv:2603.22283 at commit 2389f2c6 in float32) this file
was checked once: every array of it agrees within 4e-6, losses and the norms of all gradients within 1e-6 of their
size. Those numbers are too large to ship, so the tests give this file random weights and compare ``unite`` with it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """What shapes of tensors do not tell."""

    heads: int
    decoder_heads: int
    context_start: int
    flow_weight: float = 1.0


@dataclass(frozen=True)
class Draws:
    """Every random number of one training step; S flow steps, B images."""

    register_noise: Tensor  # (B, K, C)
    tokenize_time: Tensor  # (B,)
    noising_mask: Tensor  # (B,), True where the decoder sees noise
    noising_time: Tensor  # (B,)
    noising_noise: Tensor  # (B, K, C)
    flow_time: Tensor  # (S, B)
    flow_noise: Tensor  # (S, B, K, C)
    label_drop: Tensor  # (S, B), True where the class is hidden


def shapes(
    *,
    depth: int,
    width: int,
    heads: int,
    channels: int,
    grid: int,
    patch: int,
    classes: int,
    context: int,
    decoder_depth: int,
    decoder_width: int,
    decoder_mlp: int,
    embedding: int = 768,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released state_dict for given sizes, less LPIPS's."""
    n, d, e = grid * grid, width, decoder_width
    hidden = int(2 / 3 * 4 * d)
    found: dict[str, tuple[int, ...]] = {
        "latent_tokens": (1, n, d),
        "patch_embed.position_embeddings": (1, n + 1, d),
        "patch_embed.patch_embeddings.projection.weight": (d, 3, patch, patch),
        "patch_embed.patch_embeddings.projection.bias": (d,),
        "encoder.pos_embed": (1, n, d),
        "encoder.in_context_posemb": (1, context, d),
        "encoder.t_embedder.W": (256,),
        "encoder.t_embedder.special_time_emb": (d,),
        "encoder.y_embedder.embedding_table.weight": (classes + 2, d),
        "encoder.final_layer.norm_final.weight": (d,),
        "encoder_layer_norm.weight": (channels,),
        "encoder_layer_norm.bias": (channels,),
        "decoder.decoder_pos_embed": (1, n + 1, e),
        "decoder.trainable_cls_token": (e,),
        "decoder.decoder_norm.weight": (e,),
        "decoder.decoder_norm.bias": (e,),
    }
    linears = {
        "encoder.up_sample": (d, channels),
        "encoder.t_embedder.mlp.0": (d, 512),
        "encoder.t_embedder.mlp.2": (d, d),
        "encoder.final_layer.linear": (channels, d),
        "encoder.final_layer.adaLN_modulation.1": (2 * d, d),
        "decoder.decoder_embed": (e, embedding),
        "decoder.decoder_pred": (3 * patch * patch, e),
        "up_sample_decoder": (embedding, channels),
    }
    for part in ("cos", "sin"):
        found[f"encoder.feat_rope.freqs_{part}"] = (2 * n, d // heads)
        found[f"encoder.feat_rope_incontext.freqs_{part}"] = (context + 2 * n, d // heads)
    for i in range(depth):
        block = f"encoder.blocks.{i}"
        found |= {f"{block}.norm{k}.weight": (d,) for k in (1, 2, 3)}
        found |= {f"{block}.attn.{k}_norm.weight": (d // heads,) for k in "qk"}
        linears |= {f"{block}.attn.qkv": (3 * d, d), f"{block}.attn.proj": (d, d)}
        linears |= {f"{block}.mlp.w12": (2 * hidden, d), f"{block}.mlp.w3": (d, hidden)}
        linears[f"{block}.adaLN_modulation.1"] = (6 * d, d)
    for i in range(decoder_depth):
        block = f"decoder.decoder_layers.{i}"
        for norm in ("layernorm_before", "layernorm_after"):
            found |= {f"{block}.{norm}.weight": (e,), f"{block}.{norm}.bias": (e,)}
        linears |= {f"{block}.qkv": (3 * e, e), f"{block}.attn_proj": (e, e)}
        linears |= {f"{block}.ffn_up": (decoder_mlp, e), f"{block}.ffn_down": (e, decoder_mlp)}
    for name, shape in linears.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found


def random_weights(layout: dict[str, tuple[int, ...]], seed: int = 0) -> Weights:
    """A state_dict of this layout: every weight random, also those that a new model has at zero; true rotations."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in sorted(layout.items())}
    weights["encoder.t_embedder.W"] *= 5
    for name in weights:
        if "norm" in name and name.endswith("weight"):
            weights[name] += 1
    num_places, channels = layout["encoder.feat_rope.freqs_cos"]
    num_context = layout["encoder.in_context_posemb"][1]
    exponents = torch.arange(0, channels, 2, dtype=torch.float64) / channels
    angles = torch.arange(num_places)[:, None] * 10000.0**-exponents
    angles = angles.repeat_interleave(2, dim=1)
    still = torch.zeros(num_context, channels, dtype=torch.float64)
    for part, function in (("cos", torch.cos), ("sin", torch.sin)):
        weights[f"encoder.feat_rope.freqs_{part}"] = function(angles).float()
        weights[f"encoder.feat_rope_incontext.freqs_{part}"] = function(torch.cat((still, angles))).float()
    return weights


def is_for_muon(name: str, weight: Tensor) -> bool:
    """Which optimizer a trainable weight gets."""
    others = ("patch_embed", "final_layer", "in_context_posemb", "latent_tokens")
    return weight.ndim >= 2 and not any(part in name for part in others)


def is_trained(name: str) -> bool:
    """Whether the released training changes a weight, or would if it used it."""
    frozen = ("patch_embed.position_embeddings", "encoder.pos_embed", "t_embedder.W", "feat_rope", "decoder_pos_embed")
    return not any(part in name for part in frozen)


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight


def layer_norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def rotate(x: Tensor, places: Tensor) -> Tensor:
    """Channel pair (2j, 2j + 1) of x (B, H, N, E) by the angle place * 10000 ** (-2j / E)."""
    channels = x.shape[-1]
    angles = places.double()[:, None] * 10000.0 ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
    cos, sin = angles.cos().float(), angles.sin().float()
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of heads (B, H, N, E), heads joined: (B, N, H * E)."""
    weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def split_heads(x: Tensor, heads: int) -> list[Tensor]:
    """(B, N, 3 * D) to three of (B, H, N, D / H)."""
    return [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in x.chunk(3, dim=-1)]


def patch_features(w: Weights, images: Tensor) -> Tensor:
    """Patch by patch, (B, N, D)."""
    kernel = w["patch_embed.patch_embeddings.projection.weight"]
    size = kernel.shape[-1]
    rows = [
        images[:, :, i : i + size, j : j + size].flatten(1) @ kernel.flatten(1).T
        for i in range(0, images.shape[2], size)
        for j in range(0, images.shape[3], size)
    ]
    bias = w["patch_embed.patch_embeddings.projection.bias"]
    return torch.stack(rows, dim=1) + bias + w["patch_embed.position_embeddings"][:, 1:]


def encode(w: Weights, s: Settings, z: Tensor, t: Tensor, classes: Tensor, patches: Tensor | None = None) -> Tensor:
    """The shared encoder up to, and without, the norm of the latents."""
    num_registers = z.shape[1]
    x = linear(w, "encoder.up_sample", z) + w["latent_tokens"]
    if patches is not None:
        x = torch.cat((x, patches), dim=1)
    places = torch.arange(x.shape[1])
    angles = 2 * math.pi * t[:, None] * w["encoder.t_embedder.W"]
    time = linear(w, "encoder.t_embedder.mlp.0", torch.cat((angles.sin(), angles.cos()), dim=-1))
    time = linear(w, "encoder.t_embedder.mlp.2", F.silu(time))
    label = w["encoder.y_embedder.embedding_table.weight"][classes]
    activated = F.silu(time + label)
    num_context = 0
    depth = 1 + max(int(name.split(".")[2]) for name in w if name.startswith("encoder.blocks."))
    for i in range(depth):
        if i == s.context_start:
            context = label[:, None] + w["encoder.in_context_posemb"]
            num_context = context.shape[1]
            x = torch.cat((context, x), dim=1)
            places = torch.cat((torch.zeros(num_context, dtype=places.dtype), places))
        b = f"encoder.blocks.{i}"
        modulation = linear(w, f"{b}.adaLN_modulation.1", activated)[:, None].chunk(6, dim=-1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation
        u = rms_norm(x, w[f"{b}.norm1.weight"]) * (1 + scale_a) + shift_a
        q, k, v = split_heads(linear(w, f"{b}.attn.qkv", u), s.heads)
        q = rotate(rms_norm(q, w[f"{b}.attn.q_norm.weight"]), places)
        k = rotate(rms_norm(k, w[f"{b}.attn.k_norm.weight"]), places)
        x = x + gate_a * linear(w, f"{b}.attn.proj", attend(q, k, v))
        u = rms_norm(x, w[f"{b}.norm2.weight"]) * (1 + scale_m) + shift_m
        gate, value = linear(w, f"{b}.mlp.w12", u).chunk(2, dim=-1)
        x = x + gate_m * linear(w, f"{b}.mlp.w3", F.silu(gate) * value)
        x = rms_norm(x, w[f"{b}.norm3.weight"])
    x = x[:, num_context : num_context + num_registers]
    shift, scale = linear(w, "encoder.final_layer.adaLN_modulation.1", activated)[:, None].chunk(2, dim=-1)
    x = rms_norm(x, w["encoder.final_layer.norm_final.weight"]) * (1 + scale) + shift
    return linear(w, "encoder.final_layer.linear", x)


def normalize(w: Weights, raw: Tensor) -> Tensor:
    return layer_norm(w, "encoder_layer_norm", raw, 1e-5)


def null_class(w: Weights) -> int:
    return len(w["encoder.y_embedder.embedding_table.weight"]) - 2


def denoise(w: Weights, s: Settings, x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
    return normalize(w, encode(w, s, x, t, classes))


def tokenize(w: Weights, s: Settings, images: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    nobody = torch.full((len(images),), null_class(w))
    return normalize(w, encode(w, s, noise, t, nobody, patch_features(w, images)))


def decode(w: Weights, s: Settings, z: Tensor) -> Tensor:
    """Images (B, 3, H, W), placed patch by patch."""
    x = linear(w, "decoder.decoder_embed", linear(w, "up_sample_decoder", z))
    x = torch.cat((w["decoder.trainable_cls_token"].expand(len(x), 1, -1), x), dim=1)
    x = x + w["decoder.decoder_pos_embed"]
    depth = 1 + max(int(name.split(".")[2]) for name in w if name.startswith("decoder.decoder_layers."))
    for i in range(depth):
        b = f"decoder.decoder_layers.{i}"
        q, k, v = split_heads(linear(w, f"{b}.qkv", layer_norm(w, f"{b}.layernorm_before", x, 1e-12)), s.decoder_heads)
        x = x + linear(w, f"{b}.attn_proj", attend(q, k, v))
        u = linear(w, f"{b}.ffn_up", layer_norm(w, f"{b}.layernorm_after", x, 1e-12))
        u = 0.5 * u * (1 + torch.erf(u / math.sqrt(2)))
        x = x + linear(w, f"{b}.ffn_down", u)
    pixels = linear(w, "decoder.decoder_pred", layer_norm(w, "decoder.decoder_norm", x, 1e-12))[:, 1:]
    grid = math.isqrt(pixels.shape[1])
    size = w["patch_embed.patch_embeddings.projection.weight"].shape[-1]
    patches = pixels.unflatten(-1, (size, size, 3)).movedim(-1, 2)  # (B, N, 3, P, P)
    rows = [torch.cat([patches[:, grid * i + j] for j in range(grid)], dim=-1) for i in range(grid)]
    return torch.cat(rows, dim=-2)


def training_losses(w: Weights, s: Settings, images: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """L1 of the reconstruction, and the flow loss summed over the flow steps."""
    z = tokenize(w, s, images, draws.register_noise, draws.tokenize_time)
    t = draws.noising_time[:, None, None]
    seen = torch.where(draws.noising_mask[:, None, None], t * z + (1 - t) * draws.noising_noise, z)
    reconstruction = (decode(w, s, seen) - images).abs().mean()
    clean = z.detach()
    flow = torch.zeros(())
    for time, noise, drop in zip(draws.flow_time, draws.flow_noise, draws.label_drop, strict=True):
        t = time[:, None, None]
        x_t = t * clean + (1 - t) * noise
        prediction = denoise(w, s, x_t, time, torch.where(drop, null_class(w), labels))
        error = (clean - prediction).square().mean(dim=(1, 2)) / (1 - time).clamp(min=0.05).square()
        flow = flow + error.mean()
    return reconstruction, flow


def guided_velocity(
    w: Weights, s: Settings, classes: Tensor, scale: float, interval: tuple[float, float]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Velocity dx/dt of the sampler, with normalised predictions throughout."""
    nobody = torch.full_like(classes, null_class(w))
    low, high = interval

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        times = t.float().expand(len(x))
        conditional = denoise(w, s, x, times, classes)
        if scale > 1:
            inside = bool(t < high) and (low == 0 or bool(t > low))
            unconditional = denoise(w, s, x, times, nobody)
            conditional = unconditional + (scale if inside else 1.0) * (conditional - unconditional)
        return (conditional - x) / max(1 - float(t), 0.05)

    return velocity
