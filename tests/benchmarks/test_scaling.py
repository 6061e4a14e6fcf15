"""What docs/scaling.md says of FLOPs and memory: by formula there, here counted by PyTorch."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import scaling
from unite.engine.optimizer import MuonAdamW
from unite.modalities.image.adapter import ImageAdapter
from unite.modalities.image.metrics.perceptual import BLOCK_CHANNELS
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.module import UniteModule
from unite.nn.blocks import Block, RotaryAngles
from unite.nn.decoder import DecoderBlock
from unite.nn.generative_encoder import GenerativeEncoder, Tokens

ATOMS = 7


def images(checkpointing: bool = False) -> tuple[UniteModule, Any]:
    encoder = GenerativeEncoder(
        "XS",
        8,
        depth=3,
        width=48,
        num_heads=2,
        context_start=1,
        context_length=3,
        gradient_checkpointing=checkpointing,
    )
    adapter = ImageAdapter(20, 5, num_classes=10, decoder_size="XS", embedding_width=40, perceptual_weight=0.0)
    module = UniteModule(encoder, {"image": adapter}, flow_steps=3)
    return module, {"image": {"images": torch.rand(1, 3, 20, 20), "labels": torch.tensor([1])}}


def molecules() -> tuple[UniteModule, Any]:
    from torch_geometric.data import Batch, Data

    adapter = MoleculeAdapter(decoder_depth=2, decoder_heads=2, rotate=False)
    module = UniteModule(GenerativeEncoder("XS", 8, depth=3, width=48, num_heads=2), {"molecule": adapter})
    molecule = Data(z=torch.full((ATOMS,), 6), pos=torch.randn(ATOMS, 3))
    return module, {"molecule": Batch.from_data_list([molecule])}


def counted(function: Callable[[], Any]) -> int:
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        warnings.filterwarnings("ignore", ".*self.trainer")
        function()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("make", [images, molecules])
def test_passes_have_the_operations_of_the_formula(make: Callable[[], tuple[UniteModule, Any]]) -> None:
    module, batch = make()
    ((name, samples),) = batch.items()
    adapter = module.adapters[name]
    prepared = adapter.prepare(samples)
    template = adapter.template(prepared)
    registers = adapter.registers(template)
    latents = torch.randn(1, registers.values.shape[1], 8)
    flops = scaling.sample_flops(module, ATOMS)
    tokens: list[Tokens] = []

    def tokenize() -> None:
        tokens.append(adapter.tokens(prepared))
        module.encoder.tokenize(tokens[0], registers, adapter.null_condition())

    with torch.no_grad():
        assert counted(tokenize) == flops.tokenize
        condition = adapter.null_condition()
        assert counted(lambda: module.encoder.denoise(latents, torch.zeros(1), condition, registers)) == flops.denoise
        assert counted(lambda: adapter.decode(latents, template)) == flops.decode


@pytest.mark.parametrize(
    ("make", "checkpointing"), [(images, False), (lambda: images(checkpointing=True), True), (molecules, False)]
)
def test_a_step_has_the_operations_of_the_formula(
    make: Callable[[], tuple[UniteModule, Any]], checkpointing: bool
) -> None:
    module, batch = make()
    found = counted(lambda: module.train().training_step(batch, 0).backward())
    expected = scaling.sample_flops(module, ATOMS).training(module.flow_settings.flow_steps, checkpointing)
    assert abs(found / expected - 1) < 0.03  # data has no gradient


def test_lpips_and_muon_have_the_operations_of_the_formula() -> None:
    convolutions: list[nn.Module] = []
    channels = 3
    for index, block in enumerate(BLOCK_CHANNELS):
        convolutions += [nn.MaxPool2d(2)] if index else []
        for out in block:
            convolutions.append(nn.Conv2d(channels, out, 3, padding=1, device="meta"))
            channels = out
    network = nn.Sequential(*convolutions)
    assert counted(lambda: network(torch.empty(1, 3, 32, 32, device="meta"))) == scaling.lpips_flops(32)
    module, _ = molecules()
    optimizer = MuonAdamW(module.parameter_groups(), module.optimizer_settings)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert counted(optimizer.step) == scaling.muon_flops(module)


def kept_bytes(layer: nn.Module, function: Callable[[], Tensor]) -> int:
    """What a layer keeps for its backward pass, without its weights and their copies in bfloat16."""
    seen: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function()
    shapes = {parameter.shape for parameter in layer.parameters()}
    shapes |= {parameter.mT.shape for parameter in layer.parameters() if parameter.ndim == 2}
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values() if tensor.shape not in shapes)


def test_blocks_keep_as_many_bytes_as_assumed() -> None:
    batch, num_tokens, width = 2, 200, 64
    x = torch.randn(batch, num_tokens, width, requires_grad=True)
    condition = torch.randn(batch, width, requires_grad=True)
    block, decoder_block = Block(width, 2), DecoderBlock(width, 2, 4 * width)
    rotary = RotaryAngles(torch.arange(num_tokens), width // 2)
    size = batch * num_tokens * width
    kept = kept_bytes(block, lambda: block(x, condition, rotary, None)) / size
    assert kept == pytest.approx(scaling.BLOCK_BYTES, rel=0.05)
    kept = kept_bytes(decoder_block, lambda: decoder_block(x, None)) / size
    assert kept == pytest.approx(scaling.DECODER_BLOCK_BYTES, rel=0.05)


def test_page_has_the_tables_of_the_script() -> None:
    page = (scaling.REPOSITORY / "docs" / "scaling.md").read_text()
    on_page = page.partition(scaling.BEGIN)[2].partition(scaling.END)[0].strip()
    assert on_page == scaling.tables(), "run `python benchmarks/scaling.py --write`"


def test_more_gpus_share_the_work() -> None:
    hardware = scaling.Hardware()
    one, eight = (scaling.step("B", num_gpus, hardware) for num_gpus in (1, 8))
    assert (one.samples, one.share * one.batches) == (eight.samples, 8 * eight.share * eight.batches)
    assert one.computing == pytest.approx(8 * eight.computing)
    assert one.sent == 0
    parameters = sum(parameter.numel() for parameter in scaling.load("imagenet256_b")[0].parameters())
    assert eight.sent == pytest.approx(2 * 7 / 8 * 4 * parameters)
    slow = scaling.step("B", 8, scaling.Hardware(image_rate=1.0))
    assert (eight.bound, slow.bound) == ("compute", "data")
