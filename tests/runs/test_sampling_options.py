"""A model samples as its figures were made, unless told otherwise."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.commands import RunCli
from tests.support.paths import REPOSITORY
from unite import UniteModule, UserError
from unite.flow import SamplingOptions

MODEL = REPOSITORY / "docs" / "results" / "qm9_long" / "model"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose figures come from two steps of Heun."""
    from unite.cli import main

    folder = tmp_path_factory.mktemp("sampling")
    metrics = "{class_path: unite.callbacks.GenerationMetrics, init_args: {num_samples: 4, num_steps: 2, solver: heun}}"
    (folder / "how.yaml").write_text(f"trainer: {{callbacks: [{metrics}]}}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY / "tests" / "toy_modality")
        options = ["--max_epochs", "1", "--trainer.default_root_dir", str(folder / "run"), "--quiet"]
        assert main(["fit", "curves.yaml", "--config", str(folder / "how.yaml"), *options]) == 0
    return folder / "run"


def how_of(folder: Path) -> SamplingOptions:
    return UniteModule.load_from_checkpoint(folder, map_location="cpu", trust=True).adapters["curve"].sampling


@pytest.mark.usefixtures("in_toy_folder")
def test_checkpoints_and_exports_keep_how_samples_are_drawn(run_cli: RunCli, trained: Path, tmp_path: Path) -> None:
    assert how_of(trained) == SamplingOptions(num_steps=2, solver="heun")
    assert run_cli("export", trained, tmp_path / "shared").code == 0
    settings = json.loads((tmp_path / "shared" / "config.json").read_text())
    assert settings["sampling"]["curve"]["solver"] == "heun"


@pytest.mark.usefixtures("in_toy_folder")
def test_the_command_samples_so_unless_told_otherwise(run_cli: RunCli, trained: Path, tmp_path: Path) -> None:
    made = {}
    for name, options in {
        "default": (),
        "told": ("--num_steps", "2", "--solver", "heun"),
        "other": ("--solver", "euler"),
    }.items():
        result = run_cli("sample", trained, "--trust", "-n", "4", "--output", tmp_path / name, *options)
        assert result.code == 0, result.err
        made[name] = (tmp_path / name / "curves.json").read_text()
    assert made["default"] == made["told"] != made["other"]


def test_the_model_that_comes_with_the_package_samples_as_its_card_says() -> None:
    assert UniteModule.from_pretrained("qm9").adapters["molecule"].sampling == SamplingOptions(
        20, "euler", stochasticity=1.0, restarts=20, restart_steps=4
    )


@pytest.mark.parametrize(
    "damage", [{"num_steps": 0}, {"solver": "magic"}, {"speed": 3}, {"guidance_interval": [1]}, 7, {"num_steps": "x"}]
)
def test_damaged_options_are_refused_in_one_line(damage: object, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(MODEL, tmp_path / "model"))
    settings = json.loads((folder / "config.json").read_text())
    settings["sampling"] = {"molecule": damage}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError):
        UniteModule.from_pretrained(folder)


@pytest.mark.usefixtures("in_toy_folder")
def test_a_continued_run_that_samples_otherwise_says_so(run_cli: RunCli, trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    metrics = "{class_path: unite.callbacks.GenerationMetrics, init_args: {num_samples: 4, num_steps: 3}}"
    (tmp_path / "how.yaml").write_text(f"trainer: {{callbacks: [{metrics}]}}\n")
    configs = ("--config", "curves.yaml", "--config", tmp_path / "how.yaml")
    result = run_cli("fit", *configs, "--ckpt_path", run, "--trust", "--max_epochs", "2", "--default_root_dir", run)
    assert result.code == 0, result.err
    assert how_of(run) == SamplingOptions(num_steps=3)
