"""Monitors that will never be logged are refused before the first step, and no others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torchmetrics import Metric

from tests.support.commands import RunCli
from tests.support.modules import fit
from tests.toy_modality.curves import MeanRadius
from unite.callbacks.checks import monitors
from unite.callbacks.checks.monitors import MonitorsExist
from unite.callbacks.generation_metrics import GenerationMetrics
from unite.engine.seeding import seed_all
from unite.errors import UserError
from unite.modalities.molecule.metrics.graphs import GraphGenerationMetrics
from unite.module import UniteModule

pytestmark = pytest.mark.usefixtures("in_toy_folder")

Watching = Callable[[str], Callback]


def checkpoint(monitor: str) -> ModelCheckpoint:
    return ModelCheckpoint(monitor=monitor, mode="min", filename="best")


@pytest.fixture(params=[checkpoint, EarlyStopping])
def watching(request: pytest.FixtureRequest) -> Watching:
    made: Watching = request.param
    return made


def train(folder: Path, *callbacks: Callback, **settings: Any) -> int:
    metrics = GenerationMetrics(num_samples=2, num_steps=1, num_drawn=0)
    given = {"enable_checkpointing": True, "max_epochs": 1, "max_steps": -1, "limit_val_batches": 1}
    _, trainer = fit(folder, metrics, MonitorsExist(), *callbacks, **{**given, **settings})
    return trainer.global_step


@pytest.mark.parametrize("name", ["val/curve/mean_radius", "val/curve/points", "val/curve/flow", "train/loss"])
def test_what_is_logged_may_be_watched(tmp_path: Path, watching: Watching, name: str) -> None:
    assert train(tmp_path, watching(name)) == 4


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("val/curve/mean_radios", "did you mean 'val/curve/mean_radius'"),
        ("val_loss", "it may be one of val/curve/flow, val/curve/mean_radius, val/curve/points"),
        ("val/molecule/validity", "it may be one of"),
        ("test/curve/points", "did you mean"),
    ],
)
def test_what_is_not_logged_is_refused_before_the_first_step(
    tmp_path: Path, watching: Watching, name: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UniteModule, "training_step", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(UserError, match=rf"monitor is '{name}', which is not logged; .*({told})"):
        train(tmp_path, watching(name))


def test_what_cannot_be_known_is_left_to_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Logs(Callback):
        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.log("mine", 1.0)

    assert train(tmp_path, EarlyStopping("mine"), Logs()) == 4
    assert train(tmp_path, EarlyStopping("val_loss", strict=False)) == 4, "it may be missing"
    assert train(tmp_path, checkpoint("val_loss"), max_steps=2, limit_val_batches=0) == 2, "it is never asked for"

    def fail(self: Metric) -> None:
        raise RuntimeError("no samples")

    monkeypatch.setattr(MeanRadius, "compute", fail)
    with pytest.raises(RuntimeError):  # of Lightning, or of the metric, at the first validation
        train(tmp_path, EarlyStopping("val/curve/of_this_metric"))


def test_a_run_is_the_same_to_the_bit_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for names in (("val/curve/flow",), ()):
        seed_all(0)
        module, _ = fit(tmp_path, *([MonitorsExist(), *map(EarlyStopping, names)] if names else []), max_steps=4)
        found.append(list(module.state_dict().values()))
    assert all(map(torch.equal, *found))


def test_names_that_depend_on_the_data_are_not_refused() -> None:
    assert "bonds_agree" in GraphGenerationMetrics.conditional_names
    assert monitors._is_nested("val/molecule/reject/crashed", {"molecule"})
    assert not monitors._is_nested("val/molecule/typo", {"molecule"})
    assert not monitors._is_nested("val/image/reject/crashed", {"molecule"})


def test_the_command_refuses_and_leaves_no_run_folder(run_cli: RunCli, tmp_path: Path) -> None:
    watched = "lightning.pytorch.callbacks.ModelCheckpoint"
    args = ("--config", "curves.yaml", "--trainer.default_root_dir", tmp_path / "run")
    result = run_cli(
        "fit", *args, f"--trainer.callbacks+={watched}", "--trainer.callbacks.init_args.monitor=val/curve/typo"
    )
    assert result.code == 2
    assert "ModelCheckpoint.monitor is 'val/curve/typo', which is not logged" in result.err
    assert not (tmp_path / "run").exists()
