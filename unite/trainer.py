"""Lightning's trainer with a run folder, able to generate."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torchmetrics import Metric

from unite.errors import UserError
from unite.flow import Solver
from unite.messages import as_table, shown
from unite.modalities.base import ModalityAdapter
from unite.modalities.combined import datamodule_of
from unite.module import UniteModule
from unite.run_folder import (
    LAST_CHECKPOINT,
    Forecast,
    LastCheckpoint,
    RunCSVLogger,
    RunTensorBoardLogger,
    require_writable,
    write_metrics,
)

MAX_DRAWN = 64


class UniteTrainer(Trainer):
    """Lightning's trainer, writing straight into one run folder, and able to generate.

    Args:
        default_root_dir: The run folder; the command line puts in ``runs/NAME``. It holds config.yaml,
            last.ckpt, the best checkpoints, TensorBoard events and metrics.csv.
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
        callbacks.append(Forecast())
        if enable_checkpointing is not False:
            callbacks.append(LastCheckpoint())
        if logger is True:
            logger = [RunTensorBoardLogger(run_folder), RunCSVLogger(run_folder)]
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
        """Train a model; writes a run folder: config.yaml, checkpoints, TensorBoard events, metrics.csv.

        At the end it prints a table of the last validation's metrics, and writes them to metrics.json.

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
        metrics = {name: float(value) for name, value in self.callback_metrics.items()}
        last_validation = {name: value for name, value in metrics.items() if name.startswith("val/")}
        if last_validation:
            self._report([last_validation], verbose=True, output=None)

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
        solver: Solver = "euler",
        guidance_scale: float = 1.0,
        guidance_sweep: list[float] | None = None,
        guidance_interval: tuple[float, float] = (0.1, 1.0),
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
            guidance_sweep: Scales to try first, each with ``num_samples``: their metrics go to sweep.json, and the
                scale of the lowest FID (or of the lowest metric of that family) takes the place of guidance_scale.
            guidance_interval: Times (0 is noise, 1 is data) between which guidance acts: [0.1,1.0].
            noise_scale: Standard deviation of the initial noise; below 1 trades variety for fidelity.
            batch_size: Samples at a time.
        """
        if not isinstance(model, UniteModule):
            raise TypeError(f"sample needs a UniteModule, not a {type(model).__name__}")
        if modality is None and len(model.adapters) > 1:
            raise UserError(f"this model has several modalities; choose with --modality: {', '.join(model.adapters)}")
        modality = modality or next(iter(model.adapters))
        if num_samples < 1:
            raise UserError(f"num_samples is {num_samples}; it must be at least 1")
        folder = Path(output or Path(self.default_root_dir) / "samples")
        require_writable(folder)
        if ckpt_path is not None:
            checkpoint = torch.load(ckpt_path, map_location="cpu", weights_only=weights_only is not False)
            model.on_load_checkpoint(checkpoint)
            model.load_state_dict(checkpoint["state_dict"])
            print(f"checkpoint {shown(Path(ckpt_path))}, step {checkpoint.get('global_step', 0)}")
        model.to(self.strategy.root_device)
        adapter = model.adapter(modality)
        metric = None
        if labels:
            print("no metrics: they compare with all classes, and only some were asked for")
        else:
            metric = self._generation_metric(adapter, datamodule_of(datamodule, modality))
        if metric is not None:
            metric.to(model.device)

        def generate(scale: float) -> list[Any]:
            with self.precision_plugin.forward_context():
                return model.generate(
                    modality,
                    num_samples,
                    labels=labels,
                    num_steps=num_steps,
                    solver=solver,
                    guidance_scale=scale,
                    guidance_interval=guidance_interval,
                    noise_scale=noise_scale,
                    batch_size=batch_size,
                    seed=torch.initial_seed(),
                    show_progress=self.progress_bar_callback is not None,
                )

        written: list[Path] = []
        if guidance_sweep:
            if metric is None:
                raise UserError("--guidance_sweep compares scales by FID, and this modality has no metrics")
            guidance_scale, sweep_file = _sweep(guidance_sweep, generate, metric, folder)
            written.append(sweep_file)
        objects = generate(guidance_scale)
        written += [*adapter.save(objects, folder), folder / "grid.png"]
        adapter.draw(objects[:MAX_DRAWN]).save(written[-1])
        if metric is not None:
            values = _measure(metric, objects)
            print(as_table(values))
            written.append(write_metrics(values, folder))
        for path in written:
            print(f"wrote {shown(path)}")

    def _generation_metric(self, adapter: ModalityAdapter, datamodule: LightningDataModule | None) -> Metric | None:
        """The adapter's metric; without comparison to the training data where that is not at hand."""
        try:
            return adapter.generation_metric(datamodule)
        except UserError as error:
            print(f"unite: no comparison with the training data: {error}", file=sys.stderr)
            return adapter.generation_metric(None)

    def _report(self, results: list[Mapping[str, float]], verbose: bool, output: str | Path | None) -> None:
        """Print and write what an evaluation found."""
        values = {name: float(value) for result in results for name, value in result.items()}
        if self.is_global_zero and not self.fast_dev_run:  # type: ignore[attr-defined]
            if verbose:
                print(as_table(values))
            print(f"wrote {shown(write_metrics(values, Path(output or self.default_root_dir)))}")

    @contextmanager
    def _checkpoint_on_interrupt(self) -> Iterator[None]:
        """Let Ctrl-C end the running step first, then say where the checkpoint is.

        Raises:
            KeyboardInterrupt: In place of Lightning's ``exit(1)``, with a message for the user.
            SystemExit: The process was told to terminate.
        """
        callback = next((item for item in self.callbacks if isinstance(item, LastCheckpoint)), None)  # type: ignore[attr-defined]
        previous = signal.getsignal(signal.SIGINT)
        is_main_thread = threading.current_thread() is threading.main_thread()
        if callback is not None and is_main_thread and self.world_size == 1:
            signal.signal(signal.SIGINT, callback.interrupt)
        try:
            yield
        except SIGTERMException:
            print(f"unite: {self._interrupt_message()}", file=sys.stderr)
            raise SystemExit(128 + signal.SIGTERM) from None
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
        return f"interrupted at step {self.global_step}; continue with: unite fit --ckpt_path {shown(last)}"


def _measure(metric: Metric, objects: list[Any]) -> dict[str, float]:
    """Metrics of finished objects by name."""
    metric.reset()
    metric.update(objects)
    return {name: float(value) for name, value in metric.compute().items()}


def _sweep(
    scales: list[float], generate: Callable[[float], list[Any]], metric: Metric, folder: Path
) -> tuple[float, Path]:
    """The guidance scale of the lowest FID, and the file with the metrics of all.

    Raises:
        UserError: No metric is a FID.
    """
    rows: list[dict[str, float]] = []
    fid = ""
    for scale in scales:
        values = _measure(metric, generate(scale))
        fid = next((name for name in values if name.startswith("fid")), "")
        if not fid:
            raise UserError("--guidance_sweep compares scales by FID, and this modality has none")
        print(f"guidance_scale {scale:g}: {fid} {values[fid]:.4g}")
        rows.append({"guidance_scale": scale, **values})
    best = min(rows, key=lambda row: row[fid])
    print(f"best: guidance_scale {best['guidance_scale']:g}")
    path = folder / "sweep.json"
    path.write_text(json.dumps(rows, indent=2) + "\n")
    return best["guidance_scale"], path
