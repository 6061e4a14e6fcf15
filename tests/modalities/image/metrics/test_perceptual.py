"""LPIPS against its formula, and what is said about its weights. Random weights: the true ones are a download."""

import math
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unite.errors import UserError
from unite.files.weights import VGG16
from unite.modalities.image.adapter import ImageAdapter
from unite.modalities.image.metrics.perceptual import (
    BLOCK_CHANNELS,
    PerceptualDistance,
    linear_heads,
    load_perceptual_distance,
)

POOLINGS = (4, 9, 16, 23)
CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
READ_AFTER = (2, 7, 14, 21, 28)


@pytest.fixture(scope="module")
def vgg16() -> dict[str, Tensor]:
    """Random weights under torchvision's names, with the classifier's first layer as a bystander."""
    weights = {"classifier.0.weight": torch.zeros(1)}
    channels = [3, *(c for block in BLOCK_CHANNELS for c in block)]
    generator = torch.Generator().manual_seed(0)
    for number, in_channels, out_channels in zip(CONVOLUTIONS, channels, channels[1:], strict=False):
        shape = (out_channels, in_channels, 3, 3)
        scale = math.sqrt(2 / (9 * in_channels))
        weights[f"features.{number}.weight"] = scale * torch.randn(shape, generator=generator)
        weights[f"features.{number}.bias"] = 0.1 * torch.randn(out_channels, generator=generator)
    return weights


@pytest.fixture(scope="module")
def network(vgg16: dict[str, Tensor]) -> PerceptualDistance:
    return PerceptualDistance(vgg16, linear_heads())


def reference_lpips(vgg16: dict[str, Tensor], image: Tensor, other: Tensor) -> Tensor:
    """Layer by layer under torchvision's numbers; images (B, 3, H, W) in [-1, 1]."""
    heads = linear_heads()
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    first, second = (image - shift) / scale, (other - shift) / scale
    total, num_read = torch.zeros(len(image)), 0
    for number in range(29):
        if number in CONVOLUTIONS:
            weight, bias = vgg16[f"features.{number}.weight"], vgg16[f"features.{number}.bias"]
            first, second = (F.conv2d(x, weight, bias, padding=1).relu() for x in (first, second))
        elif number in POOLINGS:
            first, second = (F.max_pool2d(x, 2) for x in (first, second))
        if number in READ_AFTER:
            units = [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in (first, second)]
            distance = F.conv2d((units[0] - units[1]) ** 2, heads[f"lin{num_read}.model.1.weight"])
            total, num_read = total + distance.mean((1, 2, 3)), num_read + 1
    assert num_read == 5
    return total


def test_distance_equals_the_formula(network: PerceptualDistance, vgg16: dict[str, Tensor]) -> None:
    first, second = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    expected = reference_lpips(vgg16, 2 * first - 1, 2 * second - 1)
    assert expected.min() > 0.01
    torch.testing.assert_close(network(first, second), expected, atol=1e-5, rtol=1e-4)


def test_grey_images_count_as_rgb(network: PerceptualDistance) -> None:
    first, second = torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16)
    colored = network(first.expand(-1, 3, -1, -1), second.expand(-1, 3, -1, -1))
    torch.testing.assert_close(network(first, second), colored)


def test_an_image_has_no_distance_from_itself_and_gradients_are_finite(network: PerceptualDistance) -> None:
    image = torch.zeros(1, 3, 16, 16, requires_grad=True)  # flat images have dead features: 0 / 0 lurks
    distance = network(image, torch.zeros(1, 3, 16, 16))
    assert float(distance.detach()) == 0
    network(image, torch.rand(1, 3, 16, 16)).sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()


def test_adapter_adds_the_term_but_not_the_network(vgg16: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(vgg16, tmp_path / "vgg16.pth")
    adapter = ImageAdapter(16, 4, decoder_size="XS", vgg16_weights=str(tmp_path / "vgg16.pth"), perceptual_weight=0.5)
    adapter.build(32, 4)
    prepared = adapter.prepare({"images": torch.rand(2, 3, 16, 16)})
    prediction = torch.rand(2, 3, 16, 16, requires_grad=True)
    terms = adapter.reconstruction_loss(prediction, prepared)
    assert terms.keys() == {"pixels", "perceptual"}
    assert adapter.loss_weights["perceptual"] == 0.5
    terms["perceptual"].backward()
    assert prediction.grad is not None
    assert prediction.grad.abs().sum() > 0
    assert not any("perceptual" in name or tensor.shape[-2:] == (3, 3) for name, tensor in adapter.state_dict().items())
    assert sum(parameter.numel() for parameter in adapter.parameters()) < 2_000_000


def test_without_weights_training_runs_on_l1_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VGG16.variable, raising=False)
    adapter = ImageAdapter(16, 4, decoder_size="XS")
    adapter.build(32, 4)
    prepared = adapter.prepare({"images": torch.rand(2, 3, 16, 16)})
    with pytest.warns(UserWarning, match=VGG16.variable) as caught:
        terms = [adapter.reconstruction_loss(prepared.images, prepared) for _ in range(3)]
    assert [list(named) for named in terms] == [["pixels"]] * 3
    assert len(caught) == 1


def test_without_weight_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VGG16.variable, raising=False)
    adapter = ImageAdapter(16, 4, decoder_size="XS", perceptual_weight=0)
    adapter.build(32, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter.fit_statistics(None)
    assert adapter.perceptual_distance() is None


def test_the_environment_may_name_the_weights(
    vgg16: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(vgg16, tmp_path / "vgg16.pth")
    monkeypatch.setenv(VGG16.variable, str(tmp_path / "vgg16.pth"))
    assert load_perceptual_distance(None, 16) is not None
    with pytest.raises(UserError, match="at least 16 pixels, not 8: set perceptual_weight to 0"):
        load_perceptual_distance(None, 8)


def test_wrong_weights_are_refused(vgg16: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(UserError, match=r"vgg16_weights names .*weights.pth, which is no file"):
        load_perceptual_distance(str(path), 32)
    path.write_text("hello")
    with pytest.raises(UserError, match="cannot read"):
        load_perceptual_distance(str(path), 32)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="no weights by name"):
        load_perceptual_distance(str(path), 32)
    torch.save({**vgg16, "features.5.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"another network than VGG16: features.5.weight is of shape \(1,\)"):
        load_perceptual_distance(str(path), 32)
    monkeypatch.setenv(VGG16.variable, str(path))
    with pytest.raises(UserError, match=VGG16.variable):
        load_perceptual_distance(None, 32)
