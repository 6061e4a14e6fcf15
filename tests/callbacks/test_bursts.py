"""Bursts and collapses of finite losses are told, once each, and stop a run where that is asked for."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from tests.support.modules import make_module
from tests.toy_modality.curves import CurveDataModule
from unite.callbacks.bursts import BurstGuard
from unite.errors import TrainingError, UserError
from unite.module import UniteModule
from unite.trainer import UniteTrainer


class Pretend(BurstGuard):
    """Sees the flow losses it is given, in place of the step's."""

    def __init__(self, losses: list[float], **settings: Any) -> None:
        super().__init__(**settings)
        self.losses = losses

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, UniteModule)
        for step in pl_module.step_terms.values():
            step.terms["flow"] = torch.tensor(self.losses[trainer.global_step - 1])
        super().on_train_batch_end(trainer, pl_module, *args)


def fit(folder: Path, losses: list[float], **settings: Any) -> list[str]:
    """What a run with these flow losses warns of."""
    trainer = UniteTrainer(
        accelerator="cpu", default_root_dir=folder, callbacks=[Pretend(losses, **settings)], logger=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, log_every_n_steps=1,
        max_steps=len(losses), enable_checkpointing=False,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(make_module(), datamodule=CurveDataModule())
    texts = [str(warning.message) for warning in caught]
    return [text for text in texts if "curve/flow" in text]


def test_a_burst_is_told_once_and_again_at_the_end(tmp_path: Path) -> None:
    burst, again = fit(tmp_path, [1.9] * 6 + [144.0] * 3)
    assert burst.startswith("step 7: the loss term curve/flow is 144, before it was 1.9 (76 times as much)")
    assert "smaller --model.optimizer.lr" in burst
    assert again.startswith("this run was not healthy: step 7")


def test_a_collapse_is_told(tmp_path: Path) -> None:
    collapse, _ = fit(tmp_path, [1.9] * 6 + [1e-4] * 2)
    assert "step 7: the loss term curve/flow is 0.0001" in collapse
    assert "latents have probably collapsed" in collapse


def test_a_healthy_run_is_told_nothing(tmp_path: Path) -> None:
    assert fit(tmp_path, [8.0, 5.0, 4.0, 3.0, 2.5, 2.0, 1.9, 3.1, 1.2]) == []


def test_stopping_is_an_option(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 8: .* for 2 looks in a row; no checkpoint was written yet"):
        fit(tmp_path, [1.9] * 6 + [144.0] * 6, action="stop", patience=2)


@pytest.mark.parametrize("settings", [{"factor": 1}, {"patience": 0}, {"history": 3}, {"action": "skip"}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"BurstGuard\.{next(iter(settings))} is"):
        BurstGuard(**settings)
