"""What was made before the modules moved still loads: a config, a checkpoint, a run folder, exports."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from tests.support.commands import RunCli
from tests.support.paths import TESTS
from unite import UniteModule
from unite.files.moved import MOVED, moved, moved_text
from unite.runs.folder import read_checkpoint

BEFORE = TESTS / "data" / "before_the_move"


@pytest.mark.parametrize("path", MOVED.values())
def test_what_has_moved_is_where_the_table_says(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), name), type)


def test_only_whole_paths_are_replaced() -> None:
    old, new = "unite.modalities.qm9.QM9DataModule", "unite.modalities.molecule.QM9DataModule"
    assert moved({"data": [{"class_path": old, "init_args": {"root": f"{old}2"}}], "size": 3}) == {
        "data": [{"class_path": new, "init_args": {"root": f"{old}2"}}],
        "size": 3,
    }
    assert moved_text(f"class_path: {old}, my.{old} {old}s") == f"class_path: {new}, my.{old} {old}s"


def test_the_files_do_name_old_paths() -> None:
    old = [file.read_text() for file in (BEFORE / "digits.yaml", BEFORE / "run/config.yaml")]
    old.append(json.dumps(torch.load(BEFORE / "run/last.ckpt", weights_only=True)["hyper_parameters"]))
    old.append((BEFORE / "export/config.json").read_text())
    assert all("unite.generative_encoder.GenerativeEncoder" in text for text in old)


def test_a_config_trains(run_cli: RunCli, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = run_cli("fit", "--config", BEFORE / "digits.yaml", "--trainer.default_root_dir", folder, "--device", "cpu")
    assert result.code == 0, result.err
    assert "unite.nn.GenerativeEncoder" in json.dumps(read_checkpoint(folder / "last.ckpt")["hyper_parameters"])


def test_what_was_typed_before_still_trains(run_cli: RunCli, tmp_path: Path) -> None:
    config = yaml.safe_load((BEFORE / "digits.yaml").read_text())
    del config["data"]
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(config))
    typed = ("--data", "unite.modalities.image_data.DigitsDataModule", "--trainer.default_root_dir", tmp_path / "run")
    result = run_cli("fit", "--config", tmp_path / "a.yaml", *typed, "--device", "cpu")
    assert result.code == 0, result.err


def test_a_run_folder_is_sampled_continued_and_exported(run_cli: RunCli, tmp_path: Path) -> None:
    run = shutil.copytree(BEFORE / "run", tmp_path / "run")
    sample = ("sample", "--ckpt_path", run, "--num_samples", "4", "--num_steps", "2", "--output", tmp_path / "samples")
    for command in (
        (*sample, "--device", "cpu"),
        ("fit", "--ckpt_path", run, "--trainer.max_steps", "3", "--device", "cpu"),
        ("align", "--ckpt_path", run, "--num_samples", "20", "--seeds", "1", "--output", tmp_path / "align"),
        ("export", run, tmp_path / "shared"),
    ):
        result = run_cli(*command)
        assert result.code == 0, result.err
    assert read_checkpoint(run / "last.ckpt")["global_step"] == 3


def test_all_ways_to_load_give_the_same_weights() -> None:
    checkpoint = UniteModule.load_from_checkpoint(BEFORE / "run" / "last.ckpt", map_location="cpu")
    exported = UniteModule.from_pretrained(BEFORE / "export")
    weights = exported.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in checkpoint.state_dict().items())
    model = UniteModule.from_pretrained(TESTS.parent / "docs" / "results" / "qm9_two_hours" / "model")
    assert len(model.generate("molecule", 2, num_steps=2, seed=0)) == 2
