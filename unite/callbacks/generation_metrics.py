"""Metrics of samples and reconstructions at every validation, with pictures."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor
from torchmetrics import Metric

from unite.configurable import check_choices
from unite.errors import require
from unite.flow import SamplingOptions, Solver
from unite.modalities.base import ModalityAdapter
from unite.modalities.combined import datamodule_of
from unite.modalities.pictures import shown_of, with_note
from unite.module import UniteModule


class GenerationMetrics(Callback):
    """After each validation or test epoch: metrics of reconstructions and of new samples, with pictures.

    Logs ``stage/modality/metric``, shows the pictures in TensorBoard and writes them to ``pictures/`` in the run
    folder. Its place before or after :class:`WeightAveraging` does not matter: it evaluates the averaged weights.

    Args:
        num_samples: Samples to generate in validation.
        num_test_samples: Samples to generate in testing; None for as many as in validation.
        num_steps: Steps of the solver.
        solver: See :func:`unite.flow.integrate`.
        guidance_scale: Classifier-free guidance; 1 is none.
        guidance_interval: Times between which guidance acts.
        noise_scale: Standard deviation of the noise.
        stochasticity: Fresh noise in the steps of ``euler``, see :class:`unite.flow.SamplingOptions`.
        restarts: Number of returns to ``restart_time`` with fresh noise, each followed by another way to data.
        restart_time: Time (0 is noise, 1 is data) that restarts go back to.
        restart_steps: Steps of the solver after each restart.
        batch_size: Samples at a time.
        every_n_validations: Generate only in every n-th validation; reconstruction metrics are computed in each.
        seed: Seed of the samples, the same in each epoch so that pictures can be compared.
        num_drawn: Samples in a picture; 0 for none.
        modality: Modality to measure, for modalities that need different settings; None for all.
    """

    def __init__(
        self,
        num_samples: int = 1000,
        num_test_samples: int | None = None,
        num_steps: int = 50,
        solver: Solver = "euler",
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.1, 1.0),
        noise_scale: float = 1.0,
        stochasticity: float = 0.0,
        restarts: int = 0,
        restart_time: float = 0.5,
        restart_steps: int = 12,
        batch_size: int = 500,
        every_n_validations: int = 1,
        seed: int = 0,
        num_drawn: int = 36,
        modality: str | None = None,
    ) -> None:
        self.modality = modality
        self.num_samples = num_samples
        self.num_test_samples = num_samples if num_test_samples is None else num_test_samples
        counts = {
            "num_samples": num_samples,
            "num_test_samples": self.num_test_samples,
            "num_steps": num_steps,
            "batch_size": batch_size,
            "every_n_validations": every_n_validations,
        }
        for name, value in counts.items():
            require(value >= 1, f"GenerationMetrics.{name} is {value}; it must be at least 1")
        check_choices("GenerationMetrics", {"solver": Solver}, {"solver": solver})
        self.how = SamplingOptions(
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
        require(num_drawn >= 0, f"GenerationMetrics.num_drawn is {num_drawn}; it must be at least 0")
        self.batch_size = batch_size
        self.every_n_validations = every_n_validations
        self.seed = seed
        self.num_drawn = num_drawn
        self._validations = 0
        self._generation: dict[str, Metric | None] = {}
        self._reconstruction: dict[str, Metric | None] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Create the adapters' metrics. They are kept here, so that no checkpoint or optimizer contains them.

        Raises:
            UserError: Guidance is requested without classes, which would otherwise show only after an epoch.
        """
        for name, adapter in self._adapters(pl_module).items():
            scale = self.how.guidance_scale
            require(
                scale == 1 or adapter.num_classes > 0,
                f"GenerationMetrics.guidance_scale is {scale}, but modality {name!r} has no classes: leave it at 1, or "
                "name one with classes in GenerationMetrics.modality",
            )
            datamodule = datamodule_of(trainer.datamodule, name)  # type: ignore[attr-defined]
            self._generation[name] = adapter.generation_metric(datamodule)
            self._reconstruction[name] = adapter.reconstruction_metric(datamodule)

    @property
    def metrics(self) -> list[tuple[str, Metric]]:
        """Metrics of reconstructions and samples, each with the name of its modality."""
        found = [*self._reconstruction.items(), *self._generation.items()]
        return [(modality, metric) for modality, metric in found if metric is not None]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the sampling options in the checkpoints of this run, after one to continue from was read."""
        self.tell(_as_unite(pl_module))

    def tell(self, module: UniteModule) -> None:
        """Set the sampling options on the adapters that are measured."""
        for adapter in self._adapters(module).values():
            adapter.sampling = self.how

    def _adapters(self, pl_module: LightningModule) -> dict[str, ModalityAdapter]:
        """Adapters that this callback measures.

        Raises:
            UserError: ``modality`` is none of the model's.
        """
        module = _as_unite(pl_module)
        return dict(module.adapters) if self.modality is None else {self.modality: module.adapter(self.modality)}

    @property
    def state_key(self) -> str:
        """Name of the state in checkpoints; several callbacks for several modalities have one each."""
        return super().state_key if self.modality is None else f"{super().state_key}.{self.modality}"

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Update the reconstruction metrics with a batch, and draw some of the first batch."""
        module = _as_unite(pl_module)
        for modality in outputs.keys() & self._generation.keys():
            prediction, prepared = outputs[modality]
            if batch_idx == 0 and self.num_drawn and trainer.is_global_zero and not trainer.sanity_checking:
                self._draw_reconstructions(trainer, modality, module.adapters[modality], prediction, prepared)
            metric = self._reconstruction[modality]
            if metric is not None:
                arguments = module.adapters[modality].metric_arguments(prediction, prepared)
                metric.to(module.device).update(*arguments)

    on_test_batch_end = on_validation_batch_end

    def _draw_reconstructions(
        self, trainer: Trainer, modality: str, adapter: ModalityAdapter, prediction: Any, prepared: Any
    ) -> None:
        """Originals, each beside its reconstruction."""
        num_pairs = -(-self.num_drawn // 2)
        originals = adapter.originals(prepared)
        if originals:
            made = adapter.finish(prediction, adapter.template(prepared))
            picture = adapter.draw_reconstructions(originals[:num_pairs], made[:num_pairs])
            stage = "test" if trainer.testing else "val"
            show_picture(trainer, f"{stage}/{modality}/reconstructions", picture)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics of reconstructions and, every ``every_n_validations``, of new samples."""
        if trainer.sanity_checking:
            self._reset()
            return
        is_time = self._validations % self.every_n_validations == 0
        self._validations += trainer.state.fn == "fit"
        self._report("val", trainer, pl_module, self.num_samples if is_time else 0)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics of reconstructions and of new samples."""
        self._report("test", trainer, pl_module, self.num_test_samples)

    def _report(self, stage: str, trainer: Trainer, pl_module: LightningModule, num_samples: int) -> None:
        module = _as_unite(pl_module)
        for modality, adapter in self._adapters(pl_module).items():
            values: dict[str, Tensor] = {}
            reconstruction = self._reconstruction[modality]
            if reconstruction is not None:
                values.update(reconstruction.compute())
            if num_samples:
                with trainer.precision_plugin.forward_context():  # as `unite sample` does
                    objects = module.generate(
                        modality,
                        num_samples,
                        **asdict(self.how),
                        batch_size=self.batch_size,
                        seed=self.seed,
                        show_progress=trainer.is_global_zero and trainer.progress_bar_callback is not None,
                        # Each process makes its share; the metric adds them up.
                        indices=range(trainer.global_rank, num_samples, trainer.world_size),
                    )
                generation = self._generation[modality]
                if generation is not None:
                    generation.to(pl_module.device)
                    if objects:  # of fewer samples than processes, some have none
                        generation.update(objects)
                    values.update(generation.compute())
                if self.num_drawn and trainer.is_global_zero:
                    labels = adapter.drawn_labels(num_samples, None, self.seed)
                    own = None if labels is None else labels[:: trainer.world_size]  # of the first process
                    drawn = objects[: self.num_drawn]
                    note = shown_of(len(drawn), num_samples)
                    picture = with_note(adapter.draw_samples(drawn, own), note)
                    show_picture(trainer, f"{stage}/{modality}/samples", picture)
            module.log_dict({f"{stage}/{modality}/{name}": value for name, value in values.items()})
        self._reset()

    def _reset(self) -> None:
        for metric in (*self._generation.values(), *self._reconstruction.values()):
            if metric is not None:
                metric.reset()

    def state_dict(self) -> dict[str, Any]:
        """State of the callback in a checkpoint."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self._validations = state_dict["validations"]


def show_picture(trainer: Trainer, name: str, picture: Image.Image) -> Path:
    """Add a picture to TensorBoard, and write it to ``pictures/`` in the run folder under its name and step."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            pixels = np.asarray(picture.convert("RGB"))
            logger.experiment.add_image(name, pixels, trainer.global_step, dataformats="HWC")
    folder = Path(trainer.default_root_dir) / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace('/', '_')}_{trainer.global_step:07d}.png"
    picture.save(path)
    return path


def _as_unite(module: LightningModule) -> UniteModule:
    assert isinstance(module, UniteModule)
    return module
