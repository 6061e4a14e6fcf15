"""The toy modality as it is when runs must be exact: loaders that go on within an epoch, and draws of every kind."""

import json
import os
import random
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import TensorDataset

from tests.toy_modality.curves import CurveAdapter, CurveDataModule
from unite.callbacks.averaging import WeightAveraging
from unite.engine.sharding import local
from unite.modalities.batches import BatchSampler, ResumableDataLoader
from unite.module import UniteModule


class NoisyCurveAdapter(CurveAdapter):
    """Augments with the global generators of Python, numpy and torch alike."""

    def prepare(self, samples: dict[str, Tensor]) -> dict[str, Tensor]:
        """Curves with noise, in training."""
        points = samples["points"]
        if self.training:
            shift = random.gauss(0, 0.1) + np.random.normal(0, 0.1)  # noqa: NPY002  what others may use
            points = points + shift + 0.1 * torch.randn_like(points)
        return {**samples, "points": points}


class ExactCurveDataModule(CurveDataModule):
    """Curves that are dealt out to several processes, and resumed within an epoch.

    Args:
        kwargs: What :class:`CurveDataModule` takes.
    """

    def __init__(self, **kwargs: int) -> None:
        super().__init__(**kwargs)

    def loader(self, seed: int, shuffle: bool) -> ResumableDataLoader:
        """Batches of one split."""
        dataset = super().loader(seed, shuffle).dataset
        assert isinstance(dataset, TensorDataset)
        processes = (self.trainer.distributed_sampler_kwargs if self.trainer else None) or {}
        sampler = BatchSampler(torch.arange(len(dataset)), self.batch_size, shuffle=shuffle, **processes)
        # The sampler gives lists of rows, for which a TensorDataset gives whole batches.
        return ResumableDataLoader(dataset, sampler=sampler, batch_size=None, collate_fn=_as_samples)


def _as_samples(batch: Any) -> dict[str, dict[str, Tensor]]:
    points, labels = batch
    return {"curve": {"points": points, "labels": labels}}


class Misfortune(Callback):
    """Sends this process a signal in a batch, as the environment says: ``SIGKILL train 7 0`` (of process 0)."""

    def __init__(self) -> None:
        self.sign, _, self.place = os.environ.get("MISFORTUNE", "").partition(" ")

    def strike(self, trainer: Trainer, stage: str) -> None:
        """Come unexpected, once."""
        if self.place == f"{stage} {trainer.fit_loop.epoch_loop.total_batch_idx} {trainer.global_rank}":
            self.place = ""
            os.kill(os.getpid(), getattr(signal, self.sign))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """A step has begun."""
        self.strike(trainer, "train")

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """A batch of validation has begun."""
        if not trainer.sanity_checking:
            self.strike(trainer, "val")


class FullDisk(Callback):
    """From the start of training on, no file may grow beyond 100 kB, as on a disk without space."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lower the limit of this process."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


class Witness(Callback):
    """Writes down which curves each process saw: ``seen-STAGE-EPOCH-RANK`` in the run folder."""

    def note(self, trainer: Trainer, stage: str, batch: dict[str, dict[str, Tensor]]) -> None:
        """Append a number for each curve, which no other has."""
        name = f"seen-{stage}-{trainer.current_epoch}-{trainer.global_rank}"
        with Path(trainer.default_root_dir, name).open("a") as file:
            file.writelines(f"{x!r}\n" for x in batch["curve"]["points"][:, 0, 0].tolist())

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, out: Any, batch: Any, idx: int) -> None:
        """A batch of training."""
        self.note(trainer, "train", batch)

    def on_validation_batch_end(
        self, trainer: Trainer, module: LightningModule, out: Any, batch: Any, idx: int, loader_idx: int = 0
    ) -> None:
        """A batch of validation."""
        if not trainer.sanity_checking:
            self.note(trainer, "val", batch)


class Ledger(Callback):
    """Writes down how many numbers this process holds of weights, average and optimizer: ``held-RANK.json``.

    Before training, while the weights may not have been whole yet, and after it, it uses the module as others might.
    """

    def reconstruct(self, module: LightningModule) -> list[float]:
        """Sums of points of reconstructed curves."""
        assert isinstance(module, UniteModule)
        torch.manual_seed(0)
        curves = {"points": torch.linspace(-1, 1, 32).view(2, 8, 2), "labels": torch.zeros(2, dtype=torch.long)}
        latents = module.tokenize("curve", curves).float()
        return [latents.square().sum().item(), *(float(x.sum()) for x in module.reconstruct("curve", curves))]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training is about to begin."""
        self.before = self.reconstruct(pl_module)

    @torch.no_grad()
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training is over."""
        averages = [callback._other for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]
        held = {
            "weights": pl_module.parameters(),
            "average": averages[0].values(),
            "optimizer": [x for state in trainer.optimizers[0].state.values() for x in state.values() if x.ndim],
        }
        counts = {name: sum(local(tensor).numel() for tensor in tensors) for name, tensors in held.items()}
        Path(trainer.default_root_dir, f"held-{trainer.global_rank}.json").write_text(json.dumps(counts))
        made = {"before": self.before, "after": self.reconstruct(pl_module)}
        Path(trainer.default_root_dir, f"made-{trainer.global_rank}.json").write_text(json.dumps(made))
