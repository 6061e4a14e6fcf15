"""Bursts and collapses of finite losses are told, once each, and stop a run where that is asked for."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.utils import parameters_to_vector

from tests.support.modules import FAST, make_module
from tests.toy_modality.curves import CurveDataModule
from unite.callbacks.bursts import BurstGuard
from unite.callbacks.non_finite import UNHEALTHY, last_good_checkpoint
from unite.engine.step_terms import latent_spread
from unite.errors import TrainingError, UserError
from unite.module import UniteModule
from unite.trainer import UniteTrainer


class Pretend(BurstGuard):
    """Sees the flow losses and spreads it is given, in place of the step's."""

    def __init__(self, losses: list[float], spreads: list[float], **settings: Any) -> None:
        super().__init__(**settings)
        self.losses, self.spreads = losses, spreads

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, UniteModule)
        number = trainer.global_step - 1
        for name, step in pl_module.step_terms.items():
            step.terms["flow"] = torch.tensor(self.losses[number])
            pl_module.step_terms[name] = step._replace(spread=torch.tensor(self.spreads[number]))
        super().on_train_batch_end(trainer, pl_module, *args)


def warned(trainer: Trainer, module: UniteModule) -> list[str]:
    """What a run warns of its health."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, datamodule=CurveDataModule())
    texts = [str(warning.message) for warning in caught]
    return [text for text in texts if "looks in a row" in text]


def trainer_of(folder: Path, *callbacks: Any, **options: Any) -> UniteTrainer:
    return UniteTrainer(
        accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), logger=False, log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, **options,
    )  # fmt: skip


def fit(folder: Path, losses: list[float], spreads: list[float] | None = None, **settings: Any) -> list[str]:
    """What a run with these flow losses, and spreads of latents, warns of."""
    guard = Pretend(losses, spreads or [1.0] * len(losses), **settings)
    trainer = trainer_of(folder, guard, max_steps=len(losses), enable_checkpointing=False)
    return warned(trainer, make_module())


def test_a_burst_that_lasts_is_told_once_and_again_at_the_end(tmp_path: Path) -> None:
    burst, again = fit(tmp_path, [1.9] * 6 + [144.0] * 5)
    assert burst.startswith(
        "step 9: the loss term curve/flow per variance of the latents is 144, 76 times its median of before, "
        "for 3 looks in a row"
    )
    assert "smaller --model.optimizer.lr" in burst
    assert again.startswith("this run was not healthy: step 9")


def test_a_burst_that_passes_is_not_told(tmp_path: Path) -> None:
    assert fit(tmp_path, [1.9] * 6 + [144.0, 144.0, 1.9] * 3) == []


def test_a_flow_loss_may_grow_as_its_latents_do(tmp_path: Path) -> None:
    spreads = [0.04 * 1.4**step for step in range(14)]  # to 3
    losses = [5 * spread**2 for spread in spreads]
    assert losses[-1] > 100 * losses[0]
    assert fit(tmp_path, losses, spreads) == []
    assert len(fit(tmp_path, losses, [0.04] * len(losses))) == 2


def test_a_collapse_of_the_latents_is_told(tmp_path: Path) -> None:
    collapse, _ = fit(tmp_path, [1.9] * 6, [0.3, 0.2, 0.009, 0.0005, 0.0005, 0.0005])
    assert collapse.startswith("step 5: the latents of curve differ by 0.0005 only (below 0.01): they have collapsed")


def test_latents_of_an_untrained_network_have_not_collapsed(tmp_path: Path) -> None:
    assert fit(tmp_path, [1.9] * 8, [0.0, 0.0, 0.001, 0.002, 0.004, 0.02, 0.05, 0.1]) == []


def test_a_healthy_run_is_told_nothing(tmp_path: Path) -> None:
    assert fit(tmp_path, [8.0, 5.0, 4.0, 3.0, 2.5, 2.0, 1.9, 3.1, 1.2]) == []


class Early(Callback):
    """Writes a checkpoint after the first epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


class From(Callback):
    """Does something to a module before each optimizer step from some step on."""

    def __init__(self, step: int, act: Callable[[UniteModule, Any], None]) -> None:
        self.step, self.act = step, act

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if trainer.global_step >= self.step:
            assert isinstance(pl_module, UniteModule)
            self.act(pl_module, optimizer)


def hurry(module: UniteModule, optimizer: Any) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 0.3


def deaden(module: UniteModule, optimizer: Any) -> None:
    with torch.no_grad():
        dict(module.encoder.latent_norm.named_parameters())["weight"].zero_()


def test_a_run_that_bursts_is_told_by_default(tmp_path: Path) -> None:
    module = make_module(optimizer=FAST)
    burst, *_ = warned(trainer_of(tmp_path, From(8, hurry), max_steps=16), module)
    assert re.match(r"step 1\d: the loss term curve/\S+ (per variance of the latents )?is \S+, \d+ times its", burst)
    assert parameters_to_vector(module.parameters()).isfinite().all()
    assert warned(trainer_of(tmp_path / "healthy", max_steps=16), make_module(optimizer=FAST)) == []


def test_dead_latents_are_told_by_default(tmp_path: Path) -> None:
    collapse, *_ = warned(trainer_of(tmp_path, From(4, deaden), max_steps=10), make_module(optimizer=FAST))
    assert "the latents of curve differ by" in collapse


def test_stopping_is_an_option(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 8: .* for 2 looks in a row; no checkpoint was written yet"):
        fit(tmp_path, [1.9] * 6 + [144.0] * 6, action="stop", patience=2)
    trainer = trainer_of(tmp_path, bursts="stop")
    (guard,) = [callback for callback in trainer.callbacks if isinstance(callback, BurstGuard)]  # type: ignore[attr-defined]
    assert guard.action == "stop"
    assert not any(isinstance(callback, BurstGuard) for callback in trainer_of(tmp_path, bursts="ignore").callbacks)  # type: ignore[attr-defined]


def test_a_checkpoint_within_a_burst_is_not_called_good(tmp_path: Path) -> None:
    """An epoch has four steps: checkpoints are of the steps 4, 8 and 12."""
    guard = Pretend([1.9] * 6 + [144.0] * 6, [1.0] * 12)
    module = make_module(optimizer=FAST)
    trainer = trainer_of(tmp_path, guard, Early(tmp_path / "step4.ckpt"), max_epochs=3)
    burst, _ = warned(trainer, module)
    assert re.search(r"the last good checkpoint is \S*step4\.ckpt; continue it with", burst)
    late = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert late[UNHEALTHY] == ["curve/flow"]
    good = last_good_checkpoint(tmp_path)
    assert good is not None
    assert good.name == "step4.ckpt"
    assert last_good_checkpoint(tmp_path, last_step=3) is None


@pytest.mark.parametrize("settings", [{"factor": 1}, {"patience": 0}, {"history": 3}, {"action": "skip"}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"BurstGuard\.{next(iter(settings))} is"):
        BurstGuard(**settings)


def test_spread_is_the_standard_deviation_over_samples() -> None:
    latents = torch.randn(50, 3, 4, dtype=torch.float64) * torch.tensor([0.1, 1.0, 3.0, 0.0])
    expected = latents.var(dim=0).mean().sqrt()
    torch.testing.assert_close(latent_spread(latents).double(), expected, rtol=1e-6, atol=0)
    shifted = latents + 5 * torch.randn(3, 4)  # the same in each sample
    torch.testing.assert_close(latent_spread(shifted).double(), expected, rtol=1e-5, atol=0)


def test_spread_is_of_real_latents_only() -> None:
    latents = torch.randn(6, 3, 4)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]]).bool()
    squares = [(latents[:num, k] - latents[:num, k].mean(0)).square().sum() for k, num in ((0, 6), (1, 3))]
    expected = (torch.stack(squares).sum() / (4 * (5 + 2))).sqrt()
    torch.testing.assert_close(latent_spread(latents.masked_fill(~mask[..., None], 99.0), mask), expected)
    assert latent_spread(latents[:1]).isnan()
