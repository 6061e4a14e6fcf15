"""Description lengths against closed forms."""

import math
from collections import Counter

import pytest
import torch

from tests.toy_modality.curves import CurveAdapter
from unite.analysis.compression import (
    BIN_WIDTH,
    describe,
    entropy_bits,
    measure_compression,
    part_of,
)
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder


def tiny_module(weight_sharing: bool = True) -> UniteModule:
    encoder = GenerativeEncoder(
        "XS", latent_channels=4, depth=2, width=32, num_heads=2, context_start=1, context_length=2
    )
    return UniteModule(encoder, {"curve": CurveAdapter()}, weight_sharing=weight_sharing)


@pytest.mark.parametrize(("std", "bin_width"), [(0.02, 2**-11), (1.0, 0.01), (3.0, 0.5)])
def test_entropy_of_gaussian_weights_is_the_closed_form(std: float, bin_width: float) -> None:
    weights = std * torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    expected = 0.5 * math.log2(2 * math.pi * math.e * std**2) - math.log2(bin_width)
    assert entropy_bits(weights, bin_width) == pytest.approx(expected, abs=0.01)


def test_entropy_of_simple_tensors() -> None:
    assert entropy_bits(torch.zeros(100)) == 0
    assert entropy_bits(torch.ones(7)) == 0
    assert entropy_bits(torch.arange(8) * 0.5, 0.5) == pytest.approx(3)
    assert entropy_bits(torch.tensor([0.0, 0.2, -0.2, 1.0]), 1.0) == pytest.approx(0.25 * 2 + 0.75 * math.log2(4 / 3))
    # Half the bin is one bit more, as long as bins stay full.
    weights = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    assert entropy_bits(weights, 2**-9) - entropy_bits(weights, 2**-8) == pytest.approx(1, abs=0.01)


def test_parts_are_what_they_say() -> None:
    encoder = tiny_module().encoder
    parts = {name: part_of(name) for name, _ in encoder.named_parameters()}
    assert set(Counter(parts.values())) == {"normalization", "functional", "other"}
    assert parts["blocks.0.modulation.weight"] == "normalization"
    assert parts["blocks.1.attention.query_norm.weight"] == "normalization"
    assert parts["latent_norm.bias"] == "normalization"
    assert parts["final_modulation.bias"] == "normalization"
    assert parts["blocks.0.attention.qkv.weight"] == "functional"
    assert parts["blocks.1.mlp.out.bias"] == "functional"
    assert parts["time_embedding.mlp.0.weight"] == "other"
    assert parts["context_embedding"] == "other"


def test_parts_sum_to_the_total() -> None:
    encoder = tiny_module().encoder
    described = describe(encoder.named_parameters())
    total = described["parts"].pop("total")
    assert total["parameters"] == sum(weights.numel() for weights in encoder.parameters())
    for key in ("parameters", "megabytes"):
        assert total[key] == pytest.approx(sum(part[key] for part in described["parts"].values()))
    name, item = "blocks.0.attention.qkv.weight", described["tensors"]["blocks.0.attention.qkv.weight"]
    assert item["bits_per_weight"] == pytest.approx(entropy_bits(encoder.get_parameter(name)))
    assert 0 < total["saturation"] <= 1


def test_initial_weights_are_those_of_a_new_network_and_random_ones_have_no_zeros() -> None:
    module = tiny_module()
    with torch.no_grad():
        for parameter in module.encoder.parameters():
            parameter.fill_(0.25)
    result = measure_compression(module)
    states = result["networks"]["encoder"]
    assert states["trained"]["parts"]["total"]["megabytes"] == 0
    modulation = "blocks.0.modulation.weight"
    assert states["initial"]["tensors"][modulation]["bits_per_weight"] == 0
    # Xavier uniform in [-a, a]: log2(2 a / bin) bits, less what 6,144 entries cannot show.
    a = math.sqrt(6 / (32 + 6 * 32))
    weights = torch.empty(6 * 32 * 32).uniform_(-a, a, generator=torch.Generator().manual_seed(1))
    found = states["random"]["tensors"][modulation]["bits_per_weight"]
    assert found == pytest.approx(entropy_bits(weights, BIN_WIDTH), abs=0.02)
    functional = "blocks.0.attention.qkv.weight"
    assert states["random"]["tensors"][functional] == states["initial"]["tensors"][functional]
    assert measure_compression(module)["networks"] == result["networks"]


def test_separate_networks_are_counted_apart_and_together() -> None:
    result = measure_compression(tiny_module(weight_sharing=False))
    assert not result["is_shared"]
    parts = {name: states["trained"]["parts"] for name, states in result["networks"].items()}
    for part in ("normalization", "functional", "other", "total"):
        both = parts["encoder"][part]["megabytes"] + parts["denoiser"][part]["megabytes"]
        assert parts["both"][part]["megabytes"] == pytest.approx(both)
    assert measure_compression(tiny_module())["networks"].keys() == {"encoder"}
