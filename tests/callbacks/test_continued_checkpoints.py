"""Best checkpoints of a run that was killed between two files of one validation."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.support.modules import FAST, make_module
from tests.toy_modality.curves import CurveDataModule
from unite.trainer import UniteTrainer


class Given(Callback):
    """Logs a score by the step."""

    def __init__(self, scores: dict[int, float]) -> None:
        self.scores = scores

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("score", torch.tensor(self.scores[trainer.global_step]))


class KilledBeforeLast(Callback):
    """Puts away last.ckpt as a kill right behind the best checkpoint of a step would leave it."""

    def __init__(self, step: int, folder: Path) -> None:
        self.step, self.folder = step, folder

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self.step:
            shutil.copy(self.folder / "last.ckpt", self.folder / ".before")


def fit(folder: Path, scores: dict[int, float], max_steps: int, *callbacks: Callback, **settings: Any) -> None:
    trainer = UniteTrainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=max_steps,
        val_check_interval=2,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Given(scores), ModelCheckpoint(monitor="score", mode="max", filename="best"), *callbacks],
    )
    trainer.fit(make_module(optimizer=FAST), datamodule=CurveDataModule(num_curves=64, batch_size=8), **settings)


def step_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


@pytest.mark.parametrize("killed_at", [2, 4])
def test_best_is_best_again(killed_at: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the first validation, of which last.ckpt knows no best, and at a later one, whose best took its place."""
    scores = {2: 0.2, 4: 0.4, 6: 0.3}
    if killed_at == 2:
        fit(tmp_path, scores, 1)
        shutil.copy(tmp_path / "last.ckpt", tmp_path / ".before")
        fit(tmp_path, scores, 2, ckpt_path=tmp_path / "last.ckpt")
    else:
        fit(tmp_path, scores, killed_at, KilledBeforeLast(killed_at, tmp_path))
    assert step_of(tmp_path / "best.ckpt") == killed_at
    shutil.move(tmp_path / ".before", tmp_path / "last.ckpt")
    assert step_of(tmp_path / "last.ckpt") < killed_at
    capsys.readouterr()
    fit(tmp_path, scores, 6, ckpt_path=tmp_path / "last.ckpt")
    assert "it will be made anew" in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"best.ckpt", "last.ckpt"}
    assert step_of(tmp_path / "best.ckpt") == 4


def test_what_lies_before_the_checkpoint_or_is_of_others_stays(tmp_path: Path) -> None:
    scores = {2: 0.5, 4: 0.4}
    fit(tmp_path, scores, 4)
    shutil.copy(tmp_path / "last.ckpt", tmp_path / "mine.ckpt")
    (tmp_path / "best-text.ckpt").write_text("hello")
    fit(tmp_path, {**scores, 6: 0.1}, 6, ckpt_path=tmp_path / "last.ckpt")
    assert step_of(tmp_path / "best.ckpt") == 2
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"best.ckpt", "last.ckpt", "mine.ckpt", "best-text.ckpt"}
