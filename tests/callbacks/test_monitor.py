"""Everything that TensorBoard is promised to show, read back from the event file."""

import itertools
import math
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests.support.commands import RunCli
from tests.support.paths import TESTS
from tests.toy_modality.curves import CurveAdapter, CurveDataModule
from unite import GenerativeEncoder, OptimizerSettings, UniteModule, UniteTrainer
from unite.callbacks.generation_metrics import GenerationMetrics
from unite.callbacks.monitor import LossProgressBar


def fit(folder: Path, **settings: Any) -> EventAccumulator:
    fit_toy(folder, **{"callbacks": [GenerationMetrics(num_samples=4, num_steps=2)], **settings})
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def fit_toy(folder: Path, ckpt_path: Path | None = None, **settings: Any) -> None:
    encoder = GenerativeEncoder("XS", latent_channels=4, depth=1, width=16, num_heads=2)
    module = UniteModule(encoder, {"curve": CurveAdapter()}, OptimizerSettings(lr=1e-2, warmup_steps=4))
    data = CurveDataModule(num_curves=48, batch_size=16)  # three batches
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    UniteTrainer(default_root_dir=folder, **{**quiet, **settings}).fit(module, datamodule=data, ckpt_path=ckpt_path)


def settings_of(events: EventAccumulator) -> tuple[dict[str, Any], set[str]]:
    """Settings in TensorBoard's tab HPARAMS, and the metrics beside them."""
    content = {
        name.rpartition("/")[2]: HParamsPluginData.FromString(events.SummaryMetadata(name).plugin_data.content)
        for name in ("_hparams_/experiment", "_hparams_/session_start_info")
    }
    values = content["session_start_info"].session_start_info.hparams.items()
    columns = {info.name.tag for info in content["experiment"].experiment.metric_infos}
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values}, columns


def test_a_run_without_validation_has_settings(tmp_path: Path) -> None:
    settings, columns = settings_of(fit(tmp_path, max_steps=1, limit_val_batches=0))
    assert settings["trainer.max_steps"] == 1
    assert settings["encoder.init_args.width"] == 16
    assert columns == set()


def test_learning_rates_are_those_of_the_step(tmp_path: Path) -> None:
    events = fit(tmp_path, max_epochs=2, log_every_n_steps=1)
    for name in ("lr/muon", "lr/adamw"):
        values = {event.step: event.value for event in events.Scalars(name)}
        decay = [0.5 * (1 + math.cos(math.pi * progress / 2)) for progress in (0, 1)]
        expected = [0.0, 0.25, 0.5, 0.75, *decay]
        assert values == pytest.approx({step: 1e-2 * factor for step, factor in enumerate(expected)})


def test_throughput_counts_samples_and_leaves_validation_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    step, validate = UniteModule.training_step, UniteModule.validation_step

    def training_step(self: UniteModule, *args: Any) -> Any:
        clock[0] += 0.5
        return step(self, *args)

    def validation_step(self: UniteModule, *args: Any) -> Any:
        clock[0] += 1000.0
        return validate(self, *args)

    monkeypatch.setattr(UniteModule, "training_step", training_step)
    monkeypatch.setattr(UniteModule, "validation_step", validation_step)
    events = fit(tmp_path, max_epochs=2, log_every_n_steps=2, num_sanity_val_steps=0)
    # Steps 2, 4 and 6; the validation after step 3 starts the measurement anew.
    assert [event.step for event in events.Scalars("train/steps_per_second")] == [1, 3, 5]
    assert {event.value for event in events.Scalars("train/steps_per_second")} == {2.0}
    assert {event.value for event in events.Scalars("train/samples_per_second")} == {32.0}


def test_an_accumulated_step_is_one_step(tmp_path: Path) -> None:
    events = fit(tmp_path, max_epochs=2, log_every_n_steps=1, accumulate_grad_batches=2)
    assert [event.step for event in events.Scalars("lr/muon")] == [0, 1, 2, 3]


def test_tensorboard_shows_what_is_promised(run_cli: RunCli, tmp_path: Path, tiny_csv: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(
        f"""
        model: {{encoder.init_args: {{depth: 1, width: 16, num_heads: 2}}}}
        data:
          class_path: unite.modalities.molecule.QM9DataModule
          init_args: {{csv_files: [{tiny_csv}], root: {tmp_path / "data"}, batch_size: 8, num_val: null}}
        trainer:
          max_steps: 4
          val_check_interval: 2
          log_every_n_steps: 1
          accelerator: cpu
          callbacks:
            - class_path: unite.callbacks.GenerationMetrics
              init_args: {{num_samples: 4, num_steps: 2}}
        """
    )
    base = TESTS.parent / "configs" / "qm9_small.yaml"
    folder = tmp_path / "run"
    result = run_cli("fit", "--config", base, "--config", config, "--trainer.default_root_dir", folder, "--quiet")
    assert result.code == 0, result.err
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    losses = [f"{stage}/molecule/{term}" for stage in ("train", "val") for term in ("types", "positions", "flow")]
    places = {"validity": 1, "uniqueness": 2, "novelty": 3, "match_rate": 12, "rmsd": 14}
    metrics = [f"1 quality/{place:02d} {name} (val molecule)" for name, place in places.items()]
    others = ["train/loss", "lr/muon", "lr/adamw", "train/steps_per_second", "train/samples_per_second"]
    for name in [*losses, *metrics, *others]:
        values = [event.value for event in events.Scalars(name)]
        assert len(values) in (2, 4), name
        assert all(map(math.isfinite, values)) or "rmsd" in name, name  # no molecule has all types right yet
    assert min(tags["scalars"]) == metrics[0]  # TensorBoard sorts by the alphabet
    groups = {name.split("/")[0] for name in tags["scalars"] if "reject" in name}
    assert groups == {"rejects"}
    assert "rejects/val molecule/no_bond_orders" in tags["scalars"]
    settings, columns = settings_of(events)
    assert settings["encoder.init_args.depth"] == 1
    assert settings["data.batch_size"] == 8
    assert settings["trainer.max_steps"] == 4
    assert set(metrics) <= columns <= set(tags["scalars"])
    assert len(events.Scalars(metrics[0])) == 2  # the tab for settings adds no values
    assert set(tags["images"]) == {"val/molecule/samples", "val/molecule/reconstructions"}
    for name in tags["images"]:
        (first, *_) = events.Images(name)
        assert first.encoded_image_string.startswith(b"\x89PNG")
        assert min(first.width, first.height) > 100


def test_logging_can_be_switched_off_as_lightning_has_it(tmp_path: Path) -> None:
    events = fit(tmp_path, max_steps=2, log_every_n_steps=0)
    assert not [name for name in events.Tags()["scalars"] if name.startswith(("train/", "lr/"))]


class ShownLosses(LossProgressBar):
    """Notes what stands beside the bar after each step, by the clock given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []
        self.logged: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        self.seen.append(float(self.get_metrics(trainer, pl_module)["train/loss"]))
        self.logged.append(float(trainer.callback_metrics["train/loss"]))


@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_the_bar_shows_a_loss_of_at_most_a_second_ago(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(100.0, seconds) if seconds else itertools.repeat(100.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    bar = ShownLosses()
    fit_toy(tmp_path, max_epochs=2, enable_progress_bar=True, callbacks=[bar])
    assert len(set(bar.logged)) == 6
    assert bar.seen == pytest.approx(bar.logged if seconds else 6 * bar.logged[:1])


def test_the_bar_counts_the_steps_of_the_run_and_the_rate_of_this_session(tmp_path: Path) -> None:
    """Three batches are two steps of an epoch; the second run goes on within one."""

    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "x.ckpt")

    def run(*callbacks: Callback, **options: Any) -> tuple[LossProgressBar, dict[str, Any]]:
        bar = LossProgressBar()
        settings = {"max_epochs": 4, "accumulate_grad_batches": 2, "limit_val_batches": 0, "logger": False, **options}
        fit_toy(tmp_path, enable_progress_bar=True, callbacks=[bar, *callbacks], **settings)
        return bar, dict(bar.train_progress_bar.format_dict)

    _, first = run(Save())
    assert (first["initial"], first["n"], first["total"]) == (0, 8, 8)
    _, second = run(ckpt_path=tmp_path / "x.ckpt")
    assert (second["initial"], second["n"], second["total"]) == (3, 8, 8)
    assert second["rate"] is None  # tqdm then takes (n - initial) / elapsed
    assert second["unit"] == "step"


def test_the_bar_ends_its_line_before_an_error_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Fail(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fit_toy(tmp_path, max_epochs=1, enable_progress_bar=True, callbacks=[Fail()], num_sanity_val_steps=0)
    out = capsys.readouterr().out
    assert "Epoch 0" in out
    assert out.endswith("\n")


def test_a_run_has_a_bar_unless_it_is_switched_off() -> None:
    def bars(**settings: Any) -> list[str]:
        trainer = UniteTrainer(accelerator="cpu", logger=False, **settings)
        return [type(item).__name__ for item in trainer.callbacks if isinstance(item, ProgressBar)]  # type: ignore[attr-defined]

    assert bars() == ["LossProgressBar"]
    assert bars(enable_progress_bar=False) == []
    assert bars(callbacks=[TQDMProgressBar()]) == ["TQDMProgressBar"]


def test_lightning_reads_no_logged_value_in_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads those logged with ``prog_bar`` in each step, bar or no bar; a GPU would have to finish all its work."""

    def read(value: Any) -> Any:
        raise AssertionError("a step asks for a value")

    monkeypatch.setattr("lightning.pytorch.trainer.connectors.logger_connector.result.convert_tensors_to_scalars", read)
    fit_toy(tmp_path, max_steps=2, limit_val_batches=0, logger=False)
