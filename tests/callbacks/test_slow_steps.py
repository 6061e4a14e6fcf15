"""When a run says that its steps have become slow, by a clock and a load of the test's."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from tests.support.clocks import FakeClock
from tests.support.modules import fit
from unite.callbacks.slow_steps import SlowSteps
from unite.errors import UserError
from unite.module import UniteModule


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch had two threads on a machine of two cores, which has nothing else to do."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    load(monkeypatch, 2.0)


def load(monkeypatch: pytest.MonkeyPatch, average: float) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (average, 0.0, 0.0))


def told(folder: Path, capsys: pytest.CaptureFixture[str], *callbacks: Callback, **settings: Any) -> list[str]:
    capsys.readouterr()
    fit(folder, *callbacks, SlowSteps(), **{"max_steps": 40, "limit_val_batches": 0, **settings})
    return capsys.readouterr().out.splitlines()


@pytest.mark.usefixtures("two_threads")
def test_steps_that_become_slow_are_told_once_with_what_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeClock(monkeypatch, [8.0] + [1.0] * 10 + [9.0])
    load(monkeypatch, 7.0)
    (line,) = told(tmp_path, capsys)
    assert "a batch takes 9 s, 9 times as long as at first (1 s); the load average is 7 on 2 cores" in line
    assert f"OMP_NUM_THREADS=1 unite fit --ckpt_path {tmp_path}" in line


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([60.0, 1.0], id="a slow first step"),
        pytest.param([1.0, 2.5] * 30, id="batches of two sizes"),
        pytest.param([1.0] * 15 + [20.0] * 4 + [1.0], id="a hiccup"),
        pytest.param([1.0] * 20 + [2.5], id="somewhat slower"),
        pytest.param([0.01] * 30 + [0.1], id="too short to be judged"),
    ],
)
def test_what_is_no_reason_to_speak(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, steps: list[float]
) -> None:
    FakeClock(monkeypatch, steps)
    load(monkeypatch, 1.0)  # whatever else this machine does
    assert not told(tmp_path, capsys)


@pytest.mark.usefixtures("two_threads")
def test_validations_and_checkpoints_do_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Checkpoint(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            clock.now += 500

    clock = FakeClock(monkeypatch, [1.0], validation=1000.0)
    load(monkeypatch, 1.0)
    assert not told(tmp_path, capsys, Checkpoint(), limit_val_batches=1)


@pytest.mark.usefixtures("two_threads")
def test_a_run_that_trains_something_else_is_compared_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stages(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            assert isinstance(pl_module, UniteModule)
            pl_module.trains_tokenizer = trainer.global_step < 25

    FakeClock(monkeypatch, [1.0] * 25 + [9.0])
    assert not told(tmp_path, capsys, Stages())


@pytest.mark.usefixtures("two_threads")
def test_a_machine_that_is_busy_from_the_start_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeClock(monkeypatch, [9.0])
    load(monkeypatch, 4.0)  # two threads of this run, and two others: as many as there are cores
    assert not told(tmp_path, capsys)
    load(monkeypatch, 4.5)
    (line,) = told(tmp_path, capsys)
    assert line.startswith("a batch takes 9 s; the load average is 4 on 2 cores: 2 threads")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert not told(tmp_path, capsys), "one thread waits for no other"


@pytest.mark.usefixtures("two_threads")
def test_slow_for_another_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    FakeClock(monkeypatch, [100.0] * 4 + [700.0])  # three batches make a window when they are so slow
    (line,) = told(tmp_path, capsys, max_steps=8)
    assert line == "a batch takes 700 s, 7 times as long as at first (100 s): see what else this machine does (top)"


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match="factor is 1"):
        SlowSteps(factor=1)
    with pytest.raises(UserError, match="num_batches is 2"):
        SlowSteps(num_batches=2)
