"""A small network that tells the classes of CIFAR-10 apart; its features make `fid_cifar_small`, in place of FID.

Its weights come with the package; `python benchmarks/cifar_networks.py features` trains them in minutes on one core.
Numbers made with it compare models of CIFAR-10 with one another, and with nothing else.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from unite.files.checked import load_checked
from unite.modalities.image.metrics.features import FeatureNetwork

WEIGHTS = Path(__file__).with_name("cifar_small.safetensors")
SIZE = 32


class CifarFeatures(FeatureNetwork):
    """Four convolutions with batch normalisation; the features are the means of the last one's channels."""

    name = "cifar_small"
    num_features = 128
    num_logits = 10

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(3, 32),
            nn.MaxPool2d(2),
            *_convolution(32, 64),
            nn.MaxPool2d(2),
            *_convolution(64, 128),
            nn.MaxPool2d(2),
            *_convolution(128, self.num_features),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(self.num_features, self.num_logits)

    def classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 128) and logits (B, 10) of uint8 images (B, 3, 32, 32), with gradients."""
        features = self.body(images.float() / 127.5 - 1)
        return features, self.head(features)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 128) and logits (B, 10) of uint8 images; gray ones count as colour."""
        return self.classify(images.expand(-1, 3, -1, -1))


def _convolution(before: int, after: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()


def load_cifar_features() -> CifarFeatures:
    """The network with the weights of the package.

    Raises:
        DamagedFileError: The file with the weights is damaged.
    """
    tensors, _ = load_checked(WEIGHTS)
    with torch.random.fork_rng(devices=[]):
        network = CifarFeatures()
    network.load_state_dict(tensors)  # halves, into floats
    return network.freeze()
