"""FID of one pair of sets by three programs: ours, torchmetrics', and the formula that clean-fid and pytorch-fid use.

clean-fid needs torchvision, so its formula (Heusel et al. 2017, with scipy's root of a matrix) stands here in words of
our own. Its function, called once by hand without its networks, gave the same to 3e-14 where covariances have full
rank.
"""

import warnings

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from unite.modalities.frechet import distance_of_normals
from unite.modalities.image.metrics.features import FeatureNetwork
from unite.modalities.image.metrics.generation import ImageGenerationMetrics
from unite.modalities.image.metrics.inception import InceptionV3


class RandomFeatures(FeatureNetwork):
    """A convolution with random weights, rectified, as the features of Inception are."""

    name = "random"
    num_features = 24
    num_logits = 4

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, self.num_features, 4, stride=4)
        self.freeze()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.convolution(images.float() / 255).relu().mean(dim=(2, 3))
        return features, features[:, : self.num_logits]


class FeaturesAlone(nn.Module):
    """What torchmetrics takes: a network that gives features and nothing else."""

    def __init__(self, network: FeatureNetwork) -> None:
        super().__init__()
        self.network = network
        self.num_features = network.num_features

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images)[0]
        return features.double()


def published(features: Tensor, others: Tensor) -> float:
    """|m - m'|² + tr(S + S' - 2 (S S')^½), with the root of the product as a matrix."""
    first, second = features.double().numpy(), others.double().numpy()
    mean, other_mean = first.mean(axis=0), second.mean(axis=0)
    covariance, other_covariance = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Matrix is singular")  # fewer images than features
        root = np.trace(sqrtm(covariance @ other_covariance)).real
    return float(((mean - other_mean) ** 2).sum() + np.trace(covariance) + np.trace(other_covariance) - 2 * root)


def two_sets(num: int, size: int) -> tuple[Tensor, Tensor]:
    """Images with structure at several scales, so that features differ in more than noise."""
    generator = torch.Generator().manual_seed(0)
    sets = []
    for brightness in (1.0, 0.8):
        coarse = nn.functional.interpolate(torch.rand(num, 3, 4, 4, generator=generator), size)
        fine = torch.rand(num, 3, size, size, generator=generator)
        sets.append((255 * brightness * (0.7 * coarse + 0.3 * fine)).to(torch.uint8))
    return sets[0], sets[1]


def assert_the_same_by_all_three(network: FeatureNetwork, num: int, size: int, tolerance: float) -> None:
    generated, reference = two_sets(num, size)
    metric = ImageGenerationMetrics(network, reference_images=lambda *_: iter([reference]), show_progress=False)
    metric.update(list(generated.permute(0, 2, 3, 1).numpy()))
    found = float(metric.compute()[network.metric("fid")])

    theirs = FrechetInceptionDistance(feature=FeaturesAlone(network))
    for images, is_real in ((reference, True), (generated, False)):
        for part in images.split(64):
            theirs.update(part, real=is_real)

    assert found == pytest.approx(float(theirs.compute()), rel=tolerance)
    features = [torch.cat([network(part)[0] for part in images.split(64)]) for images in (generated, reference)]
    assert found == pytest.approx(published(*features), rel=tolerance)
    assert found > 0.01 * float(features[0].var(dim=0).sum())  # no comparison of zeros


def test_fid_is_the_same_by_three_programs() -> None:
    torch.manual_seed(0)
    assert_the_same_by_all_three(RandomFeatures(), num=200, size=16, tolerance=1e-6)


class EverySixteenth(FeatureNetwork):
    """Inception with random weights, and 128 of its 2,048 features: the root of a whole product takes an hour."""

    name = "inception_random"
    num_features = 128
    num_logits = 4

    def __init__(self) -> None:
        super().__init__()
        self.inception = InceptionV3()
        self.freeze()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.inception(images)
        return features[:, ::16], logits[:, : self.num_logits]


@pytest.mark.slow
def test_fid_of_inception_with_random_weights_is_the_same_by_three_programs() -> None:
    # 128 features of 16 images: covariances of rank 15.
    torch.manual_seed(0)
    assert_the_same_by_all_three(EverySixteenth(), num=16, size=32, tolerance=1e-4)


def test_distance_of_covariances_without_full_rank() -> None:
    # All along the first axis, so that it is as in one dimension: (2 - 0)² + (3 - 1)².
    first, second = torch.zeros(5, 5, dtype=torch.float64), torch.zeros(5, 5, dtype=torch.float64)
    first[0, 0], second[0, 0] = 9, 1
    mean = torch.tensor([2.0, 0, 0, 0, 0], dtype=torch.float64)
    assert float(distance_of_normals(mean, first, 0 * mean, second)) == pytest.approx(8)
