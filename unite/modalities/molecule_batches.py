"""Batches of molecules out of flat tensors: which go together, and how to put them together quickly."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data

from unite.modalities.batches import BatchSampler
from unite.modalities.qm9_bonds import BondTable
from unite.modalities.qm9_cache import MoleculeTable

#: Steps of which the molecules are sorted by size together. More save little padding, fewer cost much: on
#: QM9 with explicit hydrogens and batches of 256, 11 % is padding with 4, 6 % with 8, 1.9 % with 32, 1.1 %
#: with 64.
BUCKET_STEPS = 32


class GatheredMolecules(Dataset[dict[str, Batch]]):
    """Molecules of a table, to be taken a whole batch at a time: `dataset[[3, 1, 4]]` is one step.

    Gathering the atoms of a batch by index gives what `Batch.from_data_list` would, without a Python object
    for each molecule.

    Args:
        table: The molecules.
        with_hydrogen_counts: Whether batches have `num_hydrogens`.
        bonds: Bonds of the molecules of the table; None for batches without.
    """

    def __init__(self, table: MoleculeTable, with_hydrogen_counts: bool, bonds: BondTable | None = None) -> None:
        self.table = table
        self.with_hydrogen_counts = with_hydrogen_counts
        self.bonds = bonds

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, rows: Any) -> dict[str, Batch]:
        """A batch of molecules.

        Args:
            rows: Rows of the table, a sequence or a tensor of shape (B,); a single int is a batch of one.

        Returns:
            The batch under the key `molecule`: `z` (A,) atomic numbers, `pos` (A, 3) in Å, `batch` (A,)
            molecule of each atom, `ptr` (B + 1,) first atom of each molecule, `molecule_id` (B,) number in
            the data set, and `num_hydrogens` (A,) if asked for; with bonds also `edge_index` (2, E), every
            bond in both directions, `edge_attr` (E,) their types, and `charge` (A,).
        """
        table = self.table
        rows = torch.atleast_1d(torch.as_tensor(rows))
        num_molecules = rows.numel()
        first = table.ptr[rows]
        num_atoms = table.ptr[rows + 1] - first
        ptr = torch.cat([num_atoms.new_zeros(1), num_atoms.cumsum(0)])
        batch = torch.repeat_interleave(torch.arange(num_molecules), num_atoms)
        atoms = torch.arange(batch.numel()) + (first - ptr[:-1])[batch]

        per_atom = {"z": table.z[atoms].long(), "pos": table.pos[atoms]}
        if self.with_hydrogen_counts:
            per_atom["num_hydrogens"] = table.num_hydrogens[atoms].long()
        per_edge = {}
        slices = dict.fromkeys(per_atom, ptr)
        if self.bonds is not None:
            per_atom["charge"] = self.bonds.charge[atoms].long()
            first_edge = self.bonds.ptr[rows]
            num_edges = self.bonds.ptr[rows + 1] - first_edge
            edge_ptr = torch.cat([num_edges.new_zeros(1), num_edges.cumsum(0)])
            owner = torch.repeat_interleave(torch.arange(num_molecules), num_edges)
            edges = torch.arange(owner.numel()) + (first_edge - edge_ptr[:-1])[owner]
            per_edge = {
                "edge_index": self.bonds.ends[:, edges] + ptr[owner],
                "edge_attr": self.bonds.types[edges].long(),
            }
            slices |= {"charge": ptr} | dict.fromkeys(per_edge, edge_ptr)
        # The name is not `index`: PyG adds the number of atoms to attributes with "index" in their names
        # when it collates, so batching the molecules of a batch anew would change the numbers.
        per_molecule = {"molecule_id": table.molecule_id[rows]}

        result = Batch(_base_cls=Data, **per_atom, **per_edge, **per_molecule, batch=batch, ptr=ptr)
        # What Batch.from_data_list leaves for taking molecules out again (batch[i], to_data_list). These
        # names are private to PyG; test_gathered_batch_equals_collated_batch guards them.
        result._num_graphs = num_molecules
        result._slice_dict = slices | dict.fromkeys(per_molecule, torch.arange(num_molecules + 1))
        unchanged = torch.zeros(num_molecules, dtype=torch.long)
        result._inc_dict = dict.fromkeys([*per_atom, *per_edge, *per_molecule], unchanged)
        if self.bonds is not None:
            result._inc_dict["edge_index"] = ptr[:-1]
        return {"molecule": result}


class MoleculeBatchSampler(BatchSampler):
    """Batches of rows for one process out of several, of molecules of like size if wanted.

    Args:
        rows: Rows to choose from, shape (N,); at least `num_replicas`.
        num_atoms: Atoms of every molecule of the table, indexed by row.
        batch_size: Most molecules in a batch of one process (see `__len__` for the exception of size 1).
        shuffle: Whether to shuffle anew in every epoch, and to drop what does not fill the last step.
        seed: Of the order, not negative.
        bucket_by_size: Whether, when shuffling, molecules of like size are batched together. Of each
            `BUCKET_STEPS` steps the molecules are sorted by size, cut in batches, and the steps shuffled.
            All processes get molecules of like size in the same step, so none waits for another.
        num_replicas: Processes that share the data.
        rank: Number of this process.
    """

    def __init__(
        self,
        rows: Tensor,
        num_atoms: Tensor,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        bucket_by_size: bool = True,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(rows, batch_size, shuffle=shuffle, seed=seed, num_replicas=num_replicas, rank=rank)
        self.num_atoms = num_atoms
        self.bucket_by_size = bucket_by_size

    def arrange(self, order: Tensor, rows_per_step: int) -> Tensor:
        """Sort the molecules of each `BUCKET_STEPS` steps by size, if they are to be bucketed."""
        if not self.bucket_by_size:
            return order
        chunks = order.split(BUCKET_STEPS * rows_per_step)
        return torch.cat([chunk[self.num_atoms[chunk].argsort(stable=True)] for chunk in chunks])
