"""How many bits the weights of a Generative Encoder take to write down, by what they serve.

The description length of a tensor is the number of its entries times the Shannon entropy of their histogram, tensor by
tensor: what an ideal entropy coder needs for weights rounded to the bin width, without its code book (arXiv:2603.22283,
section 5, which does not name its bins). The bin width is absolute and the same for all tensors, ``2**-15`` (3.1e-5)
by default: with it the released size B with Xavier-uniform matrices comes to 60.6 MB for normalization and 121.1 MB
for function, where the paper gives 60.0 and 119.2 MB for random weights. Averaged weights, where the run keeps some,
in float32.

Two limits. A histogram of n entries has at most log2(n) bits per entry, so that a tensor with fewer entries than
occupied bins looks shorter than its distribution; ``saturation`` tells how near the mean is to that. And Gaussian
weights of deviation s have log2(s sqrt(2 pi e)) - log2(bin) bits as long as s is well above the bin.
"""

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from unite.analysis.loading import fresh_module
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder

BIN_WIDTH = 2.0**-15
PARTS = {
    "normalization": "adaptive norm: modulations, and the weights of all norms",
    "functional": "attention and MLP",
    "other": "embeddings of latents, time and context; output layer",
}
STATES = {
    "trained": "as in the checkpoint",
    "initial": "a new network of the same settings: modulations and output layer start at zero and cost nothing",
    "random": "the initial network with its zero matrices drawn like the others (Xavier uniform), as in the paper",
}
BITS_PER_MEGABYTE = 8e6


def entropy_bits(weights: Tensor, bin_width: float = BIN_WIDTH) -> float:
    """Entropy in bits per entry of the histogram of a tensor, with bins of ``bin_width`` around its multiples."""
    bins = (weights.detach().double().flatten() / bin_width).round()
    shares = bins.unique(return_counts=True)[1].double() / bins.numel()
    return float(-(shares * shares.log2()).sum()) + 0.0  # no minus zero


def part_of(name: str) -> str:
    """Which of ``PARTS`` a parameter of the Generative Encoder belongs to."""
    if "norm" in name or "modulation" in name:
        return "normalization"
    if name.startswith("blocks."):  # what is left of a block is attention and MLP
        return "functional"
    return "other"


def describe(named: Iterable[tuple[str, Tensor]], bin_width: float = BIN_WIDTH) -> dict[str, Any]:
    """Description length of parameters by part and by tensor.

    Args:
        named: Parameters by name, as ``encoder.named_parameters()`` gives them.
        bin_width: Width of the bins.

    Returns:
        ``parts``: parameters, megabytes, bits per weight and saturation of each part and in ``total``; ``tensors``:
        part, number of entries, standard deviation and bits per entry.
    """
    tensors: dict[str, dict[str, Any]] = {}
    for name, weights in named:
        tensors[name] = {
            "part": part_of(name),
            "entries": weights.numel(),
            "std": float(weights.detach().double().std(correction=0)),
            "bits_per_weight": entropy_bits(weights, bin_width),
        }
    parts = {}
    for part in (*PARTS, "total"):
        chosen = [item for item in tensors.values() if part in (item["part"], "total")]
        entries = sum(item["entries"] for item in chosen)
        bits = sum(item["entries"] * item["bits_per_weight"] for item in chosen)
        limit = sum(item["entries"] * math.log2(item["entries"]) for item in chosen)
        parts[part] = {
            "parameters": entries,
            "megabytes": bits / BITS_PER_MEGABYTE,
            "bits_per_weight": bits / entries if entries else math.nan,
            "saturation": bits / limit if limit else math.nan,
        }
    return {"parts": parts, "tensors": tensors}


def measure_compression(module: UniteModule, bin_width: float = BIN_WIDTH, seed: int = 0) -> dict[str, Any]:
    """Description length of the encoder, and of the denoiser where it is a network of its own, trained and initial.

    Args:
        module: The trained model.
        bin_width: Width of the histogram's bins.
        seed: Of the initial network. It has the distribution of the weights that training began with, not their values.

    Returns:
        Plain values: ``networks[network][state]`` as :func:`describe` gives them; with separate weights there is
        ``both`` as well, the two together.
    """
    fresh = fresh_module(module, seed)
    networks: dict[str, dict[str, GenerativeEncoder]] = {
        "encoder": {"trained": module.encoder, "initial": fresh.encoder, "random": _without_zeros(fresh.encoder, seed)}
    }
    if module.separate_denoiser is not None and fresh.separate_denoiser is not None:
        networks["denoiser"] = {
            "trained": module.separate_denoiser,
            "initial": fresh.separate_denoiser,
            "random": _without_zeros(fresh.separate_denoiser, seed + 1),
        }
    described = {
        name: {state: describe(encoder.named_parameters(), bin_width) for state, encoder in states.items()}
        for name, states in networks.items()
    }
    if len(networks) > 1:
        described["both"] = {
            state: describe(
                (
                    (f"{name} ({network})", weights)
                    for network, states in networks.items()
                    for name, weights in states[state].named_parameters()
                ),
                bin_width,
            )
            for state in STATES
        }
    return {
        "bin_width": bin_width,
        "precision": "float32",
        "is_shared": module.separate_denoiser is None,
        "definitions": {"parts": PARTS, "states": STATES},
        "networks": described,
    }


@torch.no_grad()
def _without_zeros(encoder: GenerativeEncoder, seed: int) -> GenerativeEncoder:
    """A copy in which matrices that start at zero are drawn as the others are."""
    filled = copy.deepcopy(encoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in filled.modules():
            if isinstance(layer, nn.Linear) and not layer.weight.any():
                layer.weight.copy_(nn.init.xavier_uniform_(torch.empty_like(layer.weight, device="cpu")))
    return filled
