"""Refuses, before the first step, to monitor metrics that are never logged."""

import difflib
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.seed import isolate_rng
from torchmetrics import Metric

from unite.callbacks.generation_metrics import GenerationMetrics
from unite.errors import UserError
from unite.modalities.batches import part_of
from unite.module import UniteModule

_OF_TRAINING = ("train/loss", "train/steps_per_second", "train/samples_per_second")
_OWN = ("unite.", "lightning.")


class MonitorsExist(Callback):
    """Refuses the ``monitor`` of a ``ModelCheckpoint`` or ``EarlyStopping`` if nothing logs it.

    Lightning finds out at the first validation, which may be hours later. The terms of the loss and the metrics of
    :class:`unite.callbacks.GenerationMetrics` are known before the first step. Everything else is left to Lightning:
    names below that of a metric, such as ``val/molecule/reject/crashed``, names of ``lr/``, all names of a modality if
    one of its metrics cannot list its names without data, and all names if the model or a callback is not from this
    package, or if there are several processes.
    """

    def __init__(self) -> None:
        self._is_done = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check again in each run."""
        self._is_done = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Check once, with the first batch, which gives the terms of the loss.

        Raises:
            UserError: A monitored metric is never logged.
        """
        if self._is_done:
            return
        self._is_done = True
        watching = [item for item in trainer.callbacks if isinstance(item, ModelCheckpoint | EarlyStopping)]  # type: ignore[attr-defined]
        watching = [item for item in watching if item.monitor and getattr(item, "strict", True)]
        is_judged = watching and trainer.enable_validation and trainer.world_size == 1
        if not is_judged or not _is_all_known(trainer, pl_module):
            return
        assert isinstance(pl_module, UniteModule)
        known, open_ended = _names(trainer, pl_module, batch)
        for callback in watching:
            name = str(callback.monitor)
            if name not in known and not name.startswith(tuple(open_ended)) and not _is_nested(name, batch):
                raise UserError(_refusal(type(callback).__name__, name, known))


def _is_all_known(trainer: Trainer, module: LightningModule) -> bool:
    """Whether all that logs is of this package or Lightning's."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return type(module) is UniteModule and all(type(item).__module__.startswith(_OWN) for item in callbacks)


def _is_nested(name: str, modalities: Iterable[str]) -> bool:
    """Whether it is a name below another name of a modality; which of these there are depends on the data."""
    return name.count("/") > 2 and name.split("/")[1] in modalities


def _names(trainer: Trainer, module: UniteModule, batch: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Names that will be logged, and beginnings of names of which some may be."""
    known, open_ended = set(_OF_TRAINING), {"lr/"}
    for modality, samples in batch.items():
        terms = {*_loss_terms(trainer, module, modality, samples), "flow"}
        known |= {f"{stage}/{modality}/{term}" for stage in ("train", "val") for term in terms}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GenerationMetrics):
            for modality, metric in callback.metrics:
                names = _metric_names(metric)
                known |= {f"val/{modality}/{name}" for name in names}
                open_ended |= set() if names else {f"val/{modality}/"}
    return known, open_ended


def _loss_terms(trainer: Trainer, module: UniteModule, modality: str, samples: Any) -> Iterable[str]:
    """Terms of the reconstruction loss, from two samples decoded from noise."""
    adapter = module.adapter(modality)
    with (
        torch.no_grad(),
        isolate_rng(include_cuda=module.device.type == "cuda"),
        trainer.precision_plugin.forward_context(),
    ):
        total = len(adapter.template(adapter.prepare(samples)))
        prepared = adapter.prepare(part_of(samples, list(range(min(2, total))), total))
        template = adapter.template(prepared)
        num_registers = adapter.registers(template).values.shape[1]
        latents = torch.randn(len(template), num_registers, module.encoder.latent_channels, device=module.device)
        return adapter.reconstruction_loss(adapter.decode(latents, template), prepared).keys()


def _metric_names(metric: Metric) -> set[str]:
    """Names that a metric gives; empty if it does not say without data."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has seen no data
            return {*metric.compute(), *getattr(metric, "conditional_names", ())}
    except Exception:
        return set()
    finally:
        metric.reset()


def _refusal(callback: str, name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    if close:
        return f"{callback}.monitor is {name!r}, which is not logged; did you mean {close[0]!r}?"
    others = ", ".join(sorted(item for item in known if item.startswith("val/") and item.count("/") == 2))
    return f"{callback}.monitor is {name!r}, which is not logged; it may be one of {others}"
