"""The network behind fid_cifar_small: it is there, it knows the classes, and it stands still."""

from pathlib import Path

import numpy as np
import pytest
import torch

from unite.modalities.image.cifar.datamodule import CIFAR10DataModule
from unite.modalities.image.metrics.cifar_features import WEIGHTS, load_cifar_features
from unite.modalities.image.metrics.generation import ImageGenerationMetrics, feature_network
from unite.modalities.image.metrics.inception import WEIGHTS_VARIABLE


def test_weights_come_with_the_package() -> None:
    assert WEIGHTS.stat().st_size < 1_000_000
    before = torch.get_rng_state()
    network = load_cifar_features()
    assert torch.equal(torch.get_rng_state(), before)
    network.train()
    assert not any(part.training for part in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    images = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features, logits = network(images)
    assert features.shape == (6, 128)
    assert logits.shape == (6, 10)
    alone, _ = network(images[:1])
    assert torch.allclose(alone[0], features[0], atol=1e-5)  # no statistics of the batch


def test_distances_are_named_after_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    network = feature_network(CIFAR10DataModule())
    assert network is not None
    metric = ImageGenerationMetrics(network, reference_images=lambda n, rank: iter([torch.zeros(9, 3, 32, 32).byte()]))
    metric.update([np.full((32, 32, 3), value, dtype=np.uint8) for value in range(9)])
    assert {"fid_cifar_small", "kid_cifar_small", "inception_score_cifar_small"} <= metric.compute().keys()


def test_where_inception_is_it_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "inception.pth"))
    assert CIFAR10DataModule().feature_network() is None
