"""``unite score images``."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support.commands import RunCli
from unite import UserError
from unite.modalities.image.metrics.features import FeatureNetwork
from unite.modalities.image.metrics.generation import measure_features
from unite.modalities.image.metrics.scores import ImageFiles, score_images


class MeanColour(FeatureNetwork):
    """Mean of each corner: four features."""

    name = "corners"
    num_features = 4
    num_logits = 4

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        means = torch.nn.functional.adaptive_avg_pool2d(images.float().mean(1, keepdim=True), 2).flatten(1)
        return means, means


def write_images(folder: Path, number: int, seed: int, size: tuple[int, int] = (8, 8)) -> Path:
    generator = np.random.default_rng(seed)
    (folder / "a").mkdir(parents=True)
    for index in range(number):
        pixels = generator.integers(0, 256, size=(*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("a" if index % 2 else "") / f"{index:03d}.png")
    return folder


def test_a_folder_against_itself_has_no_distance(run_cli: RunCli, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    folder = write_images(tmp_path / "images", 12, 0)
    (folder / "broken.png").write_text("not an image")
    options = ("--features", "digits", "--digits_root", tmp_path / "digits", "--batch_size", "5")
    with pytest.warns(UserWarning, match="fid_digits and the like of 12 images against 12 say little: fewer than 500"):
        result = run_cli("score", "images", folder, "--reference", folder, *options)
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "images_scores" / "metrics.json").read_text())
    assert found["num_images"] == found["num_reference_images"] == 12
    assert found["fid_digits"] == pytest.approx(0, abs=1e-5)
    assert found["precision_digits"] == found["recall_digits"] == 1
    assert "fid" not in found
    assert str(folder / "broken.png") in json.loads((tmp_path / "images_scores" / "rejects.json").read_text())
    assert "compare these metrics only with others of that name" in result.out
    again = run_cli("score", "images", folder, "--reference", folder, *options)
    assert again.code == 2
    assert "has files already" in again.err


def test_statistics_stand_in_for_a_folder(tmp_path: Path) -> None:
    network = MeanColour().freeze()
    made, reference = (ImageFiles(write_images(tmp_path / str(seed), 30, seed), 3, None) for seed in (0, 1))
    stacked = torch.stack(list(reference))
    statistics = measure_features(iter([stacked]), network, torch.device("cpu"), num_kept=30)
    statistics.save(tmp_path / "stats.npz")
    np.savez(tmp_path / "adm.npz", mu=statistics.mean.numpy(), sigma=statistics.covariance.numpy())
    by_folder = score_images(made, reference, network, batch_size=7)
    by_file = score_images(made, tmp_path / "stats.npz", network)
    by_adm = score_images(made, tmp_path / "adm.npz", network)
    assert by_folder["fid_corners"] > 0
    for name, value in by_file.items():
        assert by_folder[name] == pytest.approx(value, rel=1e-5)
    assert by_adm["fid_corners"] == pytest.approx(by_file["fid_corners"])
    assert "kid_corners" not in by_adm


@pytest.mark.parametrize("broken", [False, True])
def test_one_image_has_no_statistics_on_either_side(tmp_path: Path, broken: bool) -> None:
    many, one = write_images(tmp_path / "many", 6, 0), write_images(tmp_path / "one", 1, 0)
    if broken:
        (one / "b.png").write_text("not an image")
    for folders in ((many, one), (one, many)):
        made, reference = (ImageFiles(folder, 3, None) for folder in folders)
        with pytest.raises(UserError, match="one has fewer than two images that can be used"):
            score_images(made, reference, MeanColour().freeze())


def test_images_of_different_sizes_need_a_crop(tmp_path: Path) -> None:
    small, large = write_images(tmp_path / "s", 6, 0), write_images(tmp_path / "l", 6, 0, (12, 10))
    network = MeanColour().freeze()
    with pytest.raises(UserError, match=r"8x8 pixels, those in .* 10x12: choose one size with --image_size"):
        score_images(ImageFiles(small, 3, None), ImageFiles(large, 3, None), network)
    (tmp_path / "mixed").mkdir()
    for folder, name in ((small, "000.png"), (large, "002.png")):
        (tmp_path / "mixed" / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UserError, match=r"002.png has 10x12 pixels, others in .* have 8x8"):
        score_images(ImageFiles(tmp_path / "mixed", 3, None), ImageFiles(small, 3, None), network)
    assert score_images(ImageFiles(small, 3, 6), ImageFiles(large, 3, 6), network)["fid_corners"] >= 0
