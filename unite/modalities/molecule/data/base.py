"""What datamodules of molecules share: loaders of whole batches, resumable, divided between processes."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch_geometric.data import Batch

from unite.modalities.batches import BatchSampler, table_loader

Hydrogens = Literal["explicit", "counted"]
Split = Literal["train", "val", "test"]


class MoleculeDataModule(LightningDataModule, ABC):
    """Yields ``{"molecule": Batch}``: training batches shuffled and of one size, every other molecule once, in order.

    Under several processes each gets equally many batches, disjoint from those of the others.

    Args:
        batch_size: Molecules in a training batch of one process.
        eval_batch_size: Molecules in a batch of validation, test, and prediction; None for `batch_size`.
        seed: Of the order of training molecules.
        predict_split: Split that `predict` runs over, in the order of the split.
        num_workers: Processes that make batches ahead.
        on_device: Keep all molecules on the trainer's device, and make the batches there.
    """

    def __init__(
        self,
        batch_size: int,
        eval_batch_size: int | None,
        seed: int,
        predict_split: Split,
        num_workers: int,
        on_device: bool = False,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.seed = seed
        self.predict_split: Split = predict_split
        self.num_workers = num_workers
        self.on_device = on_device

    @abstractmethod
    def adapter_settings(self) -> dict[str, Any]:
        """Arguments of :class:`~unite.modalities.molecule.MoleculeAdapter` that follow from the data."""

    @abstractmethod
    def rows(self, split: Split) -> Tensor:
        """Rows of the molecules of a split, in its order, shape (N,)."""

    @abstractmethod
    def molecules(self, device: torch.device | str = "cpu") -> Dataset[dict[str, Batch]]:
        """What gives a batch of molecules for what :meth:`sampler` yields."""

    @abstractmethod
    def sampler(self, rows: Tensor, batch_size: int, shuffle: bool, **distributed: int) -> BatchSampler:
        """Batches of these rows."""

    def samples_of(self, rows: Tensor) -> Tensor:
        """What :meth:`molecules` is asked for to get these rows, the same at any time."""
        return rows

    @abstractmethod
    def size_histogram(self) -> Tensor:
        """Training molecules by number of atoms, shape (largest + 1,); counted hydrogens are no atoms."""

    def training_properties(self) -> Tensor:
        """Properties of all training molecules, shape (N, properties); NaN where one is missing."""
        return torch.cat([molecules.y for molecules in self.training_molecules()])

    def training_molecules(self) -> Iterator[Batch]:
        """All training molecules in large batches on the CPU, to be looked at as a whole."""
        molecules = self.molecules()
        for rows in self.rows("train").split(1024):
            yield molecules[self.samples_of(rows)]["molecule"]

    def train_dataloader(self) -> DataLoader[dict[str, Batch]]:
        """Shuffled batches of one size."""
        return self._dataloader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[dict[str, Batch]]:
        """Every validation molecule once; not sorted by size, so that the first batches are a fair sample."""
        return self._dataloader("val", self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[dict[str, Batch]]:
        """Every test molecule once."""
        return self._dataloader("test", self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[dict[str, Batch]]:
        """Every molecule of `predict_split` once, in the order of the split."""
        return self._dataloader(self.predict_split, self.eval_batch_size)

    def transfer_batch_to_device(
        self, batch: dict[str, Batch], device: torch.device, dataloader_idx: int
    ) -> dict[str, Batch]:
        """Move a batch; a GPU is not waited for, as Lightning would with PyG's batches."""
        return {name: samples.to(device, non_blocking=device.type == "cuda") for name, samples in batch.items()}

    def _dataloader(self, split: Split, batch_size: int, shuffle: bool = False) -> DataLoader[dict[str, Batch]]:
        rows = self.rows(split)
        return table_loader(
            self.trainer,
            self.molecules(self.trainer.strategy.root_device if self.on_device and self.trainer else "cpu"),
            self.samples_of(rows),
            batch_size,
            partial(self.sampler, rows, batch_size, shuffle),
            split=split,
            samples="molecules",
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available() and not self.on_device,
        )
