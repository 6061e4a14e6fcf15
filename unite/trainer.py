"""Lightning's trainer with a run folder, and with the commands that sample, reconstruct and predict."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import CheckpointIO

from unite.callbacks import BurstGuard, GenerationMetrics, LastCheckpoint, NonFiniteGuard
from unite.callbacks.checks.memory import StepMemory
from unite.callbacks.checks.monitors import MonitorsExist
from unite.callbacks.continued_checkpoints import ContinuedCheckpoints
from unite.callbacks.forecast import Forecast
from unite.callbacks.interrupts import checkpoint_on_interrupt
from unite.callbacks.monitor import LossProgressBar, TrainingMonitor
from unite.callbacks.slow_steps import SlowSteps
from unite.callbacks.summary import OptimizerSummary
from unite.callbacks.validation_line import ValidationLine
from unite.console import shown
from unite.engine.selection import Only, Selection
from unite.engine.training import require_precision
from unite.errors import require
from unite.flow import Solver
from unite.modalities.base import chosen_modality
from unite.modalities.combined import datamodule_of
from unite.modalities.template import read_sizes, read_targets
from unite.module import UniteModule
from unite.outputs.folder import folder_name
from unite.outputs.job import load_weights, run_job
from unite.outputs.latents import Split, write_latents
from unite.outputs.reconstructions import limit_batches, write_reconstructions
from unite.outputs.samples import write_samples
from unite.outputs.settings import SampleSettings
from unite.runs.checkpoint_io import AtomicCheckpointIO
from unite.runs.folder import run_folder_for_itself, write_metrics
from unite.runs.headlines import as_short_table
from unite.runs.logs import ContinuedLogs, LoggedSettings, LoggerName, loggers_of


class UniteTrainer(Trainer):
    """Lightning's trainer, which writes into one run folder, and samples, reconstructs and predicts.

    Args:
        default_root_dir: The run folder; on the command line ``runs/NAME`` by default. It holds config.yaml, last.ckpt,
            the best checkpoints, TensorBoard events and metrics.csv.
        logger: True for TensorBoard and metrics.csv in the run folder, False for none; ``tensorboard`` or ``csv`` for
            one of the two, ``wandb`` for Weights & Biases and metrics.csv; or Lightning loggers.
        callbacks: Lightning callbacks. A ``ModelCheckpoint`` without ``dirpath`` writes into the run folder.
        enable_checkpointing: False to write no checkpoints.
        enable_model_summary: False to print no table of the model's parts and of its optimizer.
        num_sanity_val_steps: Batches to validate before the first step, to find mistakes early, -1 for all; None for 2,
            or for none on a CPU, where they can take minutes.
        non_finite: What to do about a loss or a gradient that is infinite or not a number: ``stop``, ``skip`` the step,
            or ``ignore`` it; see :class:`unite.callbacks.non_finite.NonFiniteGuard`.
        bursts: What to do about losses that burst and latents that collapse while all numbers are finite: ``warn``,
            ``stop`` or ``ignore``; not used if there is a :class:`unite.callbacks.BurstGuard` among the callbacks.
        enable_autolog_hparams: Also log the settings to the loggers; config.yaml has them all.
        kwargs: Other arguments of Lightning's trainer. Without a ``CheckpointIO`` among the ``plugins``, checkpoints
            are written atomically.

    Raises:
        UserError: The precision is not supported.
    """

    command: str = ""
    """The command line that trains, for messages that say how to start it again; empty in Python."""

    def __init__(
        self,
        *,
        default_root_dir: str | Path | None = None,
        logger: Logger | list[Logger] | bool | LoggerName | None = True,
        callbacks: list[Callback] | Callback | None = None,
        enable_checkpointing: bool | None = None,
        enable_model_summary: bool | None = None,
        num_sanity_val_steps: int | None = None,
        non_finite: Literal["stop", "skip", "ignore"] = "stop",
        bursts: Literal["warn", "stop", "ignore"] = "warn",
        enable_autolog_hparams: bool = False,
        **kwargs: Any,
    ) -> None:
        run_folder = os.path.abspath(default_root_dir or os.getcwd())
        callbacks = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or [])
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = run_folder
        if non_finite != "ignore":
            callbacks.append(NonFiniteGuard(non_finite))
        if bursts != "ignore" and not any(isinstance(item, BurstGuard) for item in callbacks):
            callbacks.append(BurstGuard(bursts))
        if enable_model_summary is not False and not any(isinstance(item, ModelSummary) for item in callbacks):
            callbacks.append(OptimizerSummary())
        if kwargs.get("enable_progress_bar") is not False and not any(isinstance(x, ProgressBar) for x in callbacks):
            callbacks.append(LossProgressBar())
        callbacks += [MonitorsExist(), StepMemory(), Forecast(), SlowSteps(), ValidationLine()]
        callbacks += [ContinuedCheckpoints(), TrainingMonitor(), ContinuedLogs(), LoggedSettings()]
        if enable_checkpointing is not False and not any(isinstance(item, LastCheckpoint) for item in callbacks):
            callbacks.append(LastCheckpoint())
        if logger is True or isinstance(logger, str):
            logger = loggers_of(logger, run_folder)
        plugins = kwargs.pop("plugins", None) or []
        plugins = list(plugins) if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(AtomicCheckpointIO())
        super().__init__(
            default_root_dir=run_folder,
            logger=logger,
            callbacks=callbacks,
            enable_checkpointing=enable_checkpointing,
            enable_model_summary=enable_model_summary,
            num_sanity_val_steps=num_sanity_val_steps,
            enable_autolog_hparams=enable_autolog_hparams,
            plugins=plugins,
            **kwargs,
        )
        require_precision(str(self.precision))  # before data are made
        if num_sanity_val_steps is None and isinstance(self.accelerator, CPUAccelerator):
            self.num_sanity_val_steps = 0

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
        with run_folder_for_itself(self), checkpoint_on_interrupt(self):
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)
        last = {name: float(value) for name, value in self.callback_metrics.items() if name.startswith("val/")}
        if last and self.is_global_zero and not self.fast_dev_run:  # type: ignore[attr-defined]
            print(as_short_table(last))
            write_metrics(last, Path(self.default_root_dir))

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
            verbose: Print the table of metrics.
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
            verbose: Print the table of metrics.
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
        overwrite: bool = False,
        modality: str | None = None,
        labels: list[int] | None = None,
        sizes: list[int | str] | None = None,
        targets: list[str] | None = None,
        composition: str | None = None,
        fix: str | None = None,
        fix_atoms: list[int] | None = None,
        prompt: list[str] | None = None,
        only: Only | None = None,
        max_drawn: int | None = None,
        num_steps: int | None = None,
        solver: Solver | None = None,
        guidance_scale: float | None = None,
        guidance_sweep: list[float] | None = None,
        guidance_interval: tuple[float, float] | None = None,
        noise_scale: float | None = None,
        stochasticity: float | None = None,
        restarts: int | None = None,
        restart_time: float | None = None,
        restart_steps: int | None = None,
        batch_size: int = 500,
        film_strip: int = 0,
    ) -> None:
        """Generate samples; writes them as files, with a picture and metrics.json.

        If interrupted, the same command continues, even with another batch_size or number of processes
        (``--trainer.devices``, torchrun), which share the samples. Solver, steps, guidance and noise are by default
        those of the model's own metrics (``GenerationMetrics`` of its config).

        Args:
            model: The model to sample from.
            datamodule: The data, for metrics that compare with it, such as novelty.
            ckpt_path: The checkpoint.
            weights_only: Passed to torch.load; None is torch's own (safe) default.
            num_samples: Number of samples.
            output: Folder for the files; default: ``samples``, or of several modalities ``samples_NAME``, in the run.
            overwrite: Replace files that the folder has already.
            modality: Modality to generate; may be left out if the model has one.
            labels: Classes to generate, cycled; default: all in turn.
            sizes: Numbers of atoms, cycled: 7 8 9 or 7-9; heavy atoms where hydrogens are counted; default: as trained.
            targets: Properties of the samples, such as gap=5.0 mu=2.0; for a model that was trained with them.
            composition: Formula of crystals, such as BaTiO3; for a model that was trained with compositions.
            fix: Molecule (SDF, XYZ), a part of which all samples contain; for models of positions.
            fix_atoms: Atoms of that part, from 0, such as 0 1 2; default: all heavy ones.
            prompt: What the samples are, in words; for a model that was trained with captions; cycled.
            only: Draw until so many samples are valid; the metrics are those of the first ``num_samples`` drawn.
            max_drawn: Most samples to draw with ``only``; default: twenty for each that is wanted.
            num_steps: Steps of the solver from noise to data; default: the model's.
            solver: Solver of the ODE; dopri5 chooses its own steps; default: the model's. One that is named goes
                without the model's stochasticity and restarts, in as many steps.
            guidance_scale: Strength of classifier-free guidance (1 is none); default: the model's.
            guidance_sweep: Scales to try, each with ``num_samples``: their metrics go to sweep.json, and the samples
                of the lowest FID (or of the lowest metric of that family) are written.
            guidance_interval: Times (0 noise, 1 data) when guidance acts, such as [0.1,1.0]; default: the model's.
            noise_scale: Standard deviation of the noise; below 1 trades variety for fidelity; default: the model's.
            stochasticity: Fresh noise in steps of ``euler``: 0 is none, 1 the DDPM step; default: the model's.
            restarts: Returns to ``restart_time`` by fresh noise, each followed by a way to data; default: the model's.
            restart_time: Time (0 is noise, 1 is data) that restarts go back to; default: the model's.
            restart_steps: Steps of the solver after each restart; default: the model's.
            batch_size: Samples at a time.
            film_strip: First samples to draw from noise to data, in film_strip.png.
        """
        model = self._as_unite(model)
        modality = chosen_modality(model.adapters, modality)
        Selection(num_samples, only, max_drawn)  # refuses what cannot be drawn
        for callback in self.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GenerationMetrics):
                callback.tell(model)  # a checkpoint of an older version does not know
        load_weights(model, ckpt_path, weights_only, self.strategy.root_device)
        how = model.adapters[modality].sampling.but(
            num_steps=num_steps,
            solver=solver,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            noise_scale=noise_scale,
            stochasticity=stochasticity,
            restarts=restarts,
            restart_time=restart_time,
            restart_steps=restart_steps,
        )
        settings = SampleSettings(
            modality=modality,
            num_samples=num_samples,
            labels=labels,
            sizes=read_sizes(sizes),
            targets=read_targets(targets),
            composition=composition,
            fix=fix,
            fix_atoms=fix_atoms,
            prompt=prompt,
            only=only,
            max_drawn=max_drawn,
            batch_size=batch_size,
            seed=torch.initial_seed(),
            **asdict(how),
        )
        name = folder_name("samples", modality, model.adapters)
        work = partial(write_samples, model, datamodule, settings, guidance_sweep=guidance_sweep, film_strip=film_strip)
        run_job(self, model, output, name, settings.decisive(), overwrite, work)

    def reconstruct(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
        num_samples: int = 64,
        split: Split = "test",
        output: str | Path | None = None,
        overwrite: bool = False,
        modality: str | None = None,
    ) -> None:
        """Decode the latents of real samples; writes both as files, with a picture and metrics.json.

        Several processes (``--trainer.devices``, torchrun) share the batches. If interrupted, the same command starts
        again.

        Args:
            model: The model.
            datamodule: The data.
            ckpt_path: The checkpoint.
            weights_only: Passed to torch.load; None is torch's own (safe) default.
            num_samples: Number of samples; the metrics cover all batches that contain them.
            split: The split to take them from, in its order.
            output: Folder for the files; default: in the run, as for ``sample``.
            overwrite: Replace files that the folder has already.
            modality: Modality to reconstruct; may be left out if the model has one.
        """
        model = self._as_unite(model)
        modality = chosen_modality(model.adapters, modality)
        require(num_samples >= 1, f"num_samples is {num_samples}; it must be at least 1")
        load_weights(model, ckpt_path, weights_only, self.strategy.root_device)
        seed = torch.initial_seed()
        settings = {"split": split, "num_samples": num_samples, "modality": modality, "seed": seed}
        name = folder_name("reconstructions", modality, model.adapters)
        limit_batches(datamodule_of(datamodule, modality) or datamodule, num_samples)
        work = partial(write_reconstructions, model, datamodule, split, modality, num_samples, seed=seed)
        run_job(self, model, output, name, settings, overwrite, work)

    def predict(  # type: ignore[override]  # Lightning's returns what a module's forward gives; a UniteModule has none
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
        split: Split = "test",
        output: str | Path | None = None,
        overwrite: bool = False,
        modality: str | None = None,
    ) -> None:
        """Write the latents of a split as safetensors: the tokenizer as a feature extractor.

        The files are described in :class:`unite.outputs.latents.LatentFiles`. If interrupted, the same command
        continues, even with another number of processes (``--trainer.devices``, torchrun), which share the batches.

        Args:
            model: The model.
            datamodule: The data.
            ckpt_path: The checkpoint.
            weights_only: Passed to torch.load; None is torch's own (safe) default.
            split: The split, in its order.
            output: Folder for the files; default: ``latents`` in the run, or ``latents_NAME`` of one of several.
            overwrite: Replace files that the folder has already.
            modality: Encode this modality only; default: all.
        """
        model = self._as_unite(model)
        if modality is not None:
            model.adapter(modality)
        load_weights(model, ckpt_path, weights_only, self.strategy.root_device)
        settings = {"split": split, "modality": modality, "seed": torch.initial_seed()}
        name = folder_name("latents", modality, model.adapters)
        work = partial(write_latents, model, datamodule, split, seed=torch.initial_seed(), modality=modality)
        run_job(self, model, output, name, settings, overwrite, work)

    def _as_unite(self, model: LightningModule) -> UniteModule:
        if not isinstance(model, UniteModule):
            raise TypeError(f"this command needs a UniteModule, not a {type(model).__name__}")
        return model

    def _report(self, results: list[Mapping[str, float]], verbose: bool, output: str | Path | None) -> None:
        """Print and write what an evaluation found."""
        values = {name: float(value) for result in results for name, value in result.items()}
        if self.is_global_zero and not self.fast_dev_run:  # type: ignore[attr-defined]
            if verbose:
                print(as_short_table(values))
            print(f"wrote {shown(write_metrics(values, Path(output or self.default_root_dir)))}")
