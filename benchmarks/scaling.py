"""What a training step of the shipped models takes on 1 to 1,024 GPUs, and what bounds it: on paper, no GPU needed.

    python benchmarks/scaling.py             # the tables of docs/scaling.md
    python benchmarks/scaling.py --write     # put them there

Settings are read from configs/. FLOPs are those of matrix products, convolutions and attention, by formula (the tests
compare with PyTorch's counter); memory is weights and what a backward pass keeps, without buffers of kernels and
fragmentation. Rates of the hardware are assumptions, ``Hardware`` below: put in your own.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.cli import instantiate_module

from unite.engine.optimizer import NEWTON_SCHULZ_STEPS
from unite.modalities.image.adapter import ImageAdapter
from unite.modalities.image.metrics.perceptual import BLOCK_CHANNELS
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.module import UniteModule
from unite.nn.decoder import LatentDecoder
from unite.nn.generative_encoder import GenerativeEncoder

REPOSITORY = Path(__file__).parents[1]
MODELS = {"B": "imagenet256_b", "L": "imagenet256_l", "XL": "imagenet256_xl", "S, QM9": "qm9"}
NUM_GPUS = (1, 8, 64, 1024)
BEGIN, END = "<!-- benchmarks/scaling.py writes from here -->", "<!-- to here -->"

BLOCK_BYTES, DECODER_BLOCK_BYTES = 75, 36
"""What a block keeps for its backward pass under bf16-mixed, in bytes per token and channel (the tests measure it)."""
SMALLEST_SHARE = 16
"""Samples that a GPU gets at least: steps grow where there are more GPUs than that allows."""
QM9_ATOMS, IMAGENET_IMAGES, QM9_MOLECULES = 18, 1_281_167, 100_000
"""Mean atoms of a molecule of QM9, hydrogens included, and training samples."""


@dataclass(frozen=True)
class Hardware:
    """What is assumed of a machine; rates in bytes and operations per second."""

    matrix_rate: float = 989e12  # H100 SXM, dense bf16, as the vendor states it
    efficiency: float = 0.4  # the goal; not measured
    memory_rate: float = 0.8 * 3.35e12
    gpus_per_machine: int = 8
    link_in_machine: float = 0.8 * 450e9  # NVLink of a GPU, one direction
    link_between: float = 0.8 * 50e9  # 400 Gb/s for each GPU
    workers: int = 8  # processes that read, for each GPU
    image_rate: float = 500.0  # 256x256 images that one worker reads and decodes
    image_bytes: float = 40e3  # a 256x256 jpg of `unite prepare images --format jpg`


def load(config: str, device: str = "meta") -> tuple[UniteModule, dict[str, Any]]:
    """A module of a shipped config, and its settings."""
    settings = yaml.safe_load((REPOSITORY / "configs" / f"{config}.yaml").read_text())
    with torch.device(device):
        module: UniteModule = instantiate_module(UniteModule, settings["model"])
    return module, settings


# ------------------------------------------------------------------ operations


def attention_flops(width: int, num_tokens: int, num_queries: int) -> int:
    """Projections and attention of ``num_queries`` tokens among ``num_tokens``."""
    projections = 2 * num_tokens * width * 3 * width + 2 * num_queries * width * width
    return projections + 2 * 2 * num_queries * num_tokens * width


def encoder_flops(encoder: GenerativeEncoder, num_registers: int, num_tokens: int = 0, has_class: bool = False) -> int:
    """Operations of a forward pass for one sample.

    Args:
        encoder: The Generative Encoder.
        num_registers: Registers K.
        num_tokens: Data tokens N beside them; 0 for the flow pass.
        has_class: Whether samples have different conditions; one in common is counted with each sample all the same.
    """
    width, hidden = encoder.width, int(2 / 3 * 4 * encoder.width)
    num_context = 0 if encoder.context_start is None else len(encoder.context_embedding)
    total = 2 * num_registers * encoder.latent_channels * width * 2  # in and out
    total += 2 * (512 * width + width * width) + 2 * width * 2 * width  # time, last modulation
    for index in range(encoder.depth):
        seen = num_registers + num_tokens
        if encoder.context_start is not None and index >= encoder.context_start:
            seen += num_context
        kept = num_registers if index == encoder.depth - 1 else seen
        total += attention_flops(width, seen, kept) + 2 * kept * 3 * width * hidden + 2 * width * 6 * width
    return total


def decoder_flops(decoder: LatentDecoder, num_latents: int) -> int:
    """Operations of a forward pass for one sample whose outputs match its latents."""
    total = 0
    for layer in (decoder.embedding_in, decoder.latent_in):
        if layer is not None:
            total += 2 * num_latents * layer.weight.numel()
    num_tokens = num_latents + (decoder.class_token is not None)
    for block in decoder.blocks:
        weights = dict(block.named_parameters())
        mlp = weights["mlp_in.weight"].numel() + weights["mlp_out.weight"].numel()
        total += attention_flops(decoder.norm.weight.numel(), num_tokens, num_tokens) + 2 * num_tokens * mlp
    return total


def lpips_flops(image_size: int) -> int:
    """Operations of VGG16's convolutions for one image."""
    total, channels, edge = 0, 3, image_size
    for block in BLOCK_CHANNELS:
        for out in block:
            total += 2 * edge**2 * 9 * channels * out
            channels = out
        edge //= 2
    return total


@dataclass(frozen=True)
class Flops:
    """Operations of one sample, forward: the two passes, the decoder with what surrounds it, LPIPS of one image."""

    tokenize: int
    denoise: int
    decode: int
    lpips: int = 0

    def training(self, flow_steps: int, recomputed: bool = False) -> int:
        """Of a training step: backward is twice forward, and blocks that are recomputed are done once more.

        LPIPS sees the image and its reconstruction, and only the latter has a way back, to the pixels alone.
        """
        encoder = self.tokenize + flow_steps * self.denoise
        return 3 * (encoder + self.decode) + 3 * self.lpips + recomputed * encoder


def sample_flops(module: UniteModule, num_atoms: int = QM9_ATOMS) -> Flops:
    """Operations of one image, or of a molecule of so many atoms (padding included)."""
    encoder, (adapter,) = module.encoder, module.adapters.values()
    width = encoder.width
    if isinstance(adapter, ImageAdapter):
        pixels, count = adapter.channels * adapter.patch_size**2, adapter.num_registers
        tokens = 2 * adapter.num_patches * pixels * width
        decoded = decoder_flops(adapter.decoder, count) + 2 * adapter.num_patches * adapter.pixel_head.weight.numel()
        lpips = lpips_flops(adapter.image_size) if adapter.perceptual_weight > 0 else 0
        return Flops(
            tokens + encoder_flops(encoder, count, adapter.num_patches), encoder_flops(encoder, count), decoded, lpips
        )
    if not isinstance(adapter, MoleculeAdapter) or adapter.bonds or adapter.registers_per_molecule is not None:
        raise ValueError("operations are counted for images and for positions of molecules, a register for each atom")
    heads = 2 * num_atoms * (adapter.type_head.weight.numel() + adapter.position_head.weight.numel())
    tokens = 2 * num_atoms * 3 * width
    return Flops(
        tokens + encoder_flops(encoder, num_atoms, num_atoms),
        encoder_flops(encoder, num_atoms),
        heads + decoder_flops(adapter.decoder, num_atoms),
    )


def muon_flops(module: UniteModule) -> int:
    """Operations of Muon's update: three products for each of five Newton-Schulz steps, in every process the same."""
    total = 0
    for group in module.parameter_groups():
        for parameter in group["params"] if group["algorithm"] == "muon" else ():
            rows, columns = sorted(parameter.shape)
            total += NEWTON_SCHULZ_STEPS * (4 * rows**2 * columns + 2 * rows**3)
    return total


# ------------------------------------------------------------------ memory


@dataclass(frozen=True)
class Bytes:
    """What a GPU holds: weights, gradients, average and optimizer; activations of one sample; and a checkpoint."""

    states: int
    activations: int
    checkpoint: int
    gradients: int


def memory(module: UniteModule, num_atoms: int = QM9_ATOMS) -> Bytes:
    """Bytes on a GPU with ``flow_chunk`` as it is: one chunk of flow steps is in memory, or tokenizer and decoder."""
    parameters = sum(parameter.numel() for parameter in module.parameters())
    moments = sum(
        (4 if group["algorithm"] == "muon" else 8) * parameter.numel()
        for group in module.parameter_groups()
        for parameter in group["params"]
    )
    encoder, (adapter,) = module.encoder, module.adapters.values()
    num_registers = adapter.num_registers if isinstance(adapter, ImageAdapter) else num_atoms
    context = 0 if encoder.context_start is None else len(encoder.context_embedding)
    decoder = adapter.decoder
    assert isinstance(decoder, LatentDecoder)
    decoder_width = decoder.norm.weight.numel()
    tokenizer = encoder_activations(encoder, 2 * num_registers + context)
    tokenizer += len(decoder.blocks) * DECODER_BLOCK_BYTES * num_registers * decoder_width
    chunk = module.flow_settings.flow_chunk
    flow = (chunk or module.flow_settings.flow_steps) * encoder_activations(encoder, num_registers + context)
    # Chunks are computed after the reconstruction has been differentiated and freed.
    activations = tokenizer + flow if chunk is None else max(tokenizer, flow)
    return Bytes(
        states=12 * parameters + moments + 2 * parameters,  # weights, gradients, average; copies in bfloat16
        activations=activations,
        checkpoint=8 * parameters + moments,
        gradients=4 * parameters,
    )


def encoder_activations(encoder: GenerativeEncoder, num_tokens: int) -> int:
    """Bytes that a pass keeps for its backward pass: all blocks' insides, or their inputs and one block's insides."""
    inside = BLOCK_BYTES * num_tokens * encoder.width
    if not encoder.gradient_checkpointing:
        return encoder.depth * inside
    return encoder.depth * 4 * num_tokens * encoder.width + inside


# ------------------------------------------------------------------ steps


@dataclass(frozen=True)
class Step:
    """A training step on some GPUs; times in seconds, sizes in bytes."""

    model: str
    num_gpus: int
    samples: int
    share: int
    batches: int
    tokens: int
    flops: int
    memory: int
    sent: float
    computing: float
    reducing: float
    optimizing: float
    reading: float
    read_rate: float

    @property
    def bound(self) -> str:
        """What takes longest; reading goes on beside the others, all-reduce after them in the worst case."""
        times = {
            "compute": self.computing,
            "all-reduce": self.reducing,
            "optimizer": self.optimizing,
            "data": self.reading,
        }
        return max(times, key=lambda name: times[name])

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self.samples / max(self.computing + self.reducing + self.optimizing, self.reading)


def step(model: str, num_gpus: int, hardware: Hardware) -> Step:
    """A step of a shipped config, its samples divided among GPUs."""
    module, settings = load(MODELS[model])
    own_batch = settings["data"]["init_args"]["batch_size"]
    is_image = "image" in module.adapters
    samples = max(1024 if is_image else own_batch, SMALLEST_SHARE * num_gpus)
    share = samples // num_gpus
    batch = min(share, own_batch)
    flops = sample_flops(module).training(module.flow_settings.flow_steps, module.encoder.gradient_checkpointing)
    held = memory(module)
    count = 256 if is_image else QM9_ATOMS
    context = 0 if module.encoder.context_start is None else len(module.encoder.context_embedding)
    denoised = module.flow_settings.flow_steps * (count + context)
    tokens = (2 * count + context) + denoised + count  # tokenized, denoised, decoded
    link = hardware.link_in_machine if num_gpus <= hardware.gpus_per_machine else hardware.link_between
    sent = 2 * (num_gpus - 1) / num_gpus * held.gradients
    rate = hardware.matrix_rate * hardware.efficiency
    computing = share * flops / rate
    # The optimizer and the average read and write what a checkpoint holds, and read the gradients.
    optimizing = muon_flops(module) / rate + (2 * held.checkpoint + held.gradients) / hardware.memory_rate
    reading = share / (hardware.workers * hardware.image_rate) if is_image else 0.0
    seconds = max(computing + sent / link + optimizing, reading)
    return Step(
        model,
        num_gpus,
        samples,
        batch,
        math.ceil(share / batch),
        tokens * samples,
        flops * samples,
        held.states + batch * held.activations,
        sent,
        computing,
        sent / link,
        optimizing,
        reading,
        samples * hardware.image_bytes / seconds if is_image else 0.0,
    )


def step_table(hardware: Hardware) -> list[str]:
    """Table of steps by model and GPUs, in Markdown."""
    titles = ("model", "GPUs", "samples a step", "a batch of a GPU", "M tokens", "PFLOP", "GiB a GPU", "GB sent a GPU")
    times = ("s compute", "s all-reduce", "s optimizer", "s data", "bound by", "samples/s", "MB/s read")
    lines = ["| " + " | ".join(titles + times) + " |", "|---" * 15 + "|"]
    for row in (step(model, num_gpus, hardware) for model in MODELS for num_gpus in NUM_GPUS):
        lines.append(
            f"| {row.model} | {row.num_gpus:,} | {row.samples:,} | {row.share} | {row.tokens / 1e6:.3g} "
            f"| {row.flops / 1e15:.3g} | {row.memory / 2**30:.1f} | {row.sent / 1e9:.2f} | {row.computing:.3g} "
            f"| {row.reducing:.2g} | {row.optimizing:.2g} | {row.reading:.2g} | {row.bound} | {row.rate:,.0f} "
            f"| {row.read_rate / 1e6:,.0f} |"
        )
    return lines


def model_table(hardware: Hardware) -> list[str]:
    """Table of what a model takes whatever the GPUs, in Markdown."""
    lines = [
        "| model | M parameters | flow steps | GFLOP a sample: tokenize, denoise (each step), decode, LPIPS "
        "| training, GFLOP a sample | states, GiB | activations, MiB a sample | last.ckpt, GB |",
        "|---" * 8 + "|",
    ]
    for name, config in MODELS.items():
        module, _ = load(config)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        flops, held = sample_flops(module), memory(module)
        parts = f"{flops.tokenize / 1e9:.3g}, {flops.denoise / 1e9:.3g}, {flops.decode / 1e9:.3g}"
        total = flops.training(module.flow_settings.flow_steps, module.encoder.gradient_checkpointing)
        lines.append(
            f"| {name} | {parameters / 1e6:.1f} | {module.flow_settings.flow_steps} | {parts}, {flops.lpips / 1e9:.3g} "
            f"| {total / 1e9:,.0f} | {held.states / 2**30:.1f} | {held.activations / 2**20:.0f} "
            f"| {held.checkpoint / 1e9:.1f} |"
        )
    return lines


def shard_table(hardware: Hardware) -> list[str]:
    """Table of how ImageNet is best cut into shards, in Markdown: at least one for each worker of all processes."""
    lines = ["| GPUs | workers | images a shard, at most | MB a shard | shards |", "|---" * 5 + "|"]
    for num_gpus in NUM_GPUS:
        workers = num_gpus * hardware.workers
        images = min(2000, IMAGENET_IMAGES // workers)
        size, count = images * hardware.image_bytes / 1e6, math.ceil(IMAGENET_IMAGES / images)
        lines.append(f"| {num_gpus:,} | {workers:,} | {images:,} | {size:.1f} | {count:,} |")
    return lines


def tables(hardware: Hardware = Hardware()) -> str:
    """All tables as Markdown."""
    return "\n\n".join("\n".join(make(hardware)) for make in (model_table, step_table, shard_table))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/scaling.md")
    arguments = parser.parse_args()
    text = tables()
    print(text)
    if arguments.write:
        page = REPOSITORY / "docs" / "scaling.md"
        before, _, rest = page.read_text().partition(BEGIN)
        page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
