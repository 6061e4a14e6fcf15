"""Batches of molecules out of flat tensors: which go together, and how to put them together quickly."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data

from unite.modalities.batches import BatchSampler
from unite.modalities.molecule.data.qm9.bonds import BondTable
from unite.modalities.molecule.data.qm9.table import MoleculeTable

#: Steps of which the molecules are sorted by size together. More save little padding, fewer cost much: on
#: QM9 with explicit hydrogens and batches of 256, 11 % is padding with 4, 6 % with 8, 1.9 % with 32, 1.1 %
#: with 64.
BUCKET_STEPS = 32


class GatheredMolecules(Dataset[dict[str, Batch]]):
    """Molecules of a table, to be taken a whole batch at a time: `dataset[[3, 1, 4]]` is one step.

    Gathering the atoms of a batch by index gives what `Batch.from_data_list` would, without a Python object
    for each molecule. On a GPU nothing waits for it: all sizes are known on the CPU, and only the rows go over.

    Args:
        table: The molecules.
        with_hydrogen_counts: Whether batches have `num_hydrogens`.
        bonds: Bonds of the molecules of the table; None for batches without.
        device: Where the molecules lie and batches are made.
    """

    def __init__(
        self,
        table: MoleculeTable,
        with_hydrogen_counts: bool,
        bonds: BondTable | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.table = table
        self.bonds = bonds
        self.device = torch.device(device)
        self.per_atom = {"z": table.z, "pos": table.pos}
        if with_hydrogen_counts:
            self.per_atom["num_hydrogens"] = table.num_hydrogens
        per_edge = {}
        if bonds is not None:
            self.per_atom["charge"] = bonds.charge
            per_edge = {"edge_index": bonds.ends, "edge_attr": bonds.types}
        self.per_atom = {name: values.to(self.device) for name, values in self.per_atom.items()}
        self.per_edge = {name: values.to(self.device) for name, values in per_edge.items()}

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
        rows = torch.atleast_1d(torch.as_tensor(rows))
        num_molecules = rows.numel()
        atoms = _Segments(self.table.ptr, rows, self.device)
        # All but positions are integers, kept as bytes.
        per_atom = {name: _long_unless_float(values[atoms.index]) for name, values in self.per_atom.items()}
        slices = dict.fromkeys(per_atom, atoms.host_ptr)
        per_edge = {}
        if self.bonds is not None:
            edges = _Segments(self.bonds.ptr, rows, self.device)
            per_edge = {
                "edge_index": self.per_edge["edge_index"][:, edges.index] + atoms.ptr[edges.owner],
                "edge_attr": self.per_edge["edge_attr"][edges.index].long(),
            }
            slices |= dict.fromkeys(per_edge, edges.host_ptr)
        # The name is not `index`: PyG adds the number of atoms to attributes with "index" in their names
        # when it collates, so batching the molecules of a batch anew would change the numbers.
        per_molecule = {"molecule_id": _send(self.table.molecule_id[rows], self.device)}

        result = Batch(_base_cls=Data, **per_atom, **per_edge, **per_molecule, batch=atoms.owner, ptr=atoms.ptr)
        # What Batch.from_data_list leaves for taking molecules out again (batch[i], to_data_list). These
        # names are private to PyG; test_gathered_batch_equals_collated_batch guards them.
        result._num_graphs = num_molecules
        result._slice_dict = slices | dict.fromkeys(per_molecule, torch.arange(num_molecules + 1))
        unchanged = torch.zeros(num_molecules, dtype=torch.long)
        result._inc_dict = dict.fromkeys([*per_atom, *per_edge, *per_molecule], unchanged)
        if self.bonds is not None:
            result._inc_dict["edge_index"] = atoms.host_ptr[:-1]
        result._largest = int(atoms.host_ptr.diff().max())
        return {"molecule": result}


def known_largest(batch: Batch) -> int | None:
    """Atoms of the largest molecule of a batch that `GatheredMolecules` made; None for others.

    It is a number on the CPU wherever the batch lies: reading it makes no GPU wait. As a private attribute, like PyG's
    own, it follows the batch to other devices but is no part of its data.
    """
    return getattr(batch, "_largest", None)


class _Segments:
    """Where the atoms (or edges) of some molecules lie in a table, and where they go in a batch.

    Attributes:
        host_ptr: First atom of each molecule in the batch, and the end, shape (B + 1,), on the CPU.
        ptr: The same on the device.
        owner: Molecule of each atom of the batch, shape (A,), on the device.
        index: Place of each atom in the table, shape (A,), on the device.
    """

    def __init__(self, ptr: Tensor, rows: Tensor, device: torch.device) -> None:
        first = ptr[rows]
        sizes = ptr[rows + 1] - first
        self.host_ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        total = int(self.host_ptr[-1])
        self.ptr = _send(self.host_ptr, device)
        shifts = _send(first - self.host_ptr[:-1], device)
        # Unless it is told the total, a GPU has to finish all its work to find it.
        self.owner = torch.repeat_interleave(self.ptr.diff(), output_size=total)
        self.index = torch.arange(total, device=device) + shifts[self.owner]


def _send(values: Tensor, device: torch.device) -> Tensor:
    """Values of the CPU on a device, without waiting for it."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def _long_unless_float(values: Tensor) -> Tensor:
    return values if values.is_floating_point() else values.long()


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
