"""Averaged weights and the metrics callback."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor

from tests.support.modules import FAST, fit, make_module, make_trainer
from tests.toy_modality.curves import CurveAdapter, CurveDataModule
from unite.callbacks.averaging import WeightAveraging
from unite.callbacks.generation_metrics import GenerationMetrics
from unite.errors import UserError
from unite.module import UniteModule


class Recorder(Callback):
    """Keeps a parameter as it is after each step, in validation, and after it."""

    def __init__(self, fail_in_validation: bool = False) -> None:
        self.after_step: list[Tensor] = []
        self.in_validation: list[Tensor] = []
        self.after_validation: list[Tensor] = []
        self.fail_in_validation = fail_in_validation

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.after_step.append(weight(pl_module))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.in_validation.append(weight(pl_module))
        if self.fail_in_validation:
            raise RuntimeError("on purpose")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.after_validation.append(weight(pl_module))


def weight(module: LightningModule) -> Tensor:
    assert isinstance(module, UniteModule)
    return module.encoder.latent_in.weight.detach().clone()


def test_average_follows_its_formula(tmp_path: Path) -> None:
    averaging, recorder = WeightAveraging(decay=0.6, warmup=False), Recorder()
    torch.manual_seed(0)
    start = weight(make_module(optimizer=FAST))
    torch.manual_seed(0)
    module, _ = fit(tmp_path, averaging, recorder)
    expected = start
    for after_step in recorder.after_step:
        expected = 0.6 * expected + 0.4 * after_step
    torch.testing.assert_close(weight(module), expected)


def test_warmup_forgets_the_random_start_sooner(tmp_path: Path) -> None:
    averaging, recorder = WeightAveraging(decay=0.9999), Recorder()
    module, _ = fit(tmp_path, averaging, recorder)
    assert (weight(module) - recorder.after_step[-1]).abs().mean() < 0.02


def test_accumulated_batches_count_as_one_update(tmp_path: Path) -> None:
    averaging = WeightAveraging()
    fit(tmp_path, averaging, accumulate_grad_batches=2, max_steps=2)
    assert averaging.num_updates == 2


def test_validation_sees_averaged_weights_and_training_raw_ones(tmp_path: Path) -> None:
    averaging, recorder = WeightAveraging(decay=0.9, warmup=False), Recorder()
    fit(tmp_path, averaging, recorder, max_epochs=1, max_steps=-1)
    assert not torch.allclose(recorder.in_validation[0], recorder.after_step[-1])
    torch.testing.assert_close(recorder.after_validation[0], recorder.after_step[-1], atol=0, rtol=0)


def test_checkpoint_holds_both_and_resumes_with_both(tmp_path: Path) -> None:
    averaging, recorder = WeightAveraging(decay=0.9, warmup=False), Recorder()
    _, trainer = fit(tmp_path, averaging, recorder)
    path = tmp_path / "x.ckpt"
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    raw = checkpoint["current_model_state"]["encoder.latent_in.weight"]
    torch.testing.assert_close(raw, recorder.after_step[-1], atol=0, rtol=0)
    averaged = checkpoint["state_dict"]["encoder.latent_in.weight"]
    torch.testing.assert_close(weight(UniteModule.load_from_checkpoint(path)), averaged, atol=0, rtol=0)
    assert not torch.allclose(raw, averaged)

    class Resumed(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            torch.testing.assert_close(weight(pl_module), raw, atol=0, rtol=0)
            assert trainer.global_step == 4

    again = WeightAveraging(decay=0.9, warmup=False)
    trainer = make_trainer(tmp_path, callbacks=[again, Resumed()], max_steps=4, num_sanity_val_steps=0)
    module = make_module(optimizer=FAST)
    trainer.fit(module, datamodule=CurveDataModule(num_curves=64, batch_size=16), ckpt_path=path)
    torch.testing.assert_close(weight(module), averaged, atol=0, rtol=0)
    assert again.num_updates == 4


def test_checkpoint_written_while_training_loads_as_the_average(tmp_path: Path) -> None:
    """Every key of the state dict is averaged: no second name of a shared weight brings the raw one back."""

    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            trainer.save_checkpoint(tmp_path / "x.ckpt")

    fit(tmp_path, WeightAveraging(decay=0.9, warmup=False), Save())
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    averaged = checkpoint["state_dict"]["encoder.latent_in.weight"]
    assert not torch.allclose(averaged, checkpoint["current_model_state"]["encoder.latent_in.weight"])
    loaded = UniteModule.load_from_checkpoint(tmp_path / "x.ckpt")
    torch.testing.assert_close(weight(loaded), averaged, atol=0, rtol=0)


def test_an_exception_in_validation_leaves_the_raw_weights(tmp_path: Path) -> None:
    averaging, recorder = WeightAveraging(decay=0.9, warmup=False), Recorder(fail_in_validation=True)
    module = make_module(optimizer=FAST)
    trainer = make_trainer(tmp_path, callbacks=[averaging, recorder], max_epochs=1, num_sanity_val_steps=0)
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.fit(module, datamodule=CurveDataModule(num_curves=64, batch_size=16))
    torch.testing.assert_close(weight(module), recorder.after_step[-1], atol=0, rtol=0)


def test_metrics_and_pictures_are_logged(tmp_path: Path) -> None:
    metrics = GenerationMetrics(num_samples=6, num_steps=2, num_drawn=4)
    loggers = [CSVLogger(tmp_path, name="", version=""), TensorBoardLogger(tmp_path, name="", version="")]
    _, trainer = fit(tmp_path, metrics, max_epochs=2, max_steps=-1, logger=loggers)
    assert "val/curve/mean_radius" in trainer.callback_metrics
    pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert pictures == ["val_curve_samples_0000004.png", "val_curve_samples_0000008.png"]  # curves show no originals
    assert "val/curve/mean_radius" in (tmp_path / "metrics.csv").read_text()
    assert list(tmp_path.glob("events.out.*"))


def test_generation_can_be_rarer_than_validation(tmp_path: Path) -> None:
    metrics = GenerationMetrics(num_samples=6, num_steps=2, num_drawn=4, every_n_validations=2)
    fit(tmp_path, metrics, max_epochs=3, max_steps=-1)
    assert len(list((tmp_path / "pictures").iterdir())) == 2


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match="decay is 1"):
        WeightAveraging(decay=1.0)
    with pytest.raises(UserError, match="num_samples is 0"):
        GenerationMetrics(num_samples=0)


def test_a_callback_that_served_another_module_starts_afresh(tmp_path: Path) -> None:
    averaging = WeightAveraging(decay=0.9, warmup=False)
    fit(tmp_path, averaging)
    torch.manual_seed(7)
    module = make_module(optimizer=FAST)
    before = weight(module)

    class Check(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            torch.testing.assert_close(weight(pl_module), before, atol=0, rtol=0)

    trainer = make_trainer(tmp_path, callbacks=[averaging, Check()], max_steps=2, num_sanity_val_steps=0)
    trainer.fit(module, datamodule=CurveDataModule(num_curves=64, batch_size=16))
    assert averaging.num_updates == 2


def test_resumed_run_with_accumulation_makes_the_same_number_of_updates(tmp_path: Path) -> None:
    settings = {"accumulate_grad_batches": 2, "limit_val_batches": 0}
    _, trainer = fit(tmp_path, WeightAveraging(), max_steps=3, **settings)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = WeightAveraging()
    trainer = make_trainer(tmp_path, callbacks=[again], max_steps=6, num_sanity_val_steps=0, **settings)
    data = CurveDataModule(num_curves=64, batch_size=16)
    trainer.fit(make_module(optimizer=FAST), datamodule=data, ckpt_path=tmp_path / "x.ckpt")
    assert again.num_updates == 6


def test_checkpoints_without_averaged_weights_are_refused(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, save_weights_only=True)
    with pytest.raises(UserError, match="save_weights_only"):
        fit(tmp_path, WeightAveraging(), saver, enable_checkpointing=True)


@pytest.mark.parametrize("name", ["num_steps", "batch_size", "num_test_samples", "every_n_validations"])
def test_counts_of_zero_are_refused_before_the_run(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is 0; it must be at least 1"):
        GenerationMetrics(**{name: 0})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="num_drawn is -1; it must be at least 0"):
        GenerationMetrics(num_drawn=-1)


@pytest.mark.parametrize("world_size", [1, 3])
def test_processes_share_the_samples_of_one_seed(world_size: int) -> None:
    """So classes are balanced over all processes, and their number changes no sample."""
    seen: list[int] = []

    class Generating(UniteModule):
        def generate(self, modality: str, num_samples: int, **options: Any) -> list[Any]:
            assert (num_samples, options["seed"]) == (9, 0)
            seen.extend(options["indices"])
            return super().generate(modality, num_samples, **options)

    module = Generating(make_module().encoder, {"curve": CurveAdapter()})
    for rank in range(world_size):
        trainer = SimpleNamespace(
            world_size=world_size,
            global_rank=rank,
            is_global_zero=False,
            precision_plugin=SimpleNamespace(forward_context=nullcontext),
            progress_bar_callback=None,
        )
        callback = GenerationMetrics(num_samples=9, num_steps=1)
        callback._generation = callback._reconstruction = {"curve": None}
        module.log_dict = lambda values: None  # type: ignore[method-assign, assignment, misc]
        callback._report("val", trainer, module, 9)  # type: ignore[arg-type]
    assert sorted(seen) == list(range(9))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "eulr"}, r"GenerationMetrics\.solver is 'eulr'; it must be one of 'euler'"),
        ({"guidance_interval": (0.9, 0.1)}, r"guidance_interval is \[0\.9, 0\.1\]; its end must be above"),
        ({"guidance_scale": 2.0}, r"GenerationMetrics\.guidance_scale is 2\.0, but modality 'curve' has no classes"),
    ],
)
def test_what_could_not_generate_is_refused_before_the_first_step(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    class Unconditional(CurveAdapter):
        num_classes = 0

    module, recorder = UniteModule(make_module().encoder, {"curve": Unconditional()}), Recorder()

    def run() -> None:
        trainer = make_trainer(tmp_path, max_steps=4, callbacks=[recorder, GenerationMetrics(**settings)])
        trainer.fit(module, datamodule=CurveDataModule())

    with pytest.raises(UserError, match=message):
        run()
    assert not recorder.after_step


def test_evaluations_before_between_and_after_training_are_no_obstacle(tmp_path: Path) -> None:
    """Lightning evaluates in inference mode, whose tensors training cannot change in place."""
    averaging = WeightAveraging(decay=0.5, warmup=False)
    module, data = make_module(optimizer=FAST), CurveDataModule(num_curves=64, batch_size=16)
    metrics = GenerationMetrics(num_samples=4, num_steps=2, num_drawn=0)
    trainer = make_trainer(tmp_path, max_steps=4, callbacks=[averaging, metrics])
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.fit(module, datamodule=data)
    within = trainer.callback_metrics["val/curve/points"]
    (after,) = trainer.validate(module, datamodule=data, verbose=False)
    assert after["val/curve/points"] == pytest.approx(float(within))
    trainer = make_trainer(tmp_path, max_steps=6, callbacks=[averaging])
    trainer.fit(module, datamodule=data)
    assert averaging.num_updates > 4
