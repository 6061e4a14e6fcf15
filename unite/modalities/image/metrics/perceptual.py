"""LPIPS: how different two images look, as distance of features of VGG16 (Zhang et al. 2018, arXiv:1801.03924).

Own code, because torchmetrics' version needs torchvision. The small linear heads come with torchmetrics; the weights
of VGG16 are a file the user names. Inputs are scaled to [-1, 1], which the heads are calibrated for, and there is no
dropout; the released training code (arXiv:2603.22283) did otherwise by mistake.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from unite.errors import UserError
from unite.files.weights import VGG16

BLOCK_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the convolutions of VGG16; features are read after each block, before its pooling."""

SMALLEST_IMAGE = 16
"""Pixels along an edge that survive the four poolings."""


class PerceptualDistance(nn.Module):
    """LPIPS on VGG16, frozen.

    Args:
        features: Weights of the convolutions under torchvision's names, ``features.0.weight`` and so on; other
            entries, such as the classifier's, do not matter.
        heads: Weights of the five 1x1 layers, ``lin0.model.1.weight`` and so on.

    Raises:
        UserError: The weights are of another network.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, features: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1))
        self.blocks = nn.ModuleList()
        channels, number = 3, 0  # the number under which torchvision counts layers
        for index, block_channels in enumerate(BLOCK_CHANNELS):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if index else []
            number += len(layers)
            for out_channels in block_channels:
                convolution = nn.Conv2d(channels, out_channels, kernel_size=3, padding=1)
                for name, parameter in convolution.named_parameters():
                    _copy_weight(parameter, features, f"features.{number}.{name}")
                layers += [convolution, nn.ReLU()]
                channels, number = out_channels, number + 2
            self.blocks.append(nn.Sequential(*layers))
        for index, block_channels in enumerate(BLOCK_CHANNELS):
            head = torch.empty(1, block_channels[-1], 1, 1)
            _copy_weight(head, heads, f"lin{index}.model.1.weight")
            self.register_buffer(f"head_{index}", head)
        self.requires_grad_(False)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Distances (B,) of images in [0, 1], shapes (B, 3, H, W) or (B, 1, H, W); values beyond are not cut off."""
        both = torch.cat((images, others))
        both = both.expand(-1, 3, -1, -1)
        hidden = (2 * both - 1 - self.shift) / self.scale
        total = torch.zeros(len(images), device=images.device)
        for index, block in enumerate(self.blocks):
            hidden = block(hidden)
            directions = hidden.float() / (torch.linalg.vector_norm(hidden.float(), dim=1, keepdim=True) + 1e-10)
            mine, theirs = directions.chunk(2)
            head: Tensor = self.get_buffer(f"head_{index}")
            total = total + ((mine - theirs).square() * head).sum(dim=1).mean(dim=(1, 2))
        return total


def load_perceptual_distance(path: str | None, image_size: int) -> PerceptualDistance | None:
    """The network with the weights of a file; None, with a word about it, if no file is named.

    Args:
        path: Weight file of VGG16; None takes the one that ``UNITE_VGG16_WEIGHTS`` names.
        image_size: Pixels along an edge of the images to compare.

    Raises:
        UserError: The file is missing, damaged or of another network, or the images are too small.
    """
    source = VGG16.setting if path else VGG16.variable
    file = VGG16.named(path)
    if file is None:
        rank_zero_warn(
            f"no VGG16 weights: training runs on L1 without LPIPS. Name the file {VGG16.file} of torchvision in "
            f"{VGG16.setting} or {VGG16.variable}, or set perceptual_weight to 0 to run without these words"
        )
        return None
    if image_size < SMALLEST_IMAGE:
        raise UserError(
            f"LPIPS needs images of at least {SMALLEST_IMAGE} pixels, not {image_size}: set perceptual_weight to 0"
        )
    if not file.is_file():
        raise UserError(f"{source} names {file}, which is no file; it takes the weights of VGG16")
    try:
        features = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{source} names {file}, which torch.load cannot read; it takes the weights of VGG16"
        ) from error
    if not isinstance(features, Mapping):
        raise UserError(f"{source} names {file}, which holds no weights by name; it takes those of VGG16")
    try:
        return PerceptualDistance(features, linear_heads())
    except UserError as error:
        raise UserError(f"{source} names {file}, which is of another network than VGG16: {error}") from error


def _copy_weight(target: Tensor, weights: Mapping[str, Tensor], name: str) -> None:
    found = weights.get(name)
    if found is None or found.shape != target.shape:
        there = "missing" if found is None else f"of shape {tuple(found.shape)}"
        raise UserError(f"{name} is {there}, and should be of shape {tuple(target.shape)}")
    with torch.no_grad():
        target.copy_(found)


def linear_heads() -> Mapping[str, Tensor]:
    """The heads of LPIPS 0.1 for VGG16, which torchmetrics carries (found without importing its torchvision parts)."""
    package = importlib.util.find_spec("torchmetrics")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0], "functional", "image", "lpips_models", "vgg.pth")
    heads: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return heads
