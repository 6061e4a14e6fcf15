"""Nothing that comes along with somebody's files is run: hostile files by the route on which they are read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.commands import RunCli
from unite.errors import UserError
from unite.modalities.image.shards.reading import Manifest
from unite.runs.known_classes import require_known_config, trusting

OURS = {"class_path": "unite.nn.GenerativeEncoder", "init_args": {"size": "XS", "depth": 1}}
IMAGES = {"class_path": "unite.modalities.image.ImageAdapter", "init_args": {"image_size": 8, "patch_size": 4}}
MODEL = {"encoder": OURS, "adapters": {"image": IMAGES}}


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module that leaves a file when it is imported; `unite` has the folder on its path."""
    (tmp_path / "trap.py").write_text("open('sprung', 'w').close()\nclass Thing: ...\n")
    (tmp_path / "nested").mkdir()
    (tmp_path / "nested/trap.py").write_text("open('sprung', 'w').close()\nclass Thing: ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "sprung"


def with_class(place: str, name: str) -> dict[str, Any]:
    foreign = {"class_path": name, "init_args": {}}
    return {
        "encoder": {**MODEL, "encoder": foreign},
        "adapter": {**MODEL, "adapters": {"image": foreign}},
        "optimizer": {**MODEL, "optimizer": foreign},
        "optimizer as a string": {**MODEL, "optimizer": name},
        "unknown key": {**MODEL, "extra": foreign},
        "dotted key": {**MODEL, "encoder.class_path": name},
        "unknown argument": {**MODEL, "encoder": {**OURS, "init_args": {"extra": name}}},
        "known argument": {**MODEL, "encoder": {**OURS, "init_args": {"width": name}}},
        "instantiator": {**MODEL, "_instantiator": name},
        "class": {**MODEL, "_class_path": name},
    }[place]


def write_checkpoint(model: dict[str, Any]) -> None:
    content = {"hyper_parameters": model, "state_dict": {}, "global_step": 1, "pytorch-lightning_version": "2.5.0"}
    torch.save(content, "last.ckpt")


PLACES = ("encoder", "adapter", "optimizer", "optimizer as a string", "unknown key", "dotted key", "unknown argument",
          "known argument", "instantiator", "class")  # fmt: skip


@pytest.mark.parametrize("name", ["trap.Thing", "nested.trap.Thing"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", [("sample",), ("align", "--data", "unite.modalities.image.DigitsDataModule")])
def test_a_checkpoint_imports_nothing(run_cli: RunCli, trap: Path, place: str, name: str, command: Any) -> None:
    write_checkpoint(with_class(place, name))
    result = run_cli(*command, "--ckpt_path", "last.ckpt", "--output", "out")
    assert (result.code, trap.exists()) == (2, False), result.err
    assert "last.ckpt" in result.err


def settings(**changes: Any) -> dict[str, Any]:
    data = {"class_path": "unite.modalities.image.DigitsDataModule", "init_args": {"root": "x"}}
    return {"model": MODEL, "data": data, "trainer": {"max_steps": 1}, **changes}


HOSTILE_CONFIGS: dict[str, dict[str, Any]] = {
    "callback": settings(trainer={"callbacks": [{"class_path": "trap.Thing"}]}),
    "callback in a folder": settings(trainer={"callbacks": [{"class_path": "nested.trap.Thing"}]}),
    "callback as a string": settings(trainer={"callbacks": "trap.Thing"}),
    "function of a callback of Lightning's": settings(
        trainer={
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.LambdaCallback",
                    "init_args": {"on_fit_start": "trap.Thing"},
                }
            ]
        }
    ),
    "module that is there already": settings(trainer={"callbacks": [{"class_path": "subprocess.Popen"}]}),
    "command": settings(data={"class_path": "x", "init_args": {"root": "pipe:touch sprung"}}),
    "another file": settings(config="other.yaml"),
    "data in another file": settings(data="other.yaml"),
    "dotted key": {**settings(), "data.class_path": "trap.Thing"},
}


@pytest.mark.parametrize("config", HOSTILE_CONFIGS.values(), ids=HOSTILE_CONFIGS.keys())
@pytest.mark.parametrize("command", ["sample", "align"])
def test_the_config_of_a_run_folder_runs_nothing(
    run_cli: RunCli, trap: Path, config: dict[str, Any], command: str
) -> None:
    write_checkpoint(MODEL)
    Path("config.yaml").write_text(yaml.safe_dump(config))
    Path("other.yaml").write_text("data: {class_path: trap.Thing}\n")
    result = run_cli(command, "--ckpt_path", "last.ckpt", "--output", "out")
    assert (result.code, trap.exists()) == (2, False), result.err
    assert "config.yaml" in result.err


def test_who_trusts_a_folder_says_so(trap: Path) -> None:
    Path("config.yaml").write_text(yaml.safe_dump(HOSTILE_CONFIGS["callback"]))
    with pytest.raises(UserError, match="--trust"):
        require_known_config(Path("config.yaml"))
    with trusting():
        require_known_config(Path("config.yaml"))
    with pytest.raises(UserError):
        require_known_config(Path("config.yaml"))


@pytest.mark.parametrize("text", ["runs.first", "own.csv", "a.b.c", "val/molecule/valid", "0.1", "cat.png"])
def test_names_of_files_are_no_classes(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings(trainer={"default_root_dir": text})))
    require_known_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("name", ["a; touch sprung", "../a.tar", "$(touch sprung).tar", "-a.tar", "a|b", ""])
def test_names_of_shards_are_no_commands(name: str) -> None:
    shard = {"name": name, "num_samples": 1, "num_bytes": 1}
    text = {"format": "unite image shards 1", "class_names": ["a"], "image_size": 8, "splits": {"train": [shard]}}
    with pytest.raises(UserError, match="names a shard"):
        Manifest.from_json(json.dumps({**text, "plan": "", "skipped": []}), "manifest.json")
