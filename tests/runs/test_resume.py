"""A run that ends in whatever way, and is continued, ends as if nothing had happened: to the bit, on a CPU."""

import csv
import errno
import inspect
import itertools
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from tests.support.commands import RunCli
from tests.support.exact_run import EXACT
from tests.support.modules import FAST, fit, make_module, make_trainer
from tests.support.paths import TESTS
from tests.support.processes import run_forked
from tests.toy_modality.curves import CurveAdapter, CurveDataModule
from unite import UniteModule
from unite.callbacks.averaging import WeightAveraging
from unite.callbacks.last_checkpoint import LastCheckpoint, _requeue
from unite.engine.optimizer import OptimizerSettings
from unite.errors import UserError
from unite.runs.checkpoint_io import AtomicCheckpointIO
from unite.runs.folder import find_last_checkpoint, read_checkpoint
from unite.runs.logs import RunCSVLogger

pytestmark = pytest.mark.usefixtures("in_toy_folder")

NUM_BATCHES = 24

Fit = Callable[..., list[int]]


@pytest.fixture(scope="module")
def exact_fit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fit]:
    """Runs ``unite fit`` in processes of its own: ``exact_fit(folder, *options, misfortune="SIGKILL train 7 0")``."""
    config = tmp_path_factory.mktemp("config") / "exact.yaml"
    config.write_text(EXACT)
    before = Path.cwd()
    os.chdir(TESTS / "toy_modality")

    def run(folder: Path, *options: str | Path, misfortune: str = "", world_size: int = 1) -> list[int]:
        args = ("fit", "--config", "curves.yaml", "--config", config, "--trainer.default_root_dir", folder, *options)
        if world_size > 1:
            args += ("--trainer.devices", str(world_size), "--trainer.strategy", "ddp", "--data.batch_size", "2")
        output = folder.with_name(f"{folder.name}-output")
        return run_forked(*args, world_size=world_size, output=output, env={"MISFORTUNE": misfortune})

    yield run
    os.chdir(before)


@pytest.fixture(scope="module")
def whole(exact_fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert exact_fit(folder) == [0]
    return folder


def differences(a: Any, b: Any, place: str = "") -> list[str]:
    """Where two checkpoints differ: weights, averages, optimizer, schedule, loops, callbacks, position in the data."""
    if "ModelCheckpoint" in place and place.endswith(("path", "dir", "models")):
        return []  # names of the run folder
    if isinstance(a, dict):
        inside = [differences(a[k], b[k], f"{place}/{k}") for k in a if k in b]
        return [f"{place}/{k}" for k in a.keys() ^ b.keys()] + [x for part in inside for x in part]
    if isinstance(a, list | tuple):
        pairs = zip(a, b, strict=True)
        return [x for i, (c, d) in enumerate(pairs) for x in differences(c, d, f"{place}/{i}")]
    same = torch.equal(a, b) if isinstance(a, Tensor) else a == b
    return [] if same else [place]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        # How fast a run was is not part of what it found.
        return [{key: row[key] for key in row if not key.endswith("per_second")} for row in csv.DictReader(file)]


def tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.endswith("per_second")
    }


def assert_same_run(folder: Path, whole: Path) -> None:
    ours, theirs = (torch.load(run / "last.ckpt", weights_only=True) for run in (folder, whole))
    assert theirs["global_step"] == NUM_BATCHES // 2
    assert not differences(theirs, ours)
    assert rows(folder) == rows(whole)
    assert tensorboard(folder) == tensorboard(whole)


def test_the_whole_run_logs_every_step_once(whole: Path) -> None:
    """What the comparisons below compare is there."""
    steps = [int(row["step"]) for row in rows(whole) if row["train/loss"]]
    assert steps == list(range(NUM_BATCHES // 2))
    assert len([row for row in rows(whole) if row["val/curve/points"]]) == 4
    assert [step for step, _ in tensorboard(whole)["train/loss"]] == steps


@pytest.mark.parametrize(
    "misfortune",
    [
        f"SIGKILL train {random.Random(0).randrange(12, NUM_BATCHES)} 0",
        "SIGKILL train 2 0",  # before the first checkpoint
        "SIGTERM train 9 0",  # right before a validation
        "SIGINT val 21 0",
        *(pytest.param(f"SIGKILL train {batch} 0", marks=pytest.mark.slow) for batch in (9, 11, 12, 19, 23)),
        pytest.param("SIGKILL val 9 0", marks=pytest.mark.slow),
        pytest.param("SIGTERM val 4 0", marks=pytest.mark.slow),  # in a validation within an accumulation
    ],
)
def test_killed_and_continued_run_is_the_whole_run(
    exact_fit: Fit, whole: Path, tmp_path: Path, misfortune: str
) -> None:
    folder = tmp_path / "run"
    expected = {"SIGKILL": -signal.SIGKILL, "SIGTERM": 143, "SIGINT": 130}[misfortune.split()[0]]
    assert exact_fit(folder, misfortune=misfortune) == [expected]
    assert exact_fit(folder, "--ckpt_path", "last") == [0]
    assert_same_run(folder, whole)


def test_two_processes_continue_to_the_bit_and_stop_together(exact_fit: Fit, tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert exact_fit(whole, world_size=2) == [0, 0]
    # Only the second process is told; both stop behind the same step, with one checkpoint.
    assert exact_fit(folder, misfortune="SIGTERM train 14 1", world_size=2) == [143, 143]
    assert exact_fit(folder, "--ckpt_path", "last", misfortune="SIGKILL train 20 0", world_size=2)[0] == -signal.SIGKILL
    assert exact_fit(folder, "--ckpt_path", "last", world_size=2) == [0, 0]
    assert_same_run(folder, whole)


# A minute passes whenever the clock is read: when training starts, in each batch, and after each checkpoint.
EVERY_THREE = (
    "--trainer.callbacks.init_args.every_n_train_steps",
    "100",
    "--trainer.callbacks.init_args.every_minutes",
    "3",
)


def test_slow_steps_are_saved_by_time_and_continue_to_the_bit(
    exact_fit: Fit, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0.0, 60.0)
    monkeypatch.setattr("unite.callbacks.last_checkpoint.monotonic", lambda: next(clock))
    folder = tmp_path / "run"
    # Time is up in batch 2, within an accumulation, whose end is the step of batch 3.
    assert exact_fit(folder, *EVERY_THREE, misfortune="SIGKILL train 4 0") == [-signal.SIGKILL]
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 2
    assert exact_fit(folder, "--ckpt_path", "last") == [0]
    assert_same_run(folder, whole)


def test_of_several_processes_the_clock_of_the_first_decides(
    exact_fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They write a checkpoint together, so one that went by its own clock would wait for ever."""
    minutes = itertools.count(0.0, 60.0)
    for hasty, checkpoint_step in ((0, 2), (1, None)):

        def clock(hasty: int = hasty) -> float:
            return next(minutes) if os.environ["RANK"] == str(hasty) else 0.0

        monkeypatch.setattr("unite.callbacks.last_checkpoint.monotonic", clock)
        folder = tmp_path / f"run{hasty}"
        codes = exact_fit(folder, *EVERY_THREE, misfortune="SIGKILL train 4 0", world_size=2)
        assert codes[0] == -signal.SIGKILL
        last = folder / "last.ckpt"
        assert (read_checkpoint(last)["global_step"] if last.exists() else None) == checkpoint_step


# ---------------------------------------------------------------------- random numbers


def test_evaluation_draws_the_same_noise_each_time_and_training_never_does(tmp_path: Path) -> None:
    losses: list[float] = []
    draws: list[float] = []

    class Frozen(UniteModule):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            draws.append(float(torch.rand(())))
            return 0 * super().training_step(batch, batch_idx)

        def log_terms(self, stage: str, modality: str, terms: dict[str, Tensor], batch_size: int) -> None:
            if stage == "val":
                losses.append(float(terms["flow"]))

    module = Frozen(make_module().encoder, {"curve": CurveAdapter()})
    make_trainer(tmp_path, max_epochs=2, num_sanity_val_steps=0).fit(module, datamodule=CurveDataModule())
    assert len(losses) == 8
    assert losses[:4] == losses[4:]
    assert len(set(draws)) == len(draws) == 8


def test_random_numbers_differ_between_processes_and_seeds() -> None:
    def draw(seed: int, rank: int, epoch: int, batch: int) -> float:
        module = make_module()
        module._trainer = type("T", (), {"global_rank": rank, "current_epoch": epoch})()
        module.seed = seed
        module.on_train_batch_start(None, batch)
        return float(torch.rand(()))

    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    assert len({draw(*place) for place in places}) == len(places)
    assert draw(0, 1, 2, 3) == draw(0, 1, 2, 3)


def test_a_run_started_in_python_is_continued_with_its_own_seed(tmp_path: Path) -> None:
    torch.manual_seed(5)
    module, trainer = fit(tmp_path)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    torch.manual_seed(6)
    again = make_module(optimizer=FAST)
    trainer = make_trainer(tmp_path, max_steps=5)
    trainer.fit(again, datamodule=CurveDataModule(), ckpt_path=tmp_path / "x.ckpt")
    assert again.seed == module.seed == 5


# ---------------------------------------------------------------------- files


def test_a_write_that_fails_leaves_the_checkpoint_from_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weight": torch.ones(3)}, path)

    def full(checkpoint: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"cannot write .*last.ckpt \(No space left on device\); mend that"):
        AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(3)}, path)
    assert torch.equal(torch.load(path)["weight"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_full_disk_ends_the_run_in_one_line_with_a_checkpoint_that_loads(tmp_path: Path, exact_fit: Fit) -> None:
    folder = tmp_path / "run"
    assert exact_fit(folder, misfortune="SIGTERM train 9 0") == [143]
    step = read_checkpoint(folder / "last.ckpt")["global_step"]
    assert exact_fit(folder, "--ckpt_path", "last", "--trainer.callbacks+=exact_curves.FullDisk") == [2]
    errors = (tmp_path / "run-output" / "out0").read_text()
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("unite: error:")]
    assert "cannot write" in line
    assert "File too large" in line
    assert f"unite fit --ckpt_path {folder / 'last.ckpt'}" in line
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == step


def test_a_flipped_bit_is_refused_or_changes_nothing(whole: Path, tmp_path: Path) -> None:
    content = (whole / "last.ckpt").read_bytes()
    weights = read_checkpoint(whole / "last.ckpt")["state_dict"]
    num_refused = 0
    for place in range(100, len(content), len(content) // 24):
        damaged = bytearray(content)
        damaged[place] ^= 4
        (tmp_path / "last.ckpt").write_bytes(damaged)
        try:
            found = read_checkpoint(tmp_path / "last.ckpt")["state_dict"]
        except UserError:
            num_refused += 1
        else:  # between the files within the zip
            assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert num_refused > 12


def test_a_truncated_checkpoint_is_refused_and_the_newest_whole_one_offered(
    run_cli: RunCli, whole: Path, tmp_path: Path
) -> None:
    content = (whole / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(content[: len(content) // 2])
    refused = run_cli("fit", "--ckpt_path", tmp_path)
    assert refused.code == 2
    assert f"{tmp_path / 'last.ckpt'} is not a unite checkpoint, or is damaged" in refused.err
    assert "the newest whole one" not in refused.err
    (tmp_path / "worse.ckpt").write_bytes(content[:1000])
    (tmp_path / "best.ckpt").write_bytes((whole / "best.ckpt").read_bytes())
    refused = run_cli("fit", "--ckpt_path", tmp_path)
    step = read_checkpoint(tmp_path / "best.ckpt")["global_step"]
    assert f"the newest whole one is --ckpt_path {tmp_path / 'best.ckpt'} (step {step})" in refused.err


def test_last_is_the_newest_of_a_run_folder_and_its_versions(run_cli: RunCli, tmp_path: Path) -> None:
    assert find_last_checkpoint(tmp_path) is None
    for age, folder in ((30, tmp_path), (10, tmp_path / "version_1"), (20, tmp_path / "version_2")):
        folder.mkdir(exist_ok=True)
        (folder / "last.ckpt").touch()
        os.utime(folder / "last.ckpt", (1e9 - age, 1e9 - age))
    assert find_last_checkpoint(tmp_path) == tmp_path / "version_1" / "last.ckpt"
    refused = run_cli("test", "--ckpt_path", "last", "--trainer.default_root_dir", tmp_path / "version_3")
    assert refused.code == 2
    assert "--ckpt_path last: no last.ckpt in" in refused.err


def test_half_a_row_of_a_killed_run_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss\n0,0,3.5\n0,1,2.5\n0,2")
    logger = RunCSVLogger(tmp_path)
    logger.forget(2)
    logger.log_metrics({"epoch": 0, "train/loss": 1.5}, 2)
    logger.finalize("success")
    assert [row["train/loss"] for row in rows(tmp_path)] == ["3.5", "2.5", "1.5"]
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv"}


# ---------------------------------------------------------------------- signals


def test_slurm_job_at_the_end_of_its_time_is_put_back_into_the_queue(
    exact_fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n')
    scontrol.chmod(0o755)
    slurm = {"NTASKS": "1", "JOB_ID": "42", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    folder = tmp_path / "run"
    assert exact_fit(folder, misfortune="SIGUSR1 train 6 0") == [128 + signal.SIGUSR1]
    assert (tmp_path / "called").read_text() == "requeue 42\n"
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 4
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "40")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    _requeue()
    assert (tmp_path / "called").read_text() == "requeue 42\nrequeue 40_7\n"


def test_handlers_of_signals_are_put_back(tmp_path: Path) -> None:
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    fit(tmp_path, LastCheckpoint(), enable_checkpointing=True)
    assert {signum: signal.getsignal(signum) for signum in handlers} == handlers


def test_ctrl_c_in_validation_leaves_the_raw_weights_and_a_checkpoint_with_both(tmp_path: Path) -> None:
    averaging = WeightAveraging(decay=0.9, warmup=False)

    class Interrupt(LastCheckpoint):
        def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        fit(tmp_path, averaging, Interrupt(), enable_checkpointing=True, max_epochs=1, max_steps=-1)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    name = "encoder.latent_in.weight"
    averaged, raw = checkpoint["state_dict"][name], checkpoint["current_model_state"][name]
    assert not torch.equal(averaged, raw)
    module = averaging._module() if averaging._module else None
    assert module is None or torch.equal(module.state_dict()[name], raw)


# ---------------------------------------------------------------------- settings


class Rates(Callback):
    """Notes the learning rate and the momentum that each step takes."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        groups = optimizer.param_groups
        assert len({(group["lr"], group["momentum"]) for group in groups}) == 1
        self.seen.append((groups[0]["lr"], groups[0]["momentum"]))


def test_a_continued_run_takes_rate_and_momentum_of_its_own_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shape of the schedule goes on where it was; its height is what this run was told."""

    def steps(lr: float, momentum: float, first: int, last: int) -> list[tuple[float, float]]:
        rates = Rates()
        module = make_module(optimizer=OptimizerSettings(lr=lr, momentum=momentum, warmup_steps=2))
        trainer = make_trainer(tmp_path, max_epochs=3, limit_val_batches=0, callbacks=[rates, StopAt(last)])
        trainer.fit(module, datamodule=CurveDataModule(), ckpt_path=tmp_path / "x.ckpt" if first else None)
        trainer.save_checkpoint(tmp_path / "x.ckpt")
        return rates.seen

    class StopAt(Callback):
        def __init__(self, step: int) -> None:
            self.step = step

        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step == self.step

    whole = steps(lr=0.1, momentum=0.9, first=0, last=12)  # an epoch has four
    assert len(whole) == 12
    assert steps(lr=0.1, momentum=0.9, first=0, last=4) == whole[:4]
    capsys.readouterr()
    # The same settings: to the bit. Nothing is said.
    assert steps(lr=0.1, momentum=0.9, first=4, last=8) == whole[4:8]
    assert "learning rate" not in capsys.readouterr().out
    for (rate, momentum), (before, _) in zip(steps(lr=0.01, momentum=0.8, first=8, last=12), whole[8:], strict=True):
        assert rate == pytest.approx(0.1 * before)
        assert momentum == 0.8
    assert "learning rate 0.01 from here on, in place of 0.1" in capsys.readouterr().out


def test_an_evaluation_after_training_draws_from_the_seed_that_was_given(tmp_path: Path) -> None:
    """As ``unite test`` does in a process of its own, and not from what the last training batch was seeded with."""
    torch.manual_seed(5)
    module, trainer = fit(tmp_path)
    (after,) = trainer.validate(module, datamodule=CurveDataModule(), verbose=False)
    assert module.seed == 5
    torch.manual_seed(5)
    (alone,) = make_trainer(tmp_path).validate(module, datamodule=CurveDataModule(), verbose=False)
    assert after == alone
    torch.manual_seed(6)
    make_trainer(tmp_path).validate(module, datamodule=CurveDataModule(), verbose=False)
    assert module.seed == 6


def test_what_is_put_in_the_place_of_lightnings_own_is_there() -> None:
    """Renamed, it would go unnoticed, and each step of several processes would wait for the accelerator again."""
    assert callable(_TrainingEpochLoop._broadcast_sigterm_tensor)
    assert "self._broadcast_sigterm_tensor()" in inspect.getsource(_TrainingEpochLoop)


def test_a_checkpoint_every_zero_steps_is_refused() -> None:
    with pytest.raises(UserError, match=r"LastCheckpoint\.every_n_train_steps is 0; it must be at least 1"):
        LastCheckpoint(every_n_train_steps=0)
    with pytest.raises(UserError, match=r"LastCheckpoint\.every_minutes is 0; it must be above 0, or null"):
        LastCheckpoint(every_minutes=0)
    assert not LastCheckpoint(every_minutes=None)._is_time()
