"""The network against the authors' numbers, and against a second implementation written from the formulas alone.

``tests/data/parity_tiny.safetensors`` holds a part of a tiny model with random weights and what the released code
(arXiv:2603.22283, commit 2389f2c6) computes with it in float32: here the first block, the last layer and both norms;
for the rest see ``test_image_parity.py``. To save space, four matrices that only ever see one or two vectors here are
stored as two factors whose product is the same on these vectors.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unite.commands.official_names import ENCODER_BLOCK_NAMES, ENCODER_NAMES
from unite.errors import UserError
from unite.nn.blocks import RotaryAngles
from unite.nn.generative_encoder import SIZES, GenerativeEncoder, Tokens

NUM_REGISTERS = 256


@pytest.fixture(scope="module")
def one_block_encoder(reference: dict[str, Tensor]) -> GenerativeEncoder:
    encoder = GenerativeEncoder("XS", latent_channels=8, depth=1, width=64, num_heads=4)
    names = ENCODER_NAMES | {
        f"encoder.blocks.0.{theirs}": f"blocks.0.{ours}" for theirs, ours in ENCODER_BLOCK_NAMES.items()
    }
    encoder.load_state_dict({ours: reference[f"state/{theirs}"] for theirs, ours in names.items()}, strict=True)
    return encoder.eval()


def official_registers(reference: dict[str, Tensor], num: int = NUM_REGISTERS) -> Tokens:
    return Tokens(reference["state/latent_tokens"][:, :num], torch.arange(num))


def block_output(encoder: GenerativeEncoder, run: object) -> Tensor:
    """Output of the first block while ``run`` runs."""
    outputs: list[Tensor] = []
    handle = encoder.blocks[0].register_forward_hook(lambda module, args, out: outputs.append(out))
    with torch.no_grad():
        run()  # type: ignore[operator]
    handle.remove()
    return outputs[0]


def test_denoising_block_equals_the_released_code(
    reference: dict[str, Tensor], one_block_encoder: GenerativeEncoder
) -> None:
    condition = reference["state/encoder.y_embedder.embedding_table.weight"][reference["io/den_y"].long()]
    timesteps = reference["io/den_t"]
    torch.testing.assert_close(one_block_encoder.time_embedding(timesteps), reference["io/den_temb"], atol=2e-5, rtol=0)
    out = block_output(
        one_block_encoder,
        lambda: one_block_encoder.denoise(reference["io/den_x"], timesteps, condition, official_registers(reference)),
    )
    torch.testing.assert_close(out[0, ::8], reference["io/den_block0_out"], atol=2e-5, rtol=0)


def test_tokenization_block_equals_the_released_code(
    reference: dict[str, Tensor], one_block_encoder: GenerativeEncoder
) -> None:
    """Registers then patches, rotary places 0 .. 255 and 256 .. 511, null condition."""
    null = reference["state/encoder.y_embedder.embedding_table.weight"][10:11]
    patches = Tokens(reference["io/patch_embed_out_s0"][None], NUM_REGISTERS + torch.arange(NUM_REGISTERS))
    out = block_output(
        one_block_encoder,
        lambda: one_block_encoder.tokenize(
            patches,
            official_registers(reference),
            null,
            noise=reference["io/tok_noise"],
            timesteps=reference["io/tok_t"],
        ),
    )
    registers_only = reference["io/tok_block0_out"][: NUM_REGISTERS // 8]
    torch.testing.assert_close(out[0, ::8], registers_only, atol=2e-5, rtol=0)


def test_last_layer_and_latent_norm_equal_the_released_code(
    reference: dict[str, Tensor], one_block_encoder: GenerativeEncoder
) -> None:
    """With in-context tokens cut off: the last block's output is put in place of ours."""
    encoder = GenerativeEncoder(
        "XS", latent_channels=8, depth=1, width=64, num_heads=4, context_start=0, context_length=4
    )
    encoder.load_state_dict(one_block_encoder.state_dict(), strict=False)
    # Its first four tokens are the condition's.
    encoder.blocks[0].register_forward_hook(lambda module, args, out: reference["io/den_block2_out"][None, 4:])
    condition = reference["state/encoder.y_embedder.embedding_table.weight"][reference["io/den_y"].long()]
    num = len(reference["io/den_raw"])
    registers = official_registers(reference, num)
    arguments = (reference["io/den_x"][:, :num], reference["io/den_t"], condition, registers)
    with torch.no_grad():
        raw = encoder.hidden_to_latents(*arguments, None)
        normed = encoder.denoise(*arguments)
    torch.testing.assert_close(raw[0], reference["io/den_raw"], atol=2e-5, rtol=0)
    torch.testing.assert_close(normed[0], reference["io/den_normed"], atol=2e-5, rtol=0)


# ---------------------------------------------------------------------- second implementation


def reference_rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def reference_rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Pair by pair, position by position; x is (B, H, N, E)."""
    out = x.clone()
    channels = x.shape[-1]
    for n, position in enumerate(positions.tolist()):
        for j in range(channels // 2):
            angle = position * 10000 ** (-2 * j / channels)
            a, b = x[:, :, n, 2 * j], x[:, :, n, 2 * j + 1]
            out[:, :, n, 2 * j] = a * math.cos(angle) - b * math.sin(angle)
            out[:, :, n, 2 * j + 1] = b * math.cos(angle) + a * math.sin(angle)
    return out


def reference_forward(
    encoder: GenerativeEncoder, z: Tensor, t: Tensor, condition: Tensor, registers: Tensor, patches: Tensor | None
) -> Tensor:
    """The Generative Encoder written from the formulas of the released code, sample by sample, without masks."""
    w: dict[str, Tensor] = dict(encoder.state_dict())

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    heads, width = encoder.num_heads, encoder.width
    angles = 2 * math.pi * t[:, None] * w["time_embedding.frequencies"]
    time = linear(
        F.silu(linear(torch.cat((angles.sin(), angles.cos()), -1), "time_embedding.mlp.0")), "time_embedding.mlp.2"
    )
    s = F.silu(time + condition)
    x = linear(z, "latent_in") + registers
    positions = torch.arange(x.shape[1])
    if patches is not None:
        x = torch.cat((x, patches), 1)
        positions = torch.arange(x.shape[1])
    num_context = 0
    for i in range(encoder.depth):
        if i == encoder.context_start:
            context = condition[:, None] + w["context_embedding"]
            num_context = context.shape[1]
            x = torch.cat((context, x), 1)
            positions = torch.cat((torch.zeros(num_context, dtype=torch.long), positions))
        block = f"blocks.{i}"
        b_a, g_a, gate_a, b_m, g_m, gate_m = linear(s, f"{block}.modulation")[:, None].chunk(6, -1)
        u = reference_rms(x, w[f"{block}.attention_norm.weight"]) * (1 + g_a) + b_a
        q, k, v = (
            part.view(*part.shape[:2], heads, width // heads).transpose(1, 2)
            for part in linear(u, f"{block}.attention.qkv").chunk(3, -1)
        )
        q = reference_rotate(reference_rms(q, w[f"{block}.attention.query_norm.weight"]), positions)
        k = reference_rotate(reference_rms(k, w[f"{block}.attention.key_norm.weight"]), positions)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(width // heads)).softmax(-1)
        attended = (weights @ v).transpose(1, 2).flatten(2)
        x = x + gate_a * linear(attended, f"{block}.attention.out")
        u = reference_rms(x, w[f"{block}.mlp_norm.weight"]) * (1 + g_m) + b_m
        gate, value = linear(u, f"{block}.mlp.gate_and_value").chunk(2, -1)
        x = x + gate_m * linear(F.silu(gate) * value, f"{block}.mlp.out")
        x = reference_rms(x, w[f"{block}.stream_norm.weight"])
    x = x[:, num_context : num_context + z.shape[1]]
    b, g = linear(s, "final_modulation")[:, None].chunk(2, -1)
    raw = linear(reference_rms(x, w["stream_norm.weight"]) * (1 + g) + b, "final_out")
    centred = raw - raw.mean(-1, keepdim=True)
    std = (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / std * w["latent_norm.weight"] + w["latent_norm.bias"]


def randomize(encoder: GenerativeEncoder) -> None:
    """Random weights everywhere: at initialisation the blocks would do nothing."""
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(std=0.2)


@pytest.mark.parametrize(("with_patches", "context"), [(True, 0), (False, 0), (True, 3), (False, 3)])
def test_equals_a_second_implementation(with_patches: bool, context: int) -> None:
    encoder = GenerativeEncoder(
        "XS",
        latent_channels=6,
        depth=3,
        width=32,
        num_heads=2,
        context_start=1 if context else None,
        context_length=context,
    )
    randomize(encoder)
    z, t, condition = torch.randn(2, 5, 6), torch.rand(2), torch.randn(2, 32)
    registers, patches = torch.randn(1, 5, 32), torch.randn(2, 7, 32) if with_patches else None
    tokens = None if patches is None else Tokens(patches, torch.arange(5, 12))
    with torch.no_grad():
        ours = encoder(z, t, condition, Tokens(registers, torch.arange(5)), tokens)
        theirs = reference_forward(encoder, z, t, condition, registers, patches)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


# ---------------------------------------------------------------------- laws


def test_masked_tokens_and_registers_change_nothing() -> None:
    encoder = GenerativeEncoder("XS", latent_channels=6, depth=2, width=32, num_heads=2)
    randomize(encoder)
    z, t, condition = torch.randn(1, 4, 6), torch.rand(1), torch.randn(1, 32)
    registers, patches = torch.randn(1, 4, 32), torch.randn(1, 3, 32)
    with torch.no_grad():
        alone = encoder(z, t, condition, Tokens(registers, torch.arange(4)), Tokens(patches, torch.arange(4, 7)))
        padded = encoder(
            F.pad(z, (0, 0, 0, 2), value=9.0),
            t,
            condition,
            Tokens(F.pad(registers, (0, 0, 0, 2), value=9.0), torch.arange(6), torch.arange(6)[None] < 4),
            Tokens(F.pad(patches, (0, 0, 0, 1), value=9.0), torch.arange(4, 8), torch.arange(4)[None] < 3),
        )
    torch.testing.assert_close(padded[:, :4], alone, atol=1e-5, rtol=1e-5)


def test_rotary_forms_for_compilers_and_for_eager_mode_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 5, 3, 8)
    rotary = RotaryAngles(torch.arange(5), 8)
    eager = rotary.rotate(x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotary.rotate(x), eager)


def test_rotary_attention_depends_on_distance_only() -> None:
    query, key = torch.randn(8), torch.randn(8)

    def score(first: int, second: int) -> Tensor:
        rotary = RotaryAngles(torch.tensor([first, second]), 8)
        rotated = rotary.rotate(torch.stack((query, key))[None, :, None])
        return (rotated[0, 0, 0] * rotated[0, 1, 0]).sum()

    torch.testing.assert_close(score(3, 7), score(103, 107), atol=1e-4, rtol=1e-4)


def test_two_axes_rotate_their_own_channels() -> None:
    x = torch.randn(1, 1, 1, 8)
    moved = RotaryAngles(torch.tensor([[5, 0]]), 8).rotate(x)
    assert not torch.allclose(moved[..., :4], x[..., :4])
    torch.testing.assert_close(moved[..., 4:], x[..., 4:])


def test_draws_can_be_passed_in_or_seeded() -> None:
    encoder = GenerativeEncoder("XS", latent_channels=6, depth=1, width=32, num_heads=2)
    randomize(encoder)
    tokens, registers = Tokens(torch.randn(2, 3, 32), torch.arange(3)), Tokens(torch.randn(1, 4, 32), torch.arange(4))
    null = torch.zeros(1, 32)

    def seeded(seed: int) -> Tensor:
        return encoder.tokenize(tokens, registers, null, generator=torch.Generator().manual_seed(seed))

    torch.testing.assert_close(seeded(1), seeded(1))
    assert not torch.allclose(seeded(1), seeded(2))


@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
def test_gradient_checkpointing_changes_nothing(norm: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        encoder = GenerativeEncoder(
            "XS",
            latent_channels=6,
            depth=2,
            width=32,
            num_heads=2,
            final_norm=norm,  # type: ignore[arg-type]
            gradient_checkpointing=checkpointing,
        )
        randomize(encoder)
        registers = Tokens(torch.randn(1, 4, 32), torch.arange(4))
        encoder.denoise(torch.randn(2, 4, 6), torch.rand(2), torch.randn(2, 32), registers).sum().backward()
        gradients.append(encoder.latent_in.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_named_sizes_are_those_of_the_paper() -> None:
    assert {name: tuple(size) for name, size in SIZES.items()} == {
        "XS": (4, 96, 4),
        "S": (12, 384, 6),
        "B": (12, 768, 12),
        "M": (12, 1024, 16),
        "L": (24, 1024, 16),
        "XL": (28, 1152, 16),
    }


def test_base_size_has_the_released_number_of_parameters() -> None:
    """130,593,056 in the released encoder, less its class table (1002 x 768) and unused time vector (768)."""
    with torch.device("meta"):
        encoder = GenerativeEncoder("B", latent_channels=32, context_start=4, context_length=32)
    num_parameters = sum(p.numel() for p in encoder.parameters())
    latent_norm = 2 * 32
    assert num_parameters - latent_norm == 130_593_056 - 1002 * 768 - 768


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 100, "num_heads": 3}, "width 100 must be divisible by twice encoder.num_heads 3"),
        ({"depth": 0}, "depth is 0"),
        ({"latent_channels": 0}, "latent_channels is 0"),
        ({"context_start": 4, "context_length": 2}, r"context_start is 4; it must lie in \[0, 3\]"),
        ({"context_start": 1}, "go together"),
    ],
)
def test_contradictory_sizes_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerativeEncoder("XS", **settings)  # type: ignore[arg-type]
