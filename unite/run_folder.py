"""The run folder: what a run keeps there, and how it is found again."""

import csv
import json
import math
import os
import time
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from unite.checkpointing import LAST_CHECKPOINT
from unite.errors import UserError
from unite.export import SETTINGS_FILE, WEIGHTS_FILE, is_exported, read_exported
from unite.folders import require_writable as require_writable
from unite.messages import info, shown

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.json"


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

    def forget(self, step: int) -> None:
        """Have TensorBoard leave out what was written of this step and later ones."""
        restart = Event(step=step, wall_time=time.time(), session_log=SessionLog(status=SessionLog.START))
        self.experiment._get_file_writer().add_event(restart)

    def save(self) -> None:
        """Write what is pending."""
        self.experiment.flush()


class RunCSVLogger(CSVLogger):
    """``metrics.csv`` in the run folder. A continued run continues the file."""

    def __init__(self, run_folder: str | Path) -> None:
        super().__init__(run_folder, name="", version="", flush_logs_every_n_steps=1)

    @property
    def file(self) -> Path:
        """The file."""
        return Path(self.log_dir) / _ExperimentWriter.NAME_METRICS_FILE

    @property
    def experiment(self) -> _ExperimentWriter:
        """Lightning's writer; it would delete an existing file, which is out of its way while it starts."""
        if self._experiment is None and is_first_process():
            aside = self.file.with_name(f".{self.file.name}.aside")
            if self.file.is_file():
                os.replace(self.file, aside)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*exists and is not empty")
                writer = super().experiment
            if aside.is_file():
                os.replace(aside, self.file)
                with self.file.open(newline="") as lines:
                    writer.metrics_keys = list(csv.DictReader(lines).fieldnames or [])
        written: _ExperimentWriter = super().experiment
        return written

    def forget(self, step: int) -> None:
        """Leave out the rows of this step and later ones."""
        columns = self.experiment.metrics_keys
        if not columns:
            return
        partial = self.file.with_name(f".{self.file.name}.partial")
        with self.file.open(newline="") as before, partial.open("w", newline="") as after:
            table = csv.DictWriter(after, columns)
            table.writeheader()
            for row in csv.DictReader(before):
                is_whole = None not in row.values()  # a run that was killed may have left half a row
                if is_whole and int(row["step"]) < step:
                    table.writerow(row)
        os.replace(partial, self.file)


class ContinuedLogs(Callback):
    """Lets the logs of a continued run go on from its checkpoint: what was logged behind it is logged again."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Only now has Lightning restored the number of the step."""
        for logger in trainer.loggers:
            if isinstance(logger, RunTensorBoardLogger | RunCSVLogger) and trainer.is_global_zero:
                logger.forget(trainer.global_step)


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
    found = Path(path).expanduser()
    if found.is_dir():
        is_shared = (found / SETTINGS_FILE).is_file() and not (found / LAST_CHECKPOINT).is_file()
        found = found / (WEIGHTS_FILE if is_shared else LAST_CHECKPOINT)
    if not found.is_file():
        raise UserError(f"--ckpt_path {path}: no such checkpoint; give a .ckpt file, or a run folder with one")
    return found


def find_last_checkpoint(root: Path) -> Path | None:
    """The newest last.ckpt of a run in a folder or its ``version_N``, if there is one."""
    found = [path for path in [root / LAST_CHECKPOINT, *root.glob(f"version_*/{LAST_CHECKPOINT}")] if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


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
        checkpoint = _load(path)
    except Exception as error:
        raise UserError(
            f"{path} is not a unite checkpoint, or is damaged: torch.load cannot read it{_other_checkpoint(path)}"
        ) from error
    hparams = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not isinstance(hparams, dict) or not {"encoder", "adapters"} <= hparams.keys() or "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a unite checkpoint: it has no settings of encoder and adapters")
    return dict(checkpoint)


def _load(path: Path) -> Any:
    with zipfile.ZipFile(path) as file:  # torch.load does not look at the checksums that torch.save writes
        if (damaged := file.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged} does not match")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _other_checkpoint(damaged: Path) -> str:
    """``; the newest whole one ...`` if the folder has another checkpoint."""
    others = [path for path in damaged.parent.glob("*.ckpt") if path != damaged]
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            step = _load(path)["global_step"]
        except Exception:
            continue
        return f"; the newest whole one is --ckpt_path {shown(path)} (step {step})"
    return ""


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
