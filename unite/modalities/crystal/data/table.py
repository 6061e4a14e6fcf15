"""Many crystals as padded tensors, and batches of them. Letters: N crystals, A atoms of the largest, P properties."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unite.errors import UserError
from unite.modalities.crystal.crystal import Crystal

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
CrystalBatch = dict[str, Tensor]


@dataclass(frozen=True)
class CrystalTable:
    """Crystals with their properties.

    Attributes:
        atomic_numbers: Elements, int64, shape (N, A); 0 where padded.
        fractional: Fractional coordinates, float32, shape (N, A, 3); 0 where padded.
        cell: Lengths in Å and angles in degrees, float32, shape (N, 6).
        num_atoms: Atoms of each cell, shape (N,).
        split: Place in :data:`SPLITS` of each crystal, shape (N,).
        names: What the source calls each of them.
        properties: Known properties, float32, shape (N, P); NaN where unknown.
        property_names: Their names.
    """

    atomic_numbers: Tensor
    fractional: Tensor
    cell: Tensor
    num_atoms: Tensor
    split: Tensor
    names: Sequence[str]
    properties: Tensor
    property_names: Sequence[str]

    def __len__(self) -> int:
        return len(self.num_atoms)

    def rows(self, split: Split) -> Tensor:
        """Rows of a split, shape (n,)."""
        return (self.split == SPLITS.index(split)).nonzero()[:, 0]

    def batch(self, rows: Tensor) -> CrystalBatch:
        """Crystals of some rows (B,), padded to the largest of them.

        Returns:
            ``atomic_numbers`` (B, A), ``fractional`` (B, A, 3), ``cell`` (B, 6), ``num_atoms`` (B,), ``crystal_id``
            (B,), the row of each, and each property (B,) under its name.
        """
        largest = int(self.num_atoms[rows].max())
        return {
            "atomic_numbers": self.atomic_numbers[rows, :largest],
            "fractional": self.fractional[rows, :largest],
            "cell": self.cell[rows],
            "num_atoms": self.num_atoms[rows],
            "crystal_id": rows,
            **{name: self.properties[rows, column] for column, name in enumerate(self.property_names)},
        }

    def crystal(self, row: int) -> Crystal:
        """One of them."""
        size = int(self.num_atoms[row])
        return Crystal(
            self.atomic_numbers[row, :size].numpy(),
            self.fractional[row, :size].double().numpy(),
            self.cell[row].double().numpy(),
            self.names[row],
        )


def table_of(
    crystals: Sequence[Crystal],
    split: Sequence[int] | None = None,
    properties: Sequence[Sequence[float]] | None = None,
    property_names: Sequence[str] = (),
) -> CrystalTable:
    """A table of crystals; atoms in the order of :meth:`Crystal.in_order`.

    Args:
        crystals: At least one.
        split: Place in :data:`SPLITS` of each; None for all in training.
        properties: Those of each.
        property_names: Their names.

    Raises:
        UserError: There are none.
    """
    if not crystals:
        raise UserError("there are no crystals")
    ordered = [crystal.in_order() for crystal in crystals]
    largest = max(crystal.num_atoms for crystal in ordered)
    numbers = np.zeros((len(ordered), largest), dtype=np.int64)
    fractional = np.zeros((len(ordered), largest, 3), dtype=np.float32)
    for row, crystal in enumerate(ordered):
        numbers[row, : crystal.num_atoms] = crystal.atomic_numbers
        fractional[row, : crystal.num_atoms] = crystal.fractional
    known = np.zeros((len(ordered), 0)) if properties is None else np.array(properties, dtype=np.float32)
    return CrystalTable(
        atomic_numbers=torch.from_numpy(numbers),
        fractional=torch.from_numpy(fractional),
        cell=torch.from_numpy(np.array([crystal.cell for crystal in ordered], dtype=np.float32)),
        num_atoms=torch.tensor([crystal.num_atoms for crystal in ordered]),
        split=torch.zeros(len(ordered), dtype=torch.long) if split is None else torch.tensor(list(split)),
        names=[crystal.name for crystal in ordered],
        properties=torch.from_numpy(known).float(),
        property_names=list(property_names),
    )


def packed_table(path: Path) -> CrystalTable:
    """A table out of one of the files that travel with the package."""
    with np.load(path, allow_pickle=False) as arrays:
        return CrystalTable(
            atomic_numbers=torch.from_numpy(arrays["atomic_numbers"]).long(),
            fractional=torch.from_numpy(arrays["fractional_coordinates"]),
            cell=torch.from_numpy(arrays["lattice"]),
            num_atoms=torch.from_numpy(arrays["num_atoms"]).long(),
            split=torch.from_numpy(arrays["split"]).long(),
            names=arrays["material_id"].tolist(),
            properties=torch.from_numpy(arrays["properties"]),
            property_names=arrays["property_names"].tolist(),
        )


class CrystalRows(Dataset[dict[str, CrystalBatch]]):
    """Crystals to be taken a whole batch at a time: ``dataset[[3, 1, 4]]`` is one step.

    Args:
        table: The crystals.
    """

    def __init__(self, table: CrystalTable) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, rows: Any) -> dict[str, CrystalBatch]:
        """A batch as datamodules give it; a single int is a batch of one."""
        return {"crystal": self.table.batch(torch.atleast_1d(torch.as_tensor(rows)))}
