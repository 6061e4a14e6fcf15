"""Batches of molecules out of flat tensors: which go together, and how to put them together quickly."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset
from torch_geometric.data import Batch, Data

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
    """

    def __init__(self, table: MoleculeTable, with_hydrogen_counts: bool) -> None:
        self.table = table
        self.with_hydrogen_counts = with_hydrogen_counts

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, rows: Any) -> dict[str, Batch]:
        """A batch of molecules.

        Args:
            rows: Rows of the table, a sequence or a tensor of shape (B,); a single int is a batch of one.

        Returns:
            The batch under the key `molecule`: `z` (A,) atomic numbers, `pos` (A, 3) in Å, `batch` (A,)
            molecule of each atom, `ptr` (B + 1,) first atom of each molecule, `molecule_id` (B,) number in
            the data set, and `num_hydrogens` (A,) if asked for.
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
        # The name is not `index`: PyG adds the number of atoms to attributes with "index" in their names
        # when it collates, so batching the molecules of a batch anew would change the numbers.
        per_molecule = {"molecule_id": table.molecule_id[rows]}

        result = Batch(_base_cls=Data, **per_atom, **per_molecule, batch=batch, ptr=ptr)
        # What Batch.from_data_list leaves for taking molecules out again (batch[i], to_data_list). These
        # names are private to PyG; test_gathered_batch_equals_collated_batch guards them.
        result._num_graphs = num_molecules
        result._slice_dict = dict.fromkeys(per_atom, ptr) | dict.fromkeys(per_molecule, torch.arange(num_molecules + 1))
        result._inc_dict = dict.fromkeys([*per_atom, *per_molecule], torch.zeros(num_molecules, dtype=torch.long))
        return {"molecule": result}


class FixedBatches(Dataset[dict[str, Batch]]):
    """The same batches in every epoch, numbered from 0.

    Args:
        molecules: Molecules to gather from.
        batches: Rows of each batch.
    """

    def __init__(self, molecules: GatheredMolecules, batches: list[list[int]]) -> None:
        self.molecules = molecules
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> dict[str, Batch]:
        """Batch of a number, as `GatheredMolecules` gives it."""
        return self.molecules[self.batches[number]]


class MoleculeBatchSampler(DistributedSampler[list[int]]):
    """Batches of rows for one process out of several, disjoint between processes and equally many on each.

    Give it to a `DataLoader` as `sampler` with `batch_size=None`. Lightning calls `set_epoch` on what is a
    loader's `sampler`, not on its `batch_sampler`, and under DDP replaces any sampler that is not a
    `DistributedSampler`; batch samplers of other classes make it fail.

    When shuffling, the order depends on `seed` and the epoch alone, all batches are of one size, and what is
    left at the end of the order is dropped, other molecules in each epoch. Otherwise nothing is dropped: the
    molecules are divided as evenly as possible, and batches may be one smaller.

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
        # The parent deals out single molecules; it is here for its type and `set_epoch`, not for its
        # arithmetic.
        super().__init__(TensorDataset(rows), num_replicas, rank, shuffle, seed)
        self.rows = rows
        self.num_atoms = num_atoms
        self.batch_size = batch_size
        self.bucket_by_size = bucket_by_size
        self.resume_epoch = -1
        self.resume_batch = 0

    def resume(self, epoch: int, batch: int) -> None:
        """Lets the given epoch, and no other, begin at the given batch."""
        self.resume_epoch = epoch
        self.resume_batch = batch

    @property
    def first_batch(self) -> int:
        """Number of the batch at which the present epoch begins; 0 unless resumed."""
        return self.resume_batch if self.epoch == self.resume_epoch else 0

    def __len__(self) -> int:
        """Batches of each process in an epoch."""
        full, rest = divmod(self.rows.numel(), self.batch_size * self.num_replicas)
        if self.shuffle:
            return max(full, 1)
        # No batch may be empty: several processes that share molecules one by one get two now and then.
        return min(full + (rest > 0), self.rows.numel() // self.num_replicas)

    def __iter__(self) -> Iterator[list[int]]:
        """Batches of this process, each a list of rows."""
        num_steps = len(self)
        order = self.rows
        if self.shuffle:
            # Seeds made by adding would give epoch 1 of seed 0 the order of epoch 0 of seed 1.
            mixed_seed = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(mixed_seed[0]))
            order = order[torch.randperm(order.numel(), generator=generator)]
            molecules_per_step = self.batch_size * self.num_replicas
            if order.numel() < molecules_per_step:  # fewer than one step: smaller batches, of one size nevertheless
                molecules_per_step = order.numel() // self.num_replicas * self.num_replicas
            order = order[: num_steps * molecules_per_step]
            if self.bucket_by_size:
                chunks = order.split(BUCKET_STEPS * molecules_per_step)
                order = torch.cat([chunk[self.num_atoms[chunk].argsort(stable=True)] for chunk in chunks])
        batches = order.tensor_split(num_steps * self.num_replicas)
        steps = torch.randperm(num_steps, generator=generator) if self.shuffle else torch.arange(num_steps)
        for step in steps[self.first_batch :].tolist():
            yield batches[step * self.num_replicas + self.rank].tolist()


class ResumableDataLoader(DataLoader[dict[str, Batch]]):
    """A loader with a `MoleculeBatchSampler` that Lightning can resume in the middle of an epoch.

    Lightning keeps what `state_dict` gives in its checkpoints. Without it, a resumed epoch would begin with
    the batches that it began with before, and never see the last ones.
    """

    sampler: MoleculeBatchSampler
    num_given = 0

    def __iter__(self) -> Iterator[dict[str, Batch]]:  # type: ignore[override]  # Lightning asks for no more
        """Batches of the present epoch."""
        self.num_given = self.sampler.first_batch
        for batch in super().__iter__():
            self.num_given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Present epoch, and the number of batches of it that were given."""
        return {"epoch": self.sampler.epoch, "num_given": self.num_given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Lets the epoch of the state go on behind its batches; other epochs begin at their beginning."""
        self.sampler.resume(state["epoch"], state["num_given"])
