"""Crystals as a Lightning datamodule: two small sets that travel with the package, and CSV files with CIFs (MP20).

Sources and licences of the small sets:

- ``materials_project_small``: 5,657 structures of at most 20 atoms and 87 elements out of the Materials Project (Jain
  et al., APL Materials 1, 011002 (2013)), whose data are CC BY 4.0, by way of the data sets that matminer 0.4.1 (BSD)
  carried: flla (2015), elastic, dielectric, piezoelectric. Niggli-reduced. Energies of some are known (eV/atom), and
  of fewer the moduli (GPa), band gap (eV) and refractive index.
- ``perov_5_small``: 7,572 cubic cells of five atoms, the validation and test files of Perov-5 (Castelli et al., Energy
  Environ. Sci. 5, 9034 (2012)) as the repository of CDVAE (Xie et al., arXiv:2110.06197; MIT) has them, divided anew:
  figures on it are not those of the literature's split.
"""

from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from unite.errors import UserError, require
from unite.modalities.batches import SizedBatchSampler, table_loader
from unite.modalities.crystal.data.csv_files import load_or_read
from unite.modalities.crystal.data.table import SPLITS, CrystalBatch, CrystalRows, CrystalTable, Split, packed_table

Source = Literal["materials_project_small", "perov_5_small", "csv"]
Batch = dict[str, CrystalBatch]

PEROVSKITE_SITES = ((0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, 0.5, 0.0), (0.5, 0.0, 0.5), (0.0, 0.5, 0.5))
"""Fractional coordinates of the ideal cubic perovskite: A, B, and three anions."""


class CrystalDataModule(LightningDataModule):
    """Crystals, as ``{"crystal": batch}`` in each step; a batch is what :meth:`CrystalTable.batch` gives.

    The split is that of the source, the same on every machine and for every ``seed``. Training batches are all of one
    size, and in each epoch other crystals are left over; evaluation sees every crystal once, in one order. Under
    several processes each gets equally many batches, disjoint from those of the others.

    Args:
        source: ``materials_project_small`` or ``perov_5_small``, which come with the package; ``csv`` for the files of
            MP20 and its like in ``root``.
        root: With ``source: csv``: folder with ``train.csv``, ``val.csv`` and ``test.csv``, each with a column ``cif``,
            as CDVAE, ADiT and FlowMM name them; columns of numbers are properties. They are read once (MP20: some
            minutes) and kept there as ``crystals.safetensors``.
        batch_size: Crystals in a training batch of one process.
        eval_batch_size: Crystals in a batch of validation, test, and prediction; None for ``batch_size``.
        seed: Of the order of training crystals; it does not change the split.
        bucket_by_size: Whether training batches hold crystals of like size: of random batches of the small set of the
            Materials Project, more than half is padding.
        num_train: Use the first n training crystals only; None for all.
        num_val: Use the first n validation crystals only; None for all.
        num_test: Use the first n test crystals only; None for all.
        predict_split: Split that ``predict`` runs over, in the order of the split.
        num_workers: Processes that make batches ahead, or with ``csv`` read the files; 0 is fastest for batches.
    """

    def __init__(
        self,
        source: Source = "materials_project_small",
        root: str = "data/mp20",
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        seed: int = 0,
        bucket_by_size: bool = True,
        num_train: int | None = None,
        num_val: int | None = None,
        num_test: int | None = None,
        predict_split: Split = "test",
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        limits: dict[Split, int | None] = {"train": num_train, "val": num_val, "test": num_test}
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size}
        for name, value in {**sizes, **{f"num_{split}": limit for split, limit in limits.items()}}.items():
            require(value is None or value >= 1, f"data.{name} is {value}; it must be at least 1")
        for name, value in {"seed": seed, "num_workers": num_workers}.items():
            require(value >= 0, f"data.{name} is {value}; it must not be negative")
        choices: dict[str, tuple[str, Any]] = {"source": (source, Source), "predict_split": (predict_split, Split)}
        for name, (choice, kind) in choices.items():
            if choice not in get_args(kind):
                raise UserError(f"data.{name} is {choice!r}; it must be one of {', '.join(get_args(kind))}")
        self.source: Source = source
        self.root = Path(root)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.seed = seed
        self.bucket_by_size = bucket_by_size
        self.limits = limits
        self.predict_split: Split = predict_split
        self.num_workers = num_workers
        self._table: CrystalTable | None = None

    @property
    def ideal_sites(self) -> Tensor | None:
        """Sites (A, 3) that the atoms of every crystal of the source have or nearly have; None if there are none."""
        return torch.tensor(PEROVSKITE_SITES) if self.source == "perov_5_small" else None

    def prepare_data(self) -> None:
        """Read CSV files where that was not done; Lightning calls this once on each machine."""
        self.table()

    def setup(self, stage: str | None = None) -> None:
        """Load the crystals; further calls do nothing.

        Raises:
            UserError: A split has fewer crystals than asked for.
        """
        for split in SPLITS:
            num, limit = len(self.table().rows(split)), self.limits[split]
            if limit is not None and limit > num:
                raise UserError(f"data.num_{split} is {limit}, but that split has {num} crystals")

    def table(self) -> CrystalTable:
        """All crystals."""
        if self._table is None:
            if self.source == "csv":
                self._table = load_or_read(self.root, self.num_workers)
            else:
                self._table = packed_table(Path(__file__).with_name(f"{self.source}.npz"))
        return self._table

    def rows(self, split: Split) -> Tensor:
        """Rows of the table that belong to a split, within ``num_train`` and its like, shape (n,)."""
        return self.table().rows(split)[: self.limits[split]]

    def size_histogram(self) -> Tensor:
        """Training crystals by number of atoms, shape (largest + 1,)."""
        return self.table().num_atoms[self.rows("train")].bincount()

    def training_crystals(self) -> CrystalBatch:
        """All training crystals as one batch, for statistics."""
        return self.table().batch(self.rows("train"))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches of one size."""
        return self._dataloader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Every validation crystal once."""
        return self._dataloader("val", self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Every test crystal once."""
        return self._dataloader("test", self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Every crystal of ``predict_split`` once, in the order of the split."""
        return self._dataloader(self.predict_split, self.eval_batch_size)

    def _dataloader(self, split: Split, batch_size: int, shuffle: bool = False) -> DataLoader[Batch]:
        rows = self.rows(split)
        sampler = partial(
            SizedBatchSampler,
            rows,
            self.table().num_atoms,
            batch_size,
            shuffle=shuffle,
            seed=self.seed,
            bucket_by_size=self.bucket_by_size,
        )
        return table_loader(
            self.trainer,
            CrystalRows(self.table()),
            rows,
            batch_size,
            sampler,
            split=split,
            samples="crystals",
            num_workers=0 if self.source == "csv" else self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )
