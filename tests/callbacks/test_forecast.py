"""What a run says of its length, by a clock of the test's."""

import datetime
import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from tests.support.clocks import FakeClock
from tests.support.modules import fit
from unite.callbacks import forecast
from unite.callbacks.forecast import Forecast
from unite.files.shipped import shipped_configs, small_config


class StopAt(Callback):
    """Ends a run whose length is only for the forecast."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        trainer.should_stop = trainer.global_step == self.step


@pytest.fixture(autouse=True)
def _qm9_small_is_for_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy data have no config in the package: take them for those of QM9."""
    monkeypatch.setattr(forecast, "small_config", lambda _, encoder: small_config("QM9DataModule", encoder))


def test_the_rate_is_that_of_the_steps_after_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeClock(monkeypatch, [15.0, 0.5, 0.5], validation=100.0)
    now = datetime.datetime.now().astimezone()
    fit(tmp_path, Forecast(num_steps=3), StopAt(6), max_steps=3604, val_check_interval=2, limit_val_batches=1)
    (line,) = capsys.readouterr().out.splitlines()
    assert "0.5 s per step on this CPU: 3,600 more steps take about 30 minutes, until " in line
    (end,) = re.findall(r"until (?:\S+ )?(\d\d:\d\d)", line)
    assert end in {f"{now + datetime.timedelta(seconds=1800 + delay):%H:%M}" for delay in (0, 60)}


def test_slow_steps_are_told_after_the_first_with_the_config_for_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeClock(monkeypatch, [360.0])
    fit(tmp_path, Forecast(), StopAt(1), max_steps=10_001, limit_val_batches=0)
    rate, advice = capsys.readouterr().out.splitlines()
    assert "360 s per step" in rate
    assert "10,000 more steps take about 42 days" in rate
    assert advice.endswith("unite fit qm9_small")


def test_a_first_step_that_compiles_is_no_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Compiled(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            pl_module.__dict__["is_compiled"] = True

    FakeClock(monkeypatch, [120.0, 1.0])
    fit(tmp_path, Forecast(), StopAt(4), Compiled(), max_steps=124, limit_val_batches=0)
    assert "1 s per step on this CPU: 120 more steps take about 2 minutes" in capsys.readouterr().out


def test_steps_of_several_batches_are_counted_as_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeClock(monkeypatch, [1.0])
    fit(tmp_path, Forecast(), StopAt(3), max_steps=301, accumulate_grad_batches=4, limit_val_batches=0)
    assert "4 s per step on this CPU: 300 more steps take about 20 minutes" in capsys.readouterr().out


def test_a_short_run_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeClock(monkeypatch, [1.0])
    fit(tmp_path, Forecast(), max_steps=8, limit_val_batches=0)
    assert not capsys.readouterr().out


def test_a_run_without_an_end_in_sight_has_a_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeClock(monkeypatch, [1e6])
    fit(tmp_path, Forecast(), StopAt(1), max_steps=10**9, limit_val_batches=0)
    assert "years, beyond the year 9999" in capsys.readouterr().out


def test_the_small_config_of_the_same_data() -> None:
    assert small_config("QM9DataModule", {"size": "S", "latent_channels": 16}) == "qm9_small"
    assert small_config("QM9DataModule", {"size": "XS", "latent_channels": 16, "depth": None}) is None, "it is this one"
    assert small_config("DigitsDataModule", {"size": "S"}) is None
    assert "qm9_small" in shipped_configs()
