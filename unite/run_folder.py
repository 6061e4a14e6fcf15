"""The run folder: what a run keeps there, and how it is found again."""

import csv
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from unite.errors import UserError
from unite.export import SETTINGS_FILE, WEIGHTS_FILE, is_exported, read_exported
from unite.folders import require_writable as require_writable
from unite.messages import info

CONFIG_FILE = "config.yaml"
LAST_CHECKPOINT = "last.ckpt"
METRICS_FILE = "metrics.json"


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt`` in the run folder, from which a run continues after whatever ended it.

    Lightning's ``save_last`` writes only when a *best* checkpoint is written as well, and not at the end of a
    run that stops within an epoch. This one is written after every validation, every ``every_n_train_steps``
    steps, at the end, and on Ctrl-C or a termination signal. A first Ctrl-C lets the running step finish, so
    that no half-updated weights are kept; a second one stops at once.

    Args:
        every_n_train_steps: Optimizer steps between two checkpoints where validation is rarer than that.
    """

    def __init__(self, every_n_train_steps: int = 1000) -> None:
        self.every_n_train_steps = every_n_train_steps
        self.path = Path()
        self.saved_step = 0
        self.is_in_step = False
        self.is_stop_asked = False

    def save(self, trainer: Trainer) -> None:
        """Write ``last.ckpt``, unless it holds this step already or nothing is to be written."""
        is_dry_run = bool(trainer.fast_dev_run) or trainer.sanity_checking  # type: ignore[attr-defined]
        if is_dry_run or trainer.state.fn != "fit" or trainer.global_step == self.saved_step:
            return
        trainer.save_checkpoint(self.path, weights_only=False)
        self.saved_step = trainer.global_step

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        """Handle Ctrl-C: after the running step, or at once if asked again."""
        if not self.is_in_step or self.is_stop_asked:
            raise KeyboardInterrupt
        self.is_stop_asked = True
        print("\nstopping after this step (Ctrl-C again: at once)", file=sys.stderr)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the run folder from the first process."""
        self.path = trainer.strategy.broadcast(Path(trainer.default_root_dir) / LAST_CHECKPOINT)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count steps from where the run starts or continues, and forget an earlier Ctrl-C."""
        self.saved_step = trainer.global_step
        self.is_in_step = self.is_stop_asked = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note that weights are about to change."""
        self.is_in_step = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time. Lightning calls checkpoint callbacks last: averaged weights are up to date."""
        self.is_in_step = False
        if self.is_stop_asked:
            raise KeyboardInterrupt
        if trainer.global_step >= self.saved_step + self.every_n_train_steps:
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after every validation within a fit."""
        self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of the run, at whatever step of an epoch it comes.

        Not in ``on_train_end``, where weight averaging has replaced the raw weights already.
        """
        is_out_of_steps = 0 <= trainer.max_steps <= trainer.global_step
        is_out_of_epochs = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch + 1
        if is_out_of_steps or is_out_of_epochs or trainer.should_stop:
            self.save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save on Ctrl-C and termination. After an error the checkpoint from before it stays."""
        # Several processes may be in different steps, and saving needs all of them.
        if isinstance(exception, KeyboardInterrupt | SIGTERMException) and trainer.world_size == 1:
            self.save(trainer)


class Forecast(Callback):
    """Says, after a few steps, how long the run will take, if that is longer than an hour.

    Args:
        num_steps: Steps to measure, after a first one that is not typical.
        patience: Seconds after which fewer steps will do.
    """

    def __init__(self, num_steps: int = 3, patience: float = 20.0) -> None:
        self.num_steps = num_steps
        self.patience = patience
        self._has_spoken = False
        self._steps = 0
        self._start = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, and speak once."""
        self._steps += 1
        if self._steps == 1:
            self._start = time.perf_counter()
        elapsed = time.perf_counter() - self._start
        is_time = self._steps > self.num_steps or (self._steps > 1 and elapsed > self.patience)
        if not is_time or self._has_spoken or not trainer.is_global_zero:
            return
        self._has_spoken = True
        seconds = elapsed / (self._steps - 1)
        steps_left = (trainer.estimated_stepping_batches - trainer.global_step) * trainer.accumulate_grad_batches
        hours = seconds * steps_left / 3600
        if 1 < hours < math.inf:
            time_left = f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:.0f} days"
            where = "this CPU" if trainer.strategy.root_device.type == "cpu" else "this machine"
            info(f"\n{seconds:.2g} s per step on {where}: {steps_left:,.0f} more steps will take about {time_left}")


class RunTensorBoardLogger(TensorBoardLogger):
    """TensorBoard events in the run folder, and no hparams.yaml: config.yaml has all settings."""

    def __init__(self, run_folder: str | Path) -> None:
        super().__init__(run_folder, name="", version="")

    def save(self) -> None:
        """Write what is pending."""
        self.experiment.flush()


class RunCSVLogger(CSVLogger):
    """``metrics.csv`` in the run folder. A continued run continues the file, from its first step on."""

    def __init__(self, run_folder: str | Path) -> None:
        super().__init__(run_folder, name="", version="", flush_logs_every_n_steps=1)
        self._earlier_rows: list[dict[str, Any]] = []

    @property
    def experiment(self) -> _ExperimentWriter:
        """Lightning's writer; it deletes an existing file, so the rows are put back."""
        if self._experiment is None:
            file = Path(self.log_dir) / _ExperimentWriter.NAME_METRICS_FILE
            if file.is_file() and is_first_process():
                with file.open(newline="") as lines:
                    self._earlier_rows = list(csv.DictReader(lines))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*exists and is not empty")
                writer = super().experiment
            writer.metrics = list(self._earlier_rows)
            writer.save()
        written: _ExperimentWriter = super().experiment
        return written

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append a row; the first one of a continued run replaces rows of steps that are done again."""
        if self._earlier_rows and step is not None:
            kept = [row for row in self._earlier_rows if int(row["step"]) < step]
            if len(kept) < len(self._earlier_rows):
                Path(self.experiment.metrics_file_path).unlink()
                self.experiment.metrics = kept
            self._earlier_rows = []
        super().log_metrics(dict(metrics), step)


def is_first_process() -> bool:
    """Whether this process writes, of several that train together."""
    return getattr(rank_zero_only, "rank", 0) == 0


def write_metrics(values: Mapping[str, float], folder: Path) -> Path:
    """Write ``metrics.json``, metric name -> number or null, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / METRICS_FILE
    numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no NaN
    path.write_text(json.dumps(numbers, indent=2) + "\n")
    return path


def find_checkpoint(path: str | None) -> Path | None:
    """The checkpoint file that ``--ckpt_path`` names, itself or by its run folder; the weights of an exported folder.

    Raises:
        UserError: There is none.
    """
    if path is None:
        return None
    found = Path(path)
    if found.is_dir():
        is_shared = (found / SETTINGS_FILE).is_file() and not (found / LAST_CHECKPOINT).is_file()
        found = found / (WEIGHTS_FILE if is_shared else LAST_CHECKPOINT)
    if not found.is_file():
        raise UserError(f"--ckpt_path {path}: no such checkpoint; give a .ckpt file, or a run folder with one")
    return found


def find_run_config(checkpoint: Path) -> Path | None:
    """config.yaml of the run that a checkpoint belongs to: beside it, or one or two folders up."""
    folders = [checkpoint.resolve().parent, *checkpoint.resolve().parents[1:3]]
    candidates = [folder / CONFIG_FILE for folder in folders]
    return next((Path(os.path.relpath(path)) for path in candidates if path.is_file()), None)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of a :class:`UniteModule`, its tensors still on disk; or the same of an exported folder.

    Raises:
        UserError: The file is damaged, or of another program.
    """
    if is_exported(path):
        return read_exported(path.parent)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise UserError(f"{path} is not a unite checkpoint, or is damaged: torch.load cannot read it") from error
    hparams = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not isinstance(hparams, dict) or not {"encoder", "adapters"} <= hparams.keys() or "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a unite checkpoint: it has no settings of encoder and adapters")
    return dict(checkpoint)


def require_same_model(model: LightningModule, checkpoint: dict[str, Any], path: Path | None) -> None:
    """Refuse a checkpoint whose weights do not fit the configured model.

    Raises:
        UserError: A parameter or buffer is missing on either side, or of another shape.
    """
    here, there = model.state_dict(), checkpoint["state_dict"]
    for name in {**here, **there}:
        if name not in here or name not in there or here[name].shape != there[name].shape:
            shapes = [f"of shape {tuple(side[name].shape)}" if name in side else "missing" for side in (there, here)]
            raise UserError(
                f"{path} is a checkpoint of another model: {name} is {shapes[0]} there, and {shapes[1]} "
                "in these settings; leave out --config to use the checkpoint's own"
            )
