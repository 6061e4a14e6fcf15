"""Batches out of the memory-mapped table, and samplers that draw one conformer of each molecule in an epoch."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch

from unite.engine.seeding import mixed_generator
from unite.modalities.batches import SizedBatchSampler
from unite.modalities.flat import Segments
from unite.modalities.molecule.batches import finished_batch, long_unless_float
from unite.modalities.molecule.data.files.table import FileTable

_CPU = torch.device("cpu")
_TELL = 0xC0F0  # keeps the draws of conformers apart from the order of the molecules


class GatheredSamples(Dataset[dict[str, Batch]]):
    """Samples of a table, to be taken a whole batch at a time: `dataset[[3, 1, 4]]` is one step.

    A sample is a conformer; :attr:`FileTable.sample_ptr` gives its molecule. Nothing is held in memory but what a
    batch takes.

    Args:
        table: The molecules.
        positions: Whether batches have `pos`.
        bonds: Whether batches have `edge_index`, `edge_attr` and `charge`.
        properties: Columns of `table.y` that batches have as `y`.
        captions: Whether batches have `caption`.
    """

    def __init__(
        self, table: FileTable, positions: bool, bonds: bool, properties: Sequence[int] = (), captions: bool = False
    ) -> None:
        self.table = table
        self.positions = positions
        self.bonds = bonds
        self.properties = list(properties)
        self.captions = captions

    def __len__(self) -> int:
        return int(self.table.sample_ptr[-1])

    def __getitem__(self, samples: Any) -> dict[str, Batch]:
        """A batch of molecules.

        Args:
            samples: Numbers of samples, a sequence or a tensor of shape (B,).

        Returns:
            The batch under the key `molecule`, as of :class:`~unite.modalities.molecule.batches.GatheredMolecules`;
            with properties also `y` (B, properties), NaN where one is missing.
        """
        table = self.table
        samples = torch.atleast_1d(torch.as_tensor(samples))
        rows = torch.searchsorted(table.sample_ptr, samples, right=True) - 1
        sizes = table.num_atoms[rows].long()
        atoms = Segments(table.ptr[rows], sizes, _CPU)
        per_atom = {"z": table.z[atoms.index]}
        if self.positions:
            conformer = samples - table.sample_ptr[rows]
            places = Segments(table.position_ptr[rows] + conformer * sizes, sizes, _CPU)
            per_atom["pos"] = table.pos[places.index]
        if table.num_hydrogens is not None:
            per_atom["num_hydrogens"] = table.num_hydrogens[atoms.index]
        per_edge = {}
        edge_ptr = None
        if self.bonds:
            per_atom["charge"] = table.charge[atoms.index]
            bonds = Segments(table.bond_ptr[rows], table.num_bonds[rows].long(), _CPU)
            ends = torch.stack([table.first[bonds.index], table.second[bonds.index]]).long() + atoms.ptr[bonds.owner]
            # Every bond is two edges, next to each other.
            per_edge = {
                "edge_index": torch.stack([ends, ends.flip(0)], dim=-1).flatten(1),
                "edge_attr": table.types[bonds.index].long().repeat_interleave(2),
            }
            edge_ptr = 2 * bonds.host_ptr
        per_molecule = {"molecule_id": table.molecule_id[rows]}
        if self.properties:
            per_molecule["y"] = table.y[rows][:, self.properties]
        per_atom = {name: long_unless_float(values) for name, values in per_atom.items()}
        captions = [table.caption(row) for row in rows.tolist()] if self.captions else None
        return {"molecule": finished_batch(per_atom, per_edge, per_molecule, atoms, edge_ptr, captions)}


class ConformerBatchSampler(SizedBatchSampler):
    """Batches of samples: of each molecule one conformer, drawn anew in each epoch, or the first without shuffling.

    Which one depends on seed, epoch and molecule alone, so that a resumed run draws the same.

    Args:
        table: The molecules.
        rows: Rows to choose from, shape (N,).
        batch_size: Most molecules in a batch of one process.
        settings: As of :class:`~unite.modalities.batches.SizedBatchSampler`.
    """

    def __init__(self, table: FileTable, rows: Tensor, batch_size: int, **settings: Any) -> None:
        super().__init__(rows, table.num_atoms, batch_size, **settings)
        self.table = table

    def __iter__(self) -> Iterator[list[int]]:
        """Batches of this process, each a list of samples."""
        samples = self.table.sample_ptr[:-1]
        if self.shuffle:
            generator = mixed_generator(self.seed, self.epoch, _TELL)
            drawn = torch.rand(len(self.table), generator=generator, dtype=torch.float64)
            samples = samples + (drawn * self.table.num_conformers.clamp(min=1)).long()
        for rows in super().__iter__():
            yield samples[rows].tolist()
