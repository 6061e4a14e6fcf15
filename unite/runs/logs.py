"""What a run writes while it trains: TensorBoard events and metrics.csv, continued after a kill."""

import csv
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from unite.console import is_first_process
from unite.errors import require_packages
from unite.files import replacing
from unite.files import require_writable as require_writable
from unite.runs.headlines import tensorboard_tag

LoggerName = Literal["tensorboard", "csv", "wandb"]


class RunTensorBoardLogger(TensorBoardLogger):
    """TensorBoard events in the run folder, and no hparams.yaml: config.yaml has all settings."""

    def __init__(self, run_folder: str | Path) -> None:
        super().__init__(run_folder, name="", version="", default_hp_metric=False)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log under the names that TensorBoard shows what matters first by."""
        super().log_metrics({tensorboard_tag(name): value for name, value in metrics.items()}, step)

    def log_settings(self, settings: Mapping[str, Any], metrics: Iterable[str]) -> None:
        """Show settings in the tab HPARAMS, beside the latest values of metrics.

        Args:
            settings: Settings by name; dictionaries are flattened.
            metrics: Names of metrics as they are logged. They are logged elsewhere: Lightning's ``log_hyperparams``
                would log a value of each at step 0.
        """
        from torch.utils.tensorboard.summary import hparams

        if not is_first_process():
            return
        writer = self.experiment._get_file_writer()
        for summary in hparams(_flat(settings), dict.fromkeys(map(tensorboard_tag, metrics), 0.0)):
            writer.add_summary(summary)

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
        with (
            replacing(self.file) as partial,
            self.file.open(newline="") as before,
            partial.open("w", newline="") as after,
        ):
            table = csv.DictWriter(after, columns)
            table.writeheader()
            for row in csv.DictReader(before):
                is_whole = None not in row.values()  # a run that was killed may have left half a row
                if is_whole and int(row["step"]) < step:
                    table.writerow(row)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Settings without levels, as ``encoder.init_args.size``; what is neither a number nor a text as a text."""
    flat: dict[str, bool | int | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif not name.startswith("_"):
            flat[prefix + name] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


class LoggedSettings(Callback):
    """Shows the settings of a run in TensorBoard's tab HPARAMS, with the headlines of its validations."""

    def __init__(self) -> None:
        self._is_logged = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """With the first validation it is known which metrics there are."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run without validations has settings, too."""
        self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_logged:
            return
        self._is_logged = True
        data = getattr(trainer, "datamodule", None)
        settings = {
            **pl_module.hparams,
            "data": {"class_path": type(data).__name__, "batch_size": getattr(data, "batch_size", None)},
            "trainer": {"max_steps": trainer.max_steps, "precision": trainer.precision},
        }
        metrics = [name for name in trainer.callback_metrics if name.startswith("val/")]
        for logger in trainer.loggers:
            if isinstance(logger, RunTensorBoardLogger):
                logger.log_settings(settings, [name for name in metrics if tensorboard_tag(name)[0] == "1"])


class ContinuedLogs(Callback):
    """Lets the logs of a continued run go on from its checkpoint: what was logged behind it is logged again."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Only now has Lightning restored the number of the step."""
        for logger in trainer.loggers:
            if isinstance(logger, RunTensorBoardLogger | RunCSVLogger) and trainer.is_global_zero:
                logger.forget(trainer.global_step)


def loggers_of(name: "Literal[True] | LoggerName", run_folder: str) -> list[Logger]:
    """The loggers that ``--trainer.logger`` names; True for TensorBoard and metrics.csv.

    Raises:
        UserError: The package ``wandb`` is asked for and not installed.
    """
    table: Logger = RunCSVLogger(run_folder)
    if name == "csv":
        return [table]
    if name == "wandb":
        require_packages("--trainer.logger wandb", None, "wandb")
        from lightning.pytorch.loggers import WandbLogger

        return [WandbLogger(save_dir=run_folder), table]
    events: Logger = RunTensorBoardLogger(run_folder)
    return [events] if name == "tensorboard" else [events, table]
