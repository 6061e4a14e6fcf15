"""Runs that cannot go on say why, in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from tests.support.commands import RunCli
from tests.support.modules import make_module
from tests.support.paths import TESTS
from tests.toy_modality.curves import CurveDataModule
from unite.callbacks.non_finite import NonFiniteGuard, advice, last_good_checkpoint, sent_to_cpu
from unite.commands.model.memory_errors import explained_memory_errors, is_out_of_memory
from unite.engine.optimizer import OptimizerSettings
from unite.errors import TrainingError
from unite.trainer import UniteTrainer

TOY = TESTS / "toy_modality" / "curves.yaml"
EXPLODING = ["--model.optimizer.lr", "1e30", "--model.optimizer.warmup_steps", "0"]


class Spoil(Callback):
    """Makes the gradients of one step NaN."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.weights: list[torch.Tensor] = []

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self.step:
            next(iter(pl_module.parameters())).grad.fill_(float("nan"))  # type: ignore[union-attr]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.weights.append(torch.cat([p.detach().flatten() for p in pl_module.parameters()]))


class LateGuard(NonFiniteGuard):
    """Looks a step later, as on a GPU."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.is_delayed = True


def make_trainer(folder: Path, *callbacks: Callback, **settings: Any) -> UniteTrainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"limit_val_batches": 0, **quiet, **settings}
    return UniteTrainer(accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), **settings)


def module() -> Any:
    return make_module(optimizer=OptimizerSettings(warmup_steps=0))


@pytest.mark.parametrize("chunk", ["null", "1"])
def test_a_loss_that_is_no_number_ends_the_run_in_one_line(run_cli: RunCli, tmp_path: Path, chunk: str) -> None:
    result = run_cli("fit", "-c", TOY, "--trainer.default_root_dir", tmp_path, "--model.flow_chunk", chunk, *EXPLODING)
    assert result.code == 1
    (line,) = [line for line in result.err.splitlines() if line.startswith("unite: ")]
    assert line.startswith("unite: failed: step 1: the loss term curve/")
    assert "no checkpoint was written yet; try again with a smaller --model.optimizer.lr" in line
    assert "Traceback" not in result.err
    assert not (tmp_path / "last.ckpt").exists()


def test_the_last_good_checkpoint_is_named(tmp_path: Path) -> None:
    """Four steps make an epoch, after which a checkpoint is written."""
    trainer = make_trainer(tmp_path, Spoil(step=6), max_epochs=3, limit_val_batches=1)
    with pytest.raises(TrainingError, match=r"step 6: .*the last good checkpoint is .*last\.ckpt; continue it with"):
        trainer.fit(module(), datamodule=CurveDataModule())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


def test_a_checkpoint_of_spoilt_weights_is_not_called_good(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.fit(module(), datamodule=CurveDataModule())
    last = tmp_path / "last.ckpt"
    assert last_good_checkpoint(tmp_path) == last
    checkpoint = torch.load(last, weights_only=True)
    next(iter(checkpoint["state_dict"].values())).fill_(float("nan"))
    torch.save(checkpoint, tmp_path / "newer.ckpt")
    assert last_good_checkpoint(tmp_path) == last
    torch.save(checkpoint, last)
    assert last_good_checkpoint(tmp_path) is None
    assert advice(trainer).startswith("no checkpoint here is whole and finite")


def test_skipping_is_an_option_with_an_end(run_cli: RunCli, tmp_path: Path) -> None:
    options = ["--trainer.default_root_dir", tmp_path, "--trainer.non_finite", "skip", "--trainer.max_epochs", "9"]
    result = run_cli("fit", "-c", TOY, *options, *EXPLODING)
    assert result.code == 1
    assert "step 1 skipped: the loss term curve/" in result.err
    assert "after 10 skipped steps in a row" in result.err
    assert "non_finite skip" not in result.err  # it is on


def test_a_skipped_step_changes_no_weight_and_training_goes_on(tmp_path: Path) -> None:
    spoil = Spoil(step=1)
    with pytest.warns(UserWarning, match="1 of the 4 steps were skipped"):
        make_trainer(tmp_path, spoil, max_steps=4, non_finite="skip").fit(module(), datamodule=CurveDataModule())
    first, second, third, fourth = spoil.weights
    assert torch.equal(first, second)
    assert not torch.equal(second, third)
    assert not torch.equal(third, fourth)


def test_ignoring_is_an_option(tmp_path: Path) -> None:
    spoil = Spoil(step=1)
    make_trainer(tmp_path, spoil, max_steps=3, non_finite="ignore").fit(module(), datamodule=CurveDataModule())
    assert spoil.weights[-1].isnan().any()


@pytest.mark.parametrize("guard", [NonFiniteGuard, LateGuard])
def test_a_gradient_alone_is_found_too_and_its_step_is_named(guard: type[NonFiniteGuard], tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, guard(), Spoil(step=2), max_steps=8, non_finite="ignore")
    with pytest.raises(TrainingError, match="step 2: the norm of the gradients is nan, though all terms"):
        trainer.fit(module(), datamodule=CurveDataModule())
    assert not (tmp_path / "last.ckpt").exists()


def test_a_late_guard_lets_no_lost_weights_into_a_checkpoint(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, LateGuard(), Spoil(step=2), max_steps=3, non_finite="ignore")
    with pytest.raises(TrainingError, match="step 2"):
        trainer.fit(module(), datamodule=CurveDataModule())
    assert not (tmp_path / "last.ckpt").exists()


def test_too_large_a_batch_says_what_to_turn(run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import curves  # type: ignore[import-not-found]  # as the command line imports it

    def decode(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.\nGPU 0 has ...")

    monkeypatch.setattr(curves.CurveAdapter, "decode", decode)
    result = run_cli("fit", "-c", TOY, "--trainer.default_root_dir", tmp_path)
    assert result.code == 1
    (line,) = [line for line in result.err.splitlines() if line.startswith("unite: ")]
    assert "out of memory (CUDA out of memory. Tried to allocate 9.00 GiB.)" in line
    for knob in (
        "flow_chunk 1 (equal up to rounding)",
        "gradient_checkpointing true",
        "precision bf16-mixed",
        "batch_size",
    ):
        assert knob in line
    turned = ["--model.flow_chunk", "1", "--trainer.precision", "bf16-mixed"]
    again = run_cli("fit", "-c", TOY, "--trainer.default_root_dir", tmp_path, *turned)
    assert "flow_chunk" not in again.err
    assert "bf16" not in again.err


def test_errors_of_memory_are_known_from_others() -> None:
    with pytest.raises(RuntimeError) as full:
        torch.empty(1 << 60)
    assert is_out_of_memory(full.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory\nCompile with ..."))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"), explained_memory_errors("fit", None):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="of what a GPU is waited for, only a GPU knows")
def test_looking_at_the_step_before_waits_for_nothing_that_came_after() -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        arrived = sent_to_cpu(torch.tensor([1.0, 2.0]).pin_memory().to("cuda", non_blocking=True))
        torch.cuda._sleep(1_000_000_000)  # a second, roughly: what came after
        after = torch.cuda.Event()
        after.record()
        assert arrived().tolist() == [1.0, 2.0]
        assert not after.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
