"""Lightning's trainer with a run folder: where a run keeps its checkpoints and logs, and what is made from them."""

import csv
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from unite.errors import UserError

LAST_CHECKPOINT = "last.ckpt"
METRICS_FILE = "metrics.json"


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt`` in the run folder, from which a run continues after whatever ended it.

    Lightning's ``save_last`` writes only when a *best* checkpoint is written as well, and not at the end of a run that
    stops within an epoch. This one is written after every validation, every ``every_n_train_steps`` steps, at the end,
    and on Ctrl-C or a termination signal. A first Ctrl-C lets the running step finish, so that no half-updated weights
    are kept; a second one stops at once.

    Args:
        every_n_train_steps: Optimizer steps between two checkpoints where validation is rarer than that.
    """

    def __init__(self, every_n_train_steps: int = 1000) -> None:
        self.every_n_train_steps = every_n_train_steps
        self.saved_step = 0
        self.is_in_step = False
        self.is_stop_asked = False

    def save(self, trainer: Trainer) -> None:
        """Write ``last.ckpt``, unless it holds this step already or nothing is to be written."""
        is_dry_run = bool(trainer.fast_dev_run) or trainer.sanity_checking  # type: ignore[attr-defined]
        if is_dry_run or trainer.state.fn != "fit" or trainer.global_step == self.saved_step:
            return
        trainer.save_checkpoint(Path(trainer.default_root_dir) / LAST_CHECKPOINT)
        self.saved_step = trainer.global_step

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        """Handle Ctrl-C: after the running step, or at once if asked again."""
        if not self.is_in_step or self.is_stop_asked:
            raise KeyboardInterrupt
        self.is_stop_asked = True
        print("\nstopping after this step (Ctrl-C again: at once)", file=sys.stderr)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count steps from where the run starts or continues."""
        self.saved_step = trainer.global_step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
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
        # Several processes may be in different steps, and saving needs all of them: there the last one has to do.
        if isinstance(exception, KeyboardInterrupt | SIGTERMException) and trainer.world_size == 1:
            self.save(trainer)


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
            if file.is_file():
                with file.open(newline="") as lines:
                    self._earlier_rows = list(csv.DictReader(lines))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*exists and is not empty")
                writer: _ExperimentWriter = super().experiment
            writer.metrics = list(self._earlier_rows)
            writer.save()
        return super().experiment

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:  # type: ignore[override]
        """Append a row; the first one of a continued run replaces rows of steps that are done again."""
        if self._earlier_rows and step is not None:
            kept = [row for row in self._earlier_rows if int(row["step"]) < step]
            if len(kept) < len(self._earlier_rows):
                Path(self.experiment.metrics_file_path).unlink()
                self.experiment.metrics = kept
            self._earlier_rows = []
        super().log_metrics(dict(metrics), step)


class UniteTrainer(Trainer):
    """Lightning's trainer, writing straight into one run folder, and able to generate.

    Args:
        default_root_dir: The run folder; the command line puts in ``runs/NAME``. It holds config.yaml, last.ckpt, the
            best checkpoints, TensorBoard events and metrics.csv.
        logger: True for TensorBoard and metrics.csv in the run folder, False for none, or Lightning loggers.
        callbacks: Lightning callbacks. A ``ModelCheckpoint`` without ``dirpath`` writes into the run folder.
        enable_checkpointing: False to write no checkpoints.
        enable_autolog_hparams: Also log the settings to the loggers; config.yaml has them all.
        kwargs: Everything else that Lightning's trainer takes.
    """

    def __init__(
        self,
        *,
        default_root_dir: str | Path | None = None,
        logger: Logger | list[Logger] | bool | None = True,
        callbacks: list[Callback] | Callback | None = None,
        enable_checkpointing: bool | None = None,
        enable_autolog_hparams: bool = False,
        **kwargs: Any,
    ) -> None:
        run_folder = os.path.abspath(default_root_dir or os.getcwd())
        callbacks = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or [])
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = run_folder
        if enable_checkpointing is not False:
            callbacks.append(LastCheckpoint())
        if logger is True:
            logger = [TensorBoardLogger(run_folder, name="", version=""), RunCSVLogger(run_folder)]
        super().__init__(
            default_root_dir=run_folder,
            logger=logger,
            callbacks=callbacks,
            enable_checkpointing=enable_checkpointing,
            enable_autolog_hparams=enable_autolog_hparams,
            **kwargs,
        )

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train a model; writes a run folder with config.yaml, checkpoints, TensorBoard events and metrics.csv.

        Args:
            model: The model to train.
            train_dataloaders: Batches, instead of a datamodule.
            val_dataloaders: Batches for validation, instead of a datamodule.
            datamodule: The data.
            ckpt_path: Checkpoint to continue from, with optimizer, schedule and position in the data.
            weights_only: Passed to torch.load; None is torch's own (safe) default.
        """
        with self._checkpoint_on_interrupt():
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)

    def validate(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
        output: str | Path | None = None,
    ) -> list[Mapping[str, float]]:
        """Metrics of a checkpoint on the validation split; prints a table and writes metrics.json.

        Args:
            model: The model to evaluate.
            dataloaders: Batches, instead of a datamodule.
            ckpt_path: The checkpoint.
            verbose: Print the table.
            datamodule: The data.
            weights_only: Passed to torch.load; None is torch's own (safe) default.
            output: Folder for metrics.json; default: the checkpoint's run folder.
        """
        results = super().validate(model, dataloaders, ckpt_path, False, datamodule, weights_only)
        self._report(results, verbose, output)
        return results

    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
        output: str | Path | None = None,
    ) -> list[Mapping[str, float]]:
        """Metrics of a checkpoint on the test split; prints a table and writes metrics.json.

        Args:
            model: The model to evaluate.
            dataloaders: Batches, instead of a datamodule.
            ckpt_path: The checkpoint.
            verbose: Print the table.
            datamodule: The data.
            weights_only: Passed to torch.load; None is torch's own (safe) default.
            output: Folder for metrics.json; default: the checkpoint's run folder.
        """
        results = super().test(model, dataloaders, ckpt_path, False, datamodule, weights_only)
        self._report(results, verbose, output)
        return results

    def sample(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
        num_samples: int = 16,
        output: str | Path | None = None,
        modality: str | None = None,
        labels: list[int] | None = None,
        num_steps: int = 50,
        solver: Literal["euler", "heun", "midpoint", "rk4", "dopri5"] = "euler",
        guidance_scale: float = 1.0,
        noise_scale: float = 1.0,
        batch_size: int = 500,
    ) -> None:
        """Generate samples with a checkpoint; writes them as files, with a picture and metrics.json.

        Args:
            model: The model to sample from.
            datamodule: The data that novelty and the like are measured against.
            ckpt_path: The checkpoint.
            weights_only: Passed to torch.load; None is torch's own (safe) default.
            num_samples: How many samples.
            output: Folder for the files; default: ``samples`` in the checkpoint's run folder.
            modality: What to generate; may be left out if the model has one modality.
            labels: Classes to generate, cycled; default: all in turn.
            num_steps: Steps of the solver from noise to data.
            solver: Solver of the ODE; dopri5 chooses its own steps.
            guidance_scale: Classifier-free guidance; 1 is none.
            noise_scale: Standard deviation of the initial noise; below 1 trades variety for fidelity.
            batch_size: Samples at a time.
        """
        from unite.module import UniteModule

        if not isinstance(model, UniteModule):
            raise TypeError(f"sample needs a UniteModule, not a {type(model).__name__}")
        if modality is None and len(model.adapters) > 1:
            raise UserError(f"this model has several modalities; choose with --modality: {', '.join(model.adapters)}")
        modality = modality or next(iter(model.adapters))
        folder = Path(output or Path(self.default_root_dir) / "samples")
        folder.mkdir(parents=True, exist_ok=True)
        if ckpt_path is not None:
            checkpoint = torch.load(ckpt_path, map_location="cpu", weights_only=weights_only is not False)
            model.on_load_checkpoint(checkpoint)
            model.load_state_dict(checkpoint["state_dict"])
        model.to(self.strategy.root_device)
        with self.precision_plugin.forward_context():
            objects = model.generate(
                modality,
                num_samples,
                labels=labels,
                num_steps=num_steps,
                solver=solver,
                guidance_scale=guidance_scale,
                noise_scale=noise_scale,
                batch_size=batch_size,
                seed=torch.initial_seed(),
                show_progress=self.progress_bar_callback is not None,
            )
        adapter = model.adapters[modality]
        written = list(adapter.save(objects, folder))
        metric = adapter.generation_metric(datamodule)
        if metric is not None:
            metric.update(objects)
            values = {name: float(value) for name, value in metric.compute().items()}
            print(as_table(values))
            written.append(write_metrics(values, folder))
        for path in written:
            print(f"wrote {path}")

    def _report(self, results: list[Mapping[str, float]], verbose: bool, output: str | Path | None) -> None:
        """Print and write what an evaluation found."""
        values = {name: float(value) for result in results for name, value in result.items()}
        if self.is_global_zero and not self.fast_dev_run:  # type: ignore[attr-defined]
            if verbose:
                print(as_table(values))
            print(f"wrote {write_metrics(values, Path(output or self.default_root_dir))}")

    @contextmanager
    def _checkpoint_on_interrupt(self) -> Iterator[None]:
        """Let Ctrl-C end the running step first, then say where the checkpoint is.

        Raises:
            KeyboardInterrupt: In place of Lightning's ``exit(1)``, with a message for the user.
        """
        callback = next((item for item in self.callbacks if isinstance(item, LastCheckpoint)), None)  # type: ignore[attr-defined]
        previous = signal.getsignal(signal.SIGINT)
        is_main_thread = threading.current_thread() is threading.main_thread()
        if callback is not None and is_main_thread and self.world_size == 1:
            signal.signal(signal.SIGINT, callback.interrupt)
        try:
            yield
        except SystemExit as exit_:
            if isinstance(exit_.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt(self._interrupt_message()) from None
            raise
        finally:
            if is_main_thread:
                signal.signal(signal.SIGINT, previous)

    def _interrupt_message(self) -> str:
        last = Path(self.default_root_dir) / LAST_CHECKPOINT
        if not last.is_file():
            return f"interrupted at step {self.global_step}; no checkpoint was written"
        last = Path(os.path.relpath(last))
        return f"interrupted at step {self.global_step}; continue with: unite fit --ckpt_path {last}"


def write_metrics(values: Mapping[str, float], folder: Path) -> Path:
    """Write ``metrics.json``, metric name -> number, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / METRICS_FILE
    path.write_text(json.dumps(values, indent=2) + "\n")
    return path


def as_table(values: Mapping[str, float]) -> str:
    """Names and numbers in two columns."""
    width = max(map(len, values), default=0)
    return "\n".join(f"{name:<{width}}  {value:.4g}" for name, value in values.items())
