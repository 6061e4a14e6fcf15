"""Metrics of images: against closed forms, other implementations, and one process against two."""

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from tests.support.commands import RunCli
from tests.support.processes import run_two_ranks
from tests.support.samples.image_samples import write_folder
from unite.console import quiet
from unite.errors import UserError
from unite.modalities.image.data import ImageDataModule, ImagesInMemory
from unite.modalities.image.digits import DigitsDataModule
from unite.modalities.image.folders import ImageFolderDataModule
from unite.modalities.image.metrics import digit_features
from unite.modalities.image.metrics import generation as image_metrics
from unite.modalities.image.metrics.features import FeatureNetwork
from unite.modalities.image.metrics.generation import (
    ImageGenerationMetrics,
    _part_of,
    feature_network,
    image_generation_metrics,
)
from unite.modalities.image.metrics.inception import InceptionV3, load_inception, resize_like_tensorflow
from unite.modalities.image.metrics.reconstruction import ImageReconstructionMetrics, psnr, ssim
from unite.modalities.image.metrics.statistics import (
    FeatureStatistics,
    frechet_distance,
    kernel_distance,
    precision_and_recall,
)
from unite.modalities.image.shards.datamodule import WebDatasetDataModule

Images = list[np.ndarray]


class PixelFeatures(FeatureNetwork):
    """The first pixels of an image are its features, its first three are logits."""

    name = "pixels"
    num_features = 6
    num_logits = 3

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = images.flatten(1).float()
        return pixels[:, :6] / 10, pixels[:, :3] / 50


def random_images(num: int, seed: int, low: int = 0, high: int = 256) -> Tensor:
    """uint8 images (num, 1, 3, 4)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (num, 1, 3, 4), dtype=torch.uint8, generator=generator)


def as_arrays(images: Tensor) -> Images:
    return list(images.permute(0, 2, 3, 1).numpy())


def in_parts(images: Tensor) -> Callable[[int, int], Iterator[Tensor]]:
    """Reference images divided between processes."""
    return lambda num, rank: iter(images[rank::num].split(7))


def metric_of(images: Tensor, **options: Any) -> ImageGenerationMetrics:
    return ImageGenerationMetrics(PixelFeatures(), reference_images=in_parts(images), show_progress=False, **options)


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNITE_INCEPTION_WEIGHTS", raising=False)
    image_metrics._say_what_is_left_out.cache_clear()


# ---------------------------------------------------------------------- Fréchet distance


def gaussian(mean: list[float], variances: list[float]) -> FeatureStatistics:
    return FeatureStatistics(torch.tensor(mean).double(), torch.tensor(variances).double().diag())


def test_frechet_distance_of_known_gaussians() -> None:
    # Variances commute: |m1 - m2|² + Σ (s1 - s2)² = 9 + 16 + (1 - 3)² + (2 - 0)².
    first, second = gaussian([0, 1], [1, 4]), gaussian([3, 5], [9, 0])
    assert float(frechet_distance(first, second)) == pytest.approx(33, rel=1e-12)
    assert float(frechet_distance(first, first)) == 0


@given(seed=st.integers(0, 1000), size=st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_frechet_distance_of_rotated_gaussians(seed: int, size: int) -> None:
    """In two dimensions, tr sqrt(AB) = sqrt(tr AB + 2 sqrt(det AB)); larger ones are made of such blocks."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(2, size, 2, 2, generator=generator, dtype=torch.float64)
    blocks = factors @ factors.mT  # (2, size, 2, 2)
    product = blocks[0] @ blocks[1]
    traces = product.diagonal(dim1=-2, dim2=-1).sum(-1)
    expected = (
        blocks.diagonal(dim1=-2, dim2=-1).sum() - 2 * (traces + 2 * product.det().clamp(min=0).sqrt()).sqrt().sum()
    )
    rotation = torch.linalg.qr(torch.randn(2 * size, 2 * size, generator=generator, dtype=torch.float64)).Q
    mean = torch.zeros(2 * size, dtype=torch.float64)
    first, second = (
        FeatureStatistics(mean, rotation @ torch.block_diag(*half) @ rotation.T) for half in (blocks[0], blocks[1])
    )
    assert float(frechet_distance(first, second)) == pytest.approx(float(expected), abs=1e-7)


def test_fid_of_features_of_known_mean_and_covariance() -> None:
    # 0 and 20 in equal numbers have the mean 10 and, of 2n images, the variance 100 · 2n / (2n - 1).
    generated = torch.tensor([0, 20], dtype=torch.uint8).repeat(50).view(-1, 1, 1, 1).expand(-1, 1, 3, 4)
    reference = torch.tensor([30, 90], dtype=torch.uint8).repeat(30).view(-1, 1, 1, 1).expand(-1, 1, 3, 4)
    metric = metric_of(reference)
    metric.update(as_arrays(generated))
    # Features are pixels / 10, all six equal: the covariances have one direction, so it is as in one dimension.
    spread = math.sqrt(6) * (math.sqrt(100 / 99) - 3 * math.sqrt(60 / 59))
    expected = 6 * (6 - 1) ** 2 + spread**2
    assert float(metric.compute()["fid_pixels"]) == pytest.approx(expected, rel=1e-6)


def test_fid_is_that_of_torchmetrics() -> None:
    real, fake = random_images(60, 0), random_images(50, 1, 50, 200)

    class Extractor(torch.nn.Module):
        num_features = 6

        def forward(self, images: Tensor) -> Tensor:
            features: Tensor = PixelFeatures()(images)[0]
            return features

    theirs = FrechetInceptionDistance(feature=Extractor())
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    ours = metric_of(real)
    ours.update(as_arrays(fake))
    assert float(ours.compute()["fid_pixels"]) == pytest.approx(float(theirs.compute()), rel=1e-5)


def test_parts_give_what_the_whole_gives() -> None:
    fake = random_images(53, 1)
    whole, parts = metric_of(random_images(60, 0)), metric_of(random_images(60, 0), batch_size=9)
    whole.update(as_arrays(fake))
    for part in fake.split(10):
        parts.update(as_arrays(part))
    expected = whole.compute()
    assert expected.keys() == parts.compute().keys()
    for name, value in parts.compute().items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_reset_forgets_samples_and_keeps_the_reference() -> None:
    metric = metric_of(random_images(60, 0))
    metric.update(as_arrays(random_images(40, 2)))
    first = metric.compute()
    metric.reset()
    assert int(metric.generated_num) == 0
    metric.update(as_arrays(random_images(30, 3, 100, 120)))
    assert metric.compute()["fid_pixels"] != first["fid_pixels"]
    metric.reset()
    metric.update(as_arrays(random_images(40, 2)))
    assert metric.compute() == first


def test_reference_is_measured_once() -> None:
    calls = []

    def images(num: int, rank: int) -> Iterator[Tensor]:
        calls.append((num, rank))
        return iter([random_images(10, 0)])

    metric = ImageGenerationMetrics(PixelFeatures(), reference_images=images, show_progress=False)
    assert not calls  # not before it is needed
    for _ in range(2):
        metric.update(as_arrays(random_images(10, 1)))
        metric.reset()
    assert calls == [(1, 0)]


def _run_rank(rank: int, folder: Path) -> None:
    real, fake = random_images(61, 0), random_images(47, 1, 20, 220)
    metric = metric_of(real, num_kept=1000)
    reconstruction = ImageReconstructionMetrics(PixelFeatures())
    for _ in range(2):  # what was gathered once must not count twice
        metric.update(as_arrays(fake[rank::2]))
        reconstruction.update(fake[rank::2] / 255, fake[rank::2].flip(0) / 255)
        values = {**metric.compute(), **reconstruction.compute()}
        metric.reset()
        reconstruction.reset()
    torch.save(values, folder / f"{rank}.pt")


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    fake = random_images(47, 1, 20, 220)
    alone = metric_of(random_images(61, 0))
    alone.update(as_arrays(fake))
    reconstruction = ImageReconstructionMetrics(PixelFeatures())
    for rank in (0, 1):
        reconstruction.update(fake[rank::2] / 255, fake[rank::2].flip(0) / 255)
    expected = {**alone.compute(), **reconstruction.compute()}
    run_two_ranks(_run_rank, tmp_path)
    for rank in (0, 1):
        values = torch.load(tmp_path / f"{rank}.pt")
        assert values.keys() == expected.keys()
        for name, value in values.items():
            # Inception Score deals the images out to its ten parts in another way.
            tolerance = 0.05 if name.startswith("inception_score") else 1e-6
            torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=1e-6, msg=name)


# ---------------------------------------------------------------------- KID, precision and recall, Inception Score


def test_kernel_distance_is_that_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(40, 6, generator=generator), 0.3 + torch.randn(40, 6, generator=generator)
    expected = poly_mmd(first.double(), second.double())
    assert float(kernel_distance(first, second)) == pytest.approx(float(expected), rel=1e-5)


def test_kernel_distance_of_one_distribution_is_zero_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    values = [kernel_distance(*torch.randn(2, 30, 6, generator=generator)) for _ in range(200)]
    mean, error = torch.stack(values).mean(), torch.stack(values).std() / 200**0.5
    assert abs(mean) < 4 * error


def test_chunks_do_not_change_the_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(50, 6, generator=generator), torch.randn(40, 6, generator=generator)
    expected = [kernel_distance(first, second), *precision_and_recall(first, second)]
    monkeypatch.setattr("unite.modalities.image.metrics.statistics.CHUNK", 7)
    torch.testing.assert_close([kernel_distance(first, second), *precision_and_recall(first, second)], expected)


def test_precision_and_recall_count_neighbours() -> None:
    line = torch.arange(10.0)[:, None]  # the third neighbour is 2 away in the middle, 3 at the ends
    precision, recall = precision_and_recall(torch.tensor([[4.5], [11.9], [12.1], [-2.9], [50.0]]), line)
    assert float(precision) == pytest.approx(3 / 5)
    precision, recall = precision_and_recall(torch.tensor([[0.0], [0.1], [0.2], [0.3]]), line)
    assert float(precision) == 1
    assert float(recall) == pytest.approx(1 / 10)


def test_inception_score_of_certain_and_of_uncertain_classes() -> None:
    def score(first_pixels: Tensor) -> float:
        images = torch.zeros(len(first_pixels), 1, 3, 4, dtype=torch.uint8)
        images[:, 0, 0, :3] = first_pixels.to(torch.uint8)
        metric = ImageGenerationMetrics(PixelFeatures())
        metric.update(as_arrays(images))
        values = metric.compute()
        assert values.keys() == {"inception_score_pixels"}  # the only one without a reference
        return float(values["inception_score_pixels"])

    certain = 255 * torch.eye(3).repeat(2000, 1)
    probabilities = torch.tensor([255 / 50, 0, 0]).softmax(0)
    expected = math.exp(float((probabilities * probabilities.log()).sum()) + math.log(3))
    assert score(certain) == pytest.approx(expected, rel=5e-3)  # each of the ten parts has all classes alike
    assert score(torch.zeros(300, 3)) == pytest.approx(1)


def test_features_are_kept_of_a_bounded_number_of_images() -> None:
    metric = metric_of(random_images(60, 0), num_kept=25)
    for part in random_images(60, 1).split(10):
        metric.update(as_arrays(part))
    assert sum(map(len, metric.generated_features)) == 25
    assert sum(map(len, metric.reference_features)) == 25
    assert metric.compute().keys() == {
        f"{name}_pixels" for name in ("fid", "kid", "precision", "recall", "inception_score")
    }


@pytest.mark.parametrize(
    ("num_generated", "num_reference", "num_features", "words"),
    [
        (20, 600, 6, "fid_pixels and the like of 20 images against 600 say little: fewer than 500"),
        (600, 20, 6, "600 images against 20 say little: fewer than 500"),
        (600, 600, 301, "fewer than 602"),
        (500, 500, 250, None),
        (1, 20, 6, None),  # no distances
        (20, 0, 6, None),
    ],
)
def test_distances_of_few_images_come_with_a_caution(
    monkeypatch: pytest.MonkeyPatch, num_generated: int, num_reference: int, num_features: int, words: str | None
) -> None:
    metric = ImageGenerationMetrics(PixelFeatures())
    monkeypatch.setattr(PixelFeatures, "num_features", num_features)
    metric.generated_num += num_generated
    metric.reference_num += num_reference
    caution = metric.caution()
    assert caution is None if words is None else words in (caution or "")


def test_a_caution_counts_samples_where_the_number_of_references_is_not_known() -> None:
    metric = ImageGenerationMetrics(PixelFeatures(), gaussian([0.0] * 6, [1.0] * 6))
    for num, is_few in ((20, True), (500, False)):
        metric.reset()
        metric.generated_num += num
        assert (metric.caution() is not None) == is_few


# ---------------------------------------------------------------------- what is passed


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1), (3, 4, 3)])
def test_gray_and_colour_arrays_are_taken(shape: tuple[int, ...]) -> None:
    metric = ImageGenerationMetrics(PixelFeatures())
    metric.update([np.zeros(shape, dtype=np.uint8)] * 5)
    assert int(metric.generated_num) == 5


@pytest.mark.parametrize("is_asked", [False, True])
def test_quiet_hides_the_bar_of_the_reference_images(is_asked: bool, capsys: pytest.CaptureFixture[str]) -> None:
    images = in_parts(random_images(6, seed=0))
    with quiet(is_asked):
        ImageGenerationMetrics(PixelFeatures(), reference_images=images)._measure_reference()
    assert ("features of reference images" in capsys.readouterr().err) != is_asked


def test_images_of_several_sizes_are_taken() -> None:
    metric = ImageGenerationMetrics(PixelFeatures())
    metric.update([np.zeros((size, size), dtype=np.uint8) for size in (4, 4, 5, 4, 6)])
    assert int(metric.generated_num) == 5


@pytest.mark.parametrize("array", [np.zeros((4, 4)), np.zeros((4, 4, 2), dtype=np.uint8), np.zeros(4, dtype=np.uint8)])
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="images must be uint8"):
        ImageGenerationMetrics(PixelFeatures()).update([array])


# ---------------------------------------------------------------------- reference statistics


def statistics(num_features: int = 6, num_kept: int | None = 20) -> FeatureStatistics:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(50, num_features, generator=generator, dtype=torch.float64)
    kept = None if num_kept is None else features[:num_kept].float()
    return FeatureStatistics(features.mean(0), features.T.cov(), kept)


@pytest.mark.parametrize("num_kept", [None, 20])
def test_statistics_are_read_as_written(tmp_path: Path, num_kept: int | None) -> None:
    statistics(num_kept=num_kept).save(tmp_path / "a.npz")
    read = FeatureStatistics.load(tmp_path / "a.npz", 6)
    assert torch.equal(read.mean, statistics().mean)
    assert torch.equal(read.covariance, statistics().covariance)
    assert (read.features is None) == (num_kept is None)
    with np.load(tmp_path / "a.npz") as file:  # as pytorch-fid and ADM name them
        assert {"mu", "sigma"} <= set(file.files)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_fid_against_a_file_is_fid_against_its_images(tmp_path: Path) -> None:
    real, fake = random_images(60, 0), random_images(50, 1)
    direct = metric_of(real)
    direct.update(as_arrays(fake))
    found = direct.reference_statistics()
    assert found is not None
    found.save(tmp_path / "a.npz")
    for features, names in (
        (found.features, direct.compute().keys()),
        (None, {"fid_pixels", "inception_score_pixels"}),
    ):
        FeatureStatistics(found.mean, found.covariance, features).save(tmp_path / "a.npz")
        metric = ImageGenerationMetrics(PixelFeatures(), FeatureStatistics.load(tmp_path / "a.npz", 6))
        metric.update(as_arrays(fake))
        assert metric.compute().keys() == set(names)
        for name, value in metric.compute().items():
            torch.testing.assert_close(value, direct.compute()[name], msg=name)


def write_npz(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: statistics(4).save(path), r"has statistics of 4 features, but the network gives 6"),
        (lambda path: write_npz(path, arr_0=np.zeros(3)), "has no mu and sigma"),
        (lambda path: write_npz(path, mu=np.zeros(6), sigma=np.zeros(6)), "but the network gives 6"),
        (lambda path: write_npz(path, mu=np.array([None]), sigma=np.zeros(6)), "cannot read statistics"),
        (lambda path: path.write_bytes(b"hello"), "cannot read statistics"),
        (lambda path: path.write_bytes(b""), "cannot read statistics"),
        (lambda path: None, "cannot read statistics"),
    ],
    ids=["other size", "no statistics", "no matrix", "pickle", "text", "empty", "missing"],
)
def test_unusable_statistics_are_refused(tmp_path: Path, write: Callable[[Path], Any], message: str) -> None:
    write(tmp_path / "a.npz")
    with pytest.raises(UserError, match=message) as caught:
        FeatureStatistics.load(tmp_path / "a.npz", 6)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- Inception


def fill(network: InceptionV3) -> None:
    """Weights that anyone can make again."""
    generator = torch.Generator().manual_seed(0)
    for name, value in sorted(network.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith(("running_var", "bn.weight")):
            value.copy_(1 + 0.1 * noise.clamp(-3, 3))
        elif value.ndim > 1:
            value.copy_(noise * (2 / value[0].numel()) ** 0.5)
        else:
            value.copy_(0.1 * noise)


@pytest.fixture(scope="module")
def inception() -> InceptionV3:
    network = InceptionV3()
    fill(network)
    return network


# What torch-fidelity 0.4.0 gives with the weights of `fill`: every 256th feature, their sum, every 168th logit.
FIDELITY = [
    (
        (8, 8),
        [1.357498, 0.013512, 0.438846, 1.144568, 0.269538, 0.460967, 0.97439, 0.639037],
        694.628,
        [-1.093451, 0.017692, 0.737248, 1.153256, 1.632229, 0.362725],
    ),
    (
        (32, 32),
        [1.466862, 0.031606, 0.393254, 1.044565, 0.234507, 0.444425, 0.94494, 0.700787],
        695.637,
        [-1.053898, -0.118994, 0.779286, 0.961444, 1.725995, 0.248097],
    ),
    (
        (299, 299),
        [2.168648, 0.017897, 0.421254, 1.432678, 0.468166, 0.657905, 1.215638, 1.119156],
        1074.336,
        [-1.650952, -0.310206, 1.044306, 1.514556, 2.252179, 0.491185],
    ),
    (
        (320, 256),
        [2.054664, 0.023187, 0.377032, 1.350609, 0.414066, 0.606386, 1.136189, 1.021749],
        986.042,
        [-1.46068, -0.381159, 0.878705, 1.332523, 2.109542, 0.436408],
    ),
]


@pytest.mark.parametrize(
    ("size", "features", "total", "logits"),
    FIDELITY,
    ids=lambda v: "x".join(map(str, v)) if isinstance(v, tuple) else "",
)
def test_features_are_those_of_torch_fidelity(
    inception: InceptionV3, size: tuple[int, int], features: list[float], total: float, logits: list[float]
) -> None:
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    image = torch.stack([(x * 7 + y * 3 + channel * 50) % 256 for channel in range(3)]).to(torch.uint8)[None]
    found_features, found_logits = inception(image)
    torch.testing.assert_close(found_features[0, ::256], torch.tensor(features), rtol=1e-4, atol=1e-5)
    assert float(found_features.sum()) == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(found_logits[0, ::168], torch.tensor(logits), rtol=1e-4, atol=1e-4)


def test_gray_images_are_taken_as_colour(inception: InceptionV3) -> None:
    gray = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8) * 4
    assert torch.equal(inception(gray)[0], inception(gray.expand(-1, 3, -1, -1))[0])


def test_inception_stays_frozen_in_evaluation_mode(inception: InceptionV3) -> None:
    inception.train()
    assert not any(module.training for module in inception.modules())
    assert not any(parameter.requires_grad for parameter in inception.parameters())
    assert sum(parameter.numel() for parameter in inception.parameters()) == 23_850_960


def test_resizing_keeps_the_first_pixel_in_its_place() -> None:
    ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    assert resize_like_tensorflow(ramp, 8)[0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    assert torch.equal(resize_like_tensorflow(ramp, 4), ramp)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_come_from_a_file_or_the_environment(
    inception: InceptionV3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    file = tmp_path / f"weights.{suffix}"
    # Old files lack the counters.
    state = {name: value for name, value in inception.state_dict().items() if "num_batches" not in name}
    if suffix == "pth":
        torch.save(state, file)
    else:
        save_file(state, file)
    monkeypatch.setenv("UNITE_INCEPTION_WEIGHTS", str(file))
    for network in (load_inception(), load_inception(file)):
        assert torch.equal(network.fc.weight, inception.fc.weight)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "is not a file; set UNITE_INCEPTION_WEIGHTS to weights-inception-2015-12-05"),
        (lambda path: path.write_bytes(b"hello"), "cannot read Inception weights"),
        (lambda path: torch.save(torch.nn.Linear(1, 1), path), "not a file of plain tensors"),
        (lambda path: torch.save([1], path), "holds no weights by name"),
        (lambda path: torch.save({"a": torch.zeros(1)}, path), "weights of another network than FID's Inception: 4"),
        (
            lambda path: torch.save({**InceptionV3().state_dict(), "fc.bias": torch.zeros(1000)}, path),
            "weights of another network than FID's Inception: 1 entries differ, such as fc.bias",
        ),
    ],
    ids=["missing", "text", "module", "list", "other names", "other shape"],
)
def test_unusable_weights_are_refused(tmp_path: Path, write: Callable[[Path], Any], message: str) -> None:
    write(tmp_path / "w.pth")
    with pytest.raises(UserError, match=message) as caught:
        load_inception(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- which network


def test_without_weights_nothing_is_called_fid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    datamodule = ImageFolderDataModule(str(write_folder(tmp_path, {"train": 2, "val": 1})), 16)
    for _ in range(2):
        assert image_generation_metrics(datamodule) is None
    (record,) = caplog.records  # said once
    assert "UNITE_INCEPTION_WEIGHTS" in record.getMessage()
    with pytest.raises(UserError, match="FID needs the weights of Inception: set UNITE_INCEPTION_WEIGHTS"):
        load_inception()


def test_inception_gives_fid_where_there_are_weights(
    inception: InceptionV3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(inception.state_dict(), tmp_path / "w.pth")
    monkeypatch.setenv("UNITE_INCEPTION_WEIGHTS", str(tmp_path / "w.pth"))
    datamodule = ImageFolderDataModule(str(write_folder(tmp_path, {"train": 2, "val": 1})), 8)
    metric = image_generation_metrics(datamodule, show_progress=False)
    assert metric is not None
    metric.update([np.zeros((8, 8, 3), dtype=np.uint8)] * 2)
    assert int(metric.reference_num) == 6
    assert metric.network.metric("fid") == "fid"


@pytest.mark.parametrize("kind", [ImageFolderDataModule, WebDatasetDataModule])
def test_missing_reference_images_are_noticed_before_anything_is_measured(
    kind: type[ImageDataModule], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNITE_INCEPTION_WEIGHTS", "any")
    monkeypatch.setattr(image_metrics, "load_inception", PixelFeatures)
    with pytest.raises(UserError, match=r"gone\S* .*set data.root"):
        image_generation_metrics(kind(root=str(tmp_path / "gone"), image_size=8))  # type: ignore[call-arg]
    assert image_generation_metrics(None) is not None


def test_prepare_reference_writes_what_metrics_read(
    run_cli: RunCli, inception: InceptionV3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small(PixelFeatures):
        name = ""

    monkeypatch.setattr("unite.modalities.image.metrics.inception.load_inception", lambda path: Small())
    source = write_folder(tmp_path / "in", {"train": 4, "val": 3})
    file = tmp_path / "val.npz"
    result = run_cli("prepare", "reference", source, file, "--image_size", "16", "--split", "val", "--num_kept", "5")
    assert result.code == 0, result.err
    assert "9 images of val" in result.out
    read = FeatureStatistics.load(file, 6)
    assert read.features is not None
    assert len(read.features) == 5
    datamodule = ImageFolderDataModule(str(source), 16, reference=str(file))
    monkeypatch.setenv("UNITE_INCEPTION_WEIGHTS", "any")
    monkeypatch.setattr(image_metrics, "load_inception", Small)
    metric = image_generation_metrics(datamodule)
    assert metric is not None
    metric.update(
        [image.permute(1, 2, 0).numpy() for batch in datamodule.reference_images(split="val") for image in batch]
    )
    assert float(metric.compute()["fid"]) == pytest.approx(0, abs=1e-6)


# ---------------------------------------------------------------------- digits


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> DigitsDataModule:
    return DigitsDataModule(str(tmp_path_factory.mktemp("digits")))


def pixels_of(digits: DigitsDataModule, split: Any) -> tuple[Tensor, Tensor]:
    images = digits.images(split)
    assert isinstance(images, ImagesInMemory)
    return images.all_pixels, images.labels


def test_digits_have_their_own_network_under_its_own_name(digits: DigitsDataModule) -> None:
    network = feature_network(digits)
    assert network is not None
    assert network.metric("fid") == "fid_digits"
    pixels, labels = pixels_of(digits, "test")
    assert (network(pixels)[1].argmax(dim=1) == labels).float().mean() > 0.93
    metric = image_generation_metrics(digits, show_progress=False)
    assert metric is not None
    metric.update(as_arrays(pixels))
    good = metric.compute()
    metric.reset()
    metric.update(as_arrays(torch.randint(0, 256, pixels.shape, dtype=torch.uint8)))
    bad = metric.compute()
    assert good["fid_digits"] < 1 < 10 < bad["fid_digits"]
    assert good["kid_digits"].abs() < 0.05 < bad["kid_digits"]
    assert good["precision_digits"] > 0.8 > 0.3 > bad["precision_digits"]
    assert good["inception_score_digits"] > 6 > 3 > bad["inception_score_digits"]


def test_digit_network_is_trained_once_and_alike(
    digits: DigitsDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, labels = pixels_of(digits, "train")
    monkeypatch.setattr(digit_features, "NUM_STEPS", 20)
    state = torch.get_rng_state()
    first = digit_features.load_or_train(tmp_path / "a", pixels, labels)
    with torch.inference_mode():
        second = digit_features.load_or_train(tmp_path / "b", pixels, labels)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.head.weight, second.head.weight)
    assert not torch.equal(
        digit_features.load_or_train(tmp_path / "a", pixels[1:], labels[1:]).head.weight, first.head.weight
    )
    monkeypatch.setattr(digit_features, "train", None)
    assert torch.equal(digit_features.load_or_train(tmp_path / "a", pixels, labels).head.weight, first.head.weight)


def test_damaged_or_forbidden_cache_does_not_stop_anything(
    digits: DigitsDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pixels, labels = pixels_of(digits, "train")
    monkeypatch.setattr(digit_features, "NUM_STEPS", 2)
    digit_features.load_or_train(tmp_path, pixels, labels)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    digit_features.load_or_train(tmp_path, pixels, labels)
    assert "is damaged" in caplog.text
    digit_features.load_or_train(file / "below", pixels, labels)
    assert "cannot keep" in caplog.text


# ---------------------------------------------------------------------- reconstructions


@given(size=st.sampled_from([(11, 11), (16, 12), (30, 40)]), channels=st.sampled_from([1, 3]), seed=st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_ssim_is_that_of_torchmetrics(size: tuple[int, int], channels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(3, channels, *size, generator=generator)
    prediction = (target + 0.2 * torch.randn(target.shape, generator=generator)).clamp(0, 1)
    _, theirs = structural_similarity_index_measure(
        prediction, target, data_range=1.0, reduction="none", return_full_image=True
    )
    # Theirs also averages windows that reach beyond the edge, over reflected pixels; Wang et al. do not.
    theirs = theirs[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
    torch.testing.assert_close(ssim(prediction, target), theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 10])
def test_ssim_of_images_smaller_than_its_window(size: int) -> None:
    images = 0.4 * torch.rand(2, 1, size, size)
    torch.testing.assert_close(ssim(images, images), torch.ones(2))
    assert bool((ssim(images, 1 - images) < 0.9).all())


def test_psnr_is_of_each_image() -> None:
    target = torch.zeros(3, 1, 4, 4)
    prediction = torch.stack([target[0], target[0] + 0.1, target[0] + 1])
    torch.testing.assert_close(psnr(prediction, target), torch.tensor([100.0, 20.0, 0.0]))


def test_reconstruction_metrics() -> None:
    target = random_images(20, 0).float() / 255
    metric = ImageReconstructionMetrics(
        PixelFeatures(), perceptual=lambda first, second: (first - second).square().mean(dim=(1, 2, 3), keepdim=True)
    )
    metric.update(target[:15], target[:15])
    metric.update(target[15:], target[15:])
    perfect = {name: float(value) for name, value in metric.compute().items()}
    assert perfect == pytest.approx({"l1": 0, "psnr": 100, "ssim": 1, "lpips": 0, "rfid_pixels": 0}, abs=1e-6)
    metric.reset()
    metric.update(1 - target, target)
    values = metric.compute()
    assert float(values["l1"]) == pytest.approx(float((1 - 2 * target).abs().mean()), rel=1e-5)
    assert float(values["lpips"]) == pytest.approx(float((1 - 2 * target).square().mean()), rel=1e-5)
    assert values["rfid_pixels"] > 0.1


def test_reconstructions_are_judged_as_they_would_be_saved() -> None:
    target = torch.full((2, 1, 8, 8), 100 / 255)
    metric = ImageReconstructionMetrics()
    metric.update(target + 0.4 / 255, target)
    metric.update(torch.full_like(target, 1.7), torch.ones_like(target))
    assert metric.compute().keys() == {"l1", "psnr", "ssim"}
    assert float(metric.compute()["l1"]) == 0


def test_messages_are_not_lost(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert feature_network(None) is None
    assert "FID" in caplog.text


def test_parts_of_the_inception_score_are_equal_and_see_every_class() -> None:
    """Sampling goes through the classes in turn: ten of them must not fall into ten parts, one each."""
    numbers = torch.arange(10_000)
    parts = _part_of(numbers)
    assert parts.bincount().tolist() == [1000] * 10
    for num_classes in (3, 10):
        counts = torch.stack([(numbers[parts == part] % num_classes).bincount() for part in range(10)])
        assert counts.min() > 0.75 * counts.max()


@pytest.mark.parametrize(
    ("mean", "covariance", "words"),
    [
        (np.full(4, np.nan), np.eye(4), "not finite"),
        (np.zeros(4), np.diag([1.0, 1.0, 1.0, np.inf]), "not finite"),
        (np.zeros(4), np.triu(np.ones((4, 4))), "no covariance"),
        (np.zeros(4), -np.eye(4), "no covariance"),
    ],
)
def test_statistics_that_are_none_are_refused(tmp_path: Path, mean: Any, covariance: Any, words: str) -> None:
    np.savez(tmp_path / "stats.npz", mu=mean, sigma=covariance)
    with pytest.raises(UserError, match=words):
        FeatureStatistics.load(tmp_path / "stats.npz", 4)
