"""Files that ask for more than there is: models, archives, and settings without end."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.commands import RunCli
from tests.support.paths import TESTS
from unite import UniteModule, UserError
from unite.modalities.image import files
from unite.modalities.image.files import open_image
from unite.modalities.image.metrics import statistics
from unite.modalities.image.metrics.statistics import FeatureStatistics
from unite.runs.folder import read_checkpoint
from unite.runs.known_classes import require_known_config

EXPORT = TESTS / "data" / "before_the_move" / "export"
BOMBS: dict[str, dict[str, Any]] = {
    "depth": {"depth": 10**9},
    "depth that a weight could have": {"depth": 60_000},
    "width": {"width": 2**30},
    "width that a weight could have": {"width": 64_000, "num_heads": 2},
    "latents": {"latent_channels": 10**12},
}


def exported(folder: Path, **changes: Any) -> Path:
    shutil.copytree(EXPORT, folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["encoder"]["init_args"].update(changes)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", BOMBS)
def test_a_model_larger_than_its_weights_is_refused_before_it_is_made(
    run_cli: RunCli, tmp_path: Path, name: str
) -> None:
    folder = exported(tmp_path / "model", **BOMBS[name])
    with pytest.raises(UserError, match=r"config\.json (asks for a size|is of a model)"):
        UniteModule.from_pretrained(folder)
    result = run_cli("sample", "--ckpt_path", folder, "--num_samples", "1", "--output", tmp_path / "out")
    assert result.code == 2
    assert ("asks for a size" in result.err) or ("is of a model" in result.err)
    assert len(result.err.strip().splitlines()) == 1


def test_the_same_of_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = torch.load(EXPORT.parent / "run" / "last.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["encoder"]["init_args"]["depth"] = 50_000
    torch.save(checkpoint, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="is of a model with more than"):
        UniteModule.load_from_checkpoint(tmp_path / "last.ckpt")
    UniteModule.load_from_checkpoint(EXPORT.parent / "run" / "last.ckpt")


def test_settings_without_end_are_refused(tmp_path: Path) -> None:
    folder = exported(tmp_path / "model")
    (folder / "config.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(UserError, match="nested too deeply"):
        UniteModule.from_pretrained(folder)
    checkpoint = torch.load(EXPORT.parent / "run" / "last.ckpt", weights_only=True)
    endless: list[Any] = []
    endless.append(endless)
    checkpoint["hyper_parameters"]["optimizer"] = endless
    torch.save(checkpoint, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt has more than 100,000 settings, or nests"):
        UniteModule.load_from_checkpoint(tmp_path / "last.ckpt")
    doubling = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    for text in (doubling, "a: " + "[" * 5000 + "]" * 5000):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=r"config\.yaml (has more than|cannot be read)"):
            require_known_config(tmp_path / "config.yaml")


def test_a_config_nested_deeply_is_told_in_a_line(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "deep.yaml").write_text("model: " + "[" * 5000 + "]" * 5000)
    result = run_cli("fit", "--config", tmp_path / "deep.yaml")
    assert result.code == 2
    assert "deep.yaml cannot be read: it is nested too deeply" in result.err


def test_a_packed_checkpoint_is_refused(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(EXPORT.parent / "run" / "last.ckpt") as plain,
        zipfile.ZipFile(tmp_path / "last.ckpt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(UserError, match="is not a unite checkpoint, or is damaged"):
        read_checkpoint(tmp_path / "last.ckpt")


def test_an_image_of_too_many_pixels_is_refused_in_a_line(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_PIXELS", 1000)
    (tmp_path / "images").mkdir()
    Image.new("L", (30, 30)).save(tmp_path / "images" / "good.png")
    Image.new("L", (40, 30)).save(tmp_path / "images" / "large.png")
    with pytest.raises(UserError, match=r"large\.png: it has 40 x 30 pixels; 1,000 are allowed"):
        open_image(tmp_path / "images" / "large.png", 1)
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")  # 25 kB
    with pytest.raises(UserError, match=r"bomb\.png: .* exceeds limit") as caught:
        open_image(tmp_path / "bomb.png", 1)
    assert "\n" not in str(caught.value)


def test_statistics_that_would_fill_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "s.npz", mu=np.zeros(4), sigma=np.zeros((300, 300)))
    monkeypatch.setattr(statistics, "MAX_ARRAY_BYTES", 10_000)
    with pytest.raises(UserError, match=r"s\.npz: sigma\.npy has 720,128 bytes; 10,000 are allowed"):
        FeatureStatistics.load(tmp_path / "s.npz", 4)
