"""InceptionV3 as FID means it: the network of 2015 with 1,008 classes, not torchvision's later one.

It differs from the network in the paper (Szegedy et al. 2016) in what FID's first code took over from TensorFlow:
average pooling does not count the padding, the last block pools by maximum, and images are resized to 299 pixels by
TensorFlow 1's bilinear rule. Parameters are named as in torch-fidelity, whose weight file
(`weights-inception-2015-12-05-6726825d.pth`, the same as pytorch-fid's) it loads. No weights come with this package:
name a file with an argument or in the environment variable `UNITE_INCEPTION_WEIGHTS`.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unite.errors import UserError
from unite.files.weights import INCEPTION
from unite.modalities.image.metrics.features import FeatureNetwork

WEIGHTS_VARIABLE = INCEPTION.variable
WEIGHTS_HINT = f"{INCEPTION.file} of torch-fidelity's release v0.2.0"

INPUT_SIZE = 299

# A convolution is its name, output channels, kernel, and stride; a chain is a list of these. The end of a chain may
# be two convolutions side by side (a tuple), its beginning a pooling.
Kernel = int | tuple[int, int]
Conv = tuple[str, int, Kernel, int]
Chain = list["str | Conv | tuple[Conv, Conv]"]


def _block_35(pooled: int) -> list[Chain]:
    """Chains of the blocks at 35 x 35 pixels."""
    return [
        [("branch1x1", 64, 1, 1)],
        [("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 1)],
        [("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 1)],
        ["average", ("branch_pool", pooled, 1, 1)],
    ]


def _block_17(inner: int) -> list[Chain]:
    """Chains of the blocks at 17 x 17 pixels."""
    wide, tall = (1, 7), (7, 1)
    return [
        [("branch1x1", 192, 1, 1)],
        [("branch7x7_1", inner, 1, 1), ("branch7x7_2", inner, wide, 1), ("branch7x7_3", 192, tall, 1)],
        [
            ("branch7x7dbl_1", inner, 1, 1),
            ("branch7x7dbl_2", inner, tall, 1),
            ("branch7x7dbl_3", inner, wide, 1),
            ("branch7x7dbl_4", inner, tall, 1),
            ("branch7x7dbl_5", 192, wide, 1),
        ],
        ["average", ("branch_pool", 192, 1, 1)],
    ]


def _block_8(pooling: str) -> list[Chain]:
    """Chains of the blocks at 8 x 8 pixels."""
    wide, tall = (1, 3), (3, 1)
    return [
        [("branch1x1", 320, 1, 1)],
        [("branch3x3_1", 384, 1, 1), (("branch3x3_2a", 384, wide, 1), ("branch3x3_2b", 384, tall, 1))],
        [
            ("branch3x3dbl_1", 448, 1, 1),
            ("branch3x3dbl_2", 384, 3, 1),
            (("branch3x3dbl_3a", 384, wide, 1), ("branch3x3dbl_3b", 384, tall, 1)),
        ],
        [pooling, ("branch_pool", 192, 1, 1)],
    ]


_BLOCKS: dict[str, list[Chain]] = {
    "Mixed_5b": _block_35(32),
    "Mixed_5c": _block_35(64),
    "Mixed_5d": _block_35(64),
    "Mixed_6a": [
        [("branch3x3", 384, 3, 2)],
        [("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 2)],
        ["shrink"],
    ],
    "Mixed_6b": _block_17(128),
    "Mixed_6c": _block_17(160),
    "Mixed_6d": _block_17(160),
    "Mixed_6e": _block_17(192),
    "Mixed_7a": [
        [("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 2)],
        [
            ("branch7x7x3_1", 192, 1, 1),
            ("branch7x7x3_2", 192, (1, 7), 1),
            ("branch7x7x3_3", 192, (7, 1), 1),
            ("branch7x7x3_4", 192, 3, 2),
        ],
        ["shrink"],
    ],
    "Mixed_7b": _block_8("average"),
    "Mixed_7c": _block_8("maximum"),
}


class ConvUnit(nn.Module):
    """Convolution, batch norm, ReLU. Stride 1 keeps the size unless `padded` is False; stride 2 never pads.

    Args:
        channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Size of the kernel.
        stride: Stride.
        padded: Whether to pad at stride 1.
    """

    def __init__(self, channels: int, out_channels: int, kernel: Kernel, stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if padded and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(channels, out_channels, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Activations."""
        return F.relu(self.bn(self.conv(x)))


class MixedBlock(nn.Module):
    """Chains of convolutions that start from the same input; what they end in is concatenated.

    Args:
        channels: Channels of the input.
        chains: What to compute.
    """

    def __init__(self, channels: int, chains: list[Chain]) -> None:
        super().__init__()
        self.chains = chains
        self.out_channels = 0
        for chain in chains:
            width = [channels]
            for step in chain:
                if isinstance(step, str):
                    continue
                units = [step] if isinstance(step[0], str) else list(step)
                for name, out_channels, kernel, stride in units:
                    self.add_module(name, ConvUnit(sum(width), out_channels, kernel, stride))
                width = [unit[1] for unit in units]
            self.out_channels += sum(width)

    def forward(self, x: Tensor) -> Tensor:
        """Activations, shape (B, out_channels, H', W')."""
        return torch.cat([end for chain in self.chains for end in self._run(chain, x)], dim=1)

    def _run(self, chain: Chain, x: Tensor) -> list[Tensor]:
        ends = [x]
        for step in chain:
            x = torch.cat(ends, dim=1)
            if isinstance(step, str):
                ends = [_pool(step, x)]
            else:
                units = [step] if isinstance(step[0], str) else list(step)
                ends = [self.get_submodule(unit[0])(x) for unit in units]
        return ends


def _pool(kind: str, x: Tensor) -> Tensor:
    if kind == "average":
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    if kind == "maximum":
        return F.max_pool2d(x, 3, stride=1, padding=1)
    return F.max_pool2d(x, 3, stride=2)


class InceptionV3(FeatureNetwork):
    """The network behind FID, with random weights until :meth:`load_state_dict`; see :func:`load_inception`."""

    name = ""
    num_features = 2048
    num_logits = 1008

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvUnit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvUnit(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = ConvUnit(32, 64, 3)
        self.Conv2d_3b_1x1 = ConvUnit(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvUnit(80, 192, 3, padded=False)
        channels = 192
        for name, chains in _BLOCKS.items():
            block = MixedBlock(channels, chains)
            self.add_module(name, block)
            channels = block.out_channels
        self.fc = nn.Linear(channels, self.num_logits)
        self.freeze()

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of images.

        Args:
            images: uint8, shape (B, C, H, W); gray images are taken as colour.

        Returns:
            Features (B, 2048) after the last pooling, and logits (B, 1008) without the bias of the last layer:
            that is how Inception Score has always been computed.
        """
        pixels = images.to(self.fc.weight.dtype).expand(-1, 3, -1, -1)
        x = (resize_like_tensorflow(pixels, INPUT_SIZE) - 128) / 128  # (B, 3, 299, 299)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (B, 64, 147, 147)
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))  # (B, 192, 71, 71)
        x = F.max_pool2d(x, 3, stride=2)
        for name in _BLOCKS:
            x = self.get_submodule(name)(x)  # 35, 17, then 8 pixels of a side
        features = x.mean(dim=(2, 3))  # (B, 2048)
        return features.float(), (features @ self.fc.weight.T).float()


def resize_like_tensorflow(images: Tensor, size: int) -> Tensor:
    """Bilinear resizing in which pixel i of the result lies at i * (old size / new size), as in TensorFlow 1.

    Args:
        images: Shape (B, C, H, W).
        size: Pixels of a side of the result.

    Returns:
        Shape (B, C, size, size).
    """
    for dim in (3, 2):
        old = images.shape[dim]
        place = torch.arange(size, dtype=torch.float32) * (torch.tensor(old, dtype=torch.float32) / size)
        below = place.floor().long().clamp(max=old - 1)
        weight = (place - below).to(images.dtype).view(-1, 1) if dim == 2 else (place - below).to(images.dtype)
        first = images.index_select(dim, below.to(images.device))
        second = images.index_select(dim, (below + 1).clamp(max=old - 1).to(images.device))
        images = torch.lerp(first, second, weight.to(images.device))
    return images


def load_inception(path: str | Path | None = None) -> InceptionV3:
    """The network with weights from a file.

    Args:
        path: A torch file or safetensors; None takes the environment variable `UNITE_INCEPTION_WEIGHTS`.

    Raises:
        UserError: No file is named, it cannot be read, or it is of another network.
    """
    file = INCEPTION.named(path)
    if file is None:
        raise UserError(f"FID needs the weights of Inception: set {WEIGHTS_VARIABLE} to the file {WEIGHTS_HINT}")
    with torch.device("meta"):  # draws no random weights: training must not depend on what metrics are computed
        network = InceptionV3()
    state = _read_weights(file)
    expected = network.state_dict()
    # Counters of training steps; old files lack them.
    counters = {key: torch.tensor(0) for key in expected if key.endswith("num_batches_tracked")}
    state = {key: value.float() for key, value in state.items() if key not in counters}
    needed = set(expected) - set(counters)
    wrong = sorted(needed ^ set(state)) or [key for key in sorted(needed) if state[key].shape != expected[key].shape]
    if wrong:
        raise UserError(
            f"{file} holds the weights of another network than FID's Inception: {len(wrong)} entries differ, "
            f"such as {wrong[0]}; use {WEIGHTS_HINT}"
        )
    network.load_state_dict({**counters, **state}, assign=True)
    return network.freeze()


def _read_weights(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise UserError(f"Inception weights {file} is not a file; set {WEIGHTS_VARIABLE} to {WEIGHTS_HINT}")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise UserError(f"cannot read Inception weights {file}: damaged, or no file of weights") from error
    except Exception as error:  # pickle.UnpicklingError, and what else pickle makes of foreign bytes
        raise UserError(f"cannot read Inception weights {file}: not a file of plain tensors") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file} holds no weights by name; use {WEIGHTS_HINT}")
    return state
