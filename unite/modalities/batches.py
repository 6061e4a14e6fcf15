"""Which rows of a table go together in a batch, for any modality: disjoint between processes, and resumable."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

from unite.engine.seeding import mixed_generator
from unite.errors import UserError

#: Steps of which the samples are sorted by size together. More save little padding, fewer cost much: on
#: QM9 with explicit hydrogens and batches of 256, 11 % is padding with 4, 6 % with 8, 1.9 % with 32, 1.1 %
#: with 64.
BUCKET_STEPS = 32


def part_of(samples: Any, rows: list[int], total: int) -> Any:
    """Some of the samples of a batch, in the form of the batch.

    Args:
        samples: A PyG batch; or mappings, dataclasses and sequences of tensors or lists with a row for each sample.
            What has no such rows is left as it is.
        rows: The samples to take.
        total: Number of samples in the batch.
    """
    if hasattr(samples, "to_data_list"):
        return type(samples).from_data_list([samples[row] for row in rows])
    if isinstance(samples, Mapping):
        return {name: part_of(value, rows, total) for name, value in samples.items()}
    if dataclasses.is_dataclass(samples) and not isinstance(samples, type):
        fields = {field.name: getattr(samples, field.name) for field in dataclasses.fields(samples)}
        return dataclasses.replace(samples, **{name: part_of(value, rows, total) for name, value in fields.items()})
    if isinstance(samples, Tensor):
        return samples[rows] if samples.ndim and len(samples) == total else samples
    if isinstance(samples, list | tuple):
        return [samples[row] for row in rows] if len(samples) == total else samples
    return samples


class FixedBatches(Dataset[Any]):
    """The same batches in every epoch, numbered from 0.

    Args:
        samples: What gives a batch for a list of rows.
        batches: Rows of each batch.
    """

    def __init__(self, samples: Dataset[Any], batches: list[list[int]]) -> None:
        self.samples = samples
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Any:
        """Batch of a number."""
        return self.samples[self.batches[number]]


class BatchSampler(DistributedSampler[list[int]]):
    """Batches of rows for one process out of several, disjoint between processes and equally many on each.

    Give it to a `DataLoader` as `sampler` with `batch_size=None`. Lightning calls `set_epoch` on what is a
    loader's `sampler`, not on its `batch_sampler`, and under DDP replaces any sampler that is not a
    `DistributedSampler`; batch samplers of other classes make it fail.

    When shuffling, the order depends on `seed` and the epoch alone, all batches are of one size, and what is
    left at the end of the order is dropped, other rows in each epoch. Otherwise nothing is dropped: the rows
    are divided as evenly as possible, and batches may be one smaller.

    Args:
        rows: Rows to choose from, shape (N,); at least `num_replicas`.
        batch_size: Most rows in a batch of one process (see `__len__` for the exception of size 1).
        shuffle: Whether to shuffle anew in every epoch, and to drop what does not fill the last step.
        seed: Of the order, not negative.
        num_replicas: Processes that share the data.
        rank: Number of this process.
    """

    def __init__(
        self,
        rows: Tensor,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        # The parent deals out single rows; it is here for its type and `set_epoch`, not for its arithmetic.
        super().__init__(TensorDataset(rows), num_replicas, rank, shuffle, seed)
        self.rows = rows
        self.batch_size = batch_size
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

    def arrange(self, order: Tensor, rows_per_step: int) -> Tensor:
        """Change the order of the shuffled rows, of which each step takes `rows_per_step`."""
        return order

    def __len__(self) -> int:
        """Batches of each process in an epoch."""
        full, rest = divmod(self.rows.numel(), self.batch_size * self.num_replicas)
        if self.shuffle:
            return max(full, 1)
        # No batch may be empty: several processes that share rows one by one get two now and then.
        return min(full + (rest > 0), self.rows.numel() // self.num_replicas)

    def __iter__(self) -> Iterator[list[int]]:
        """Batches of this process, each a list of rows."""
        num_steps = len(self)
        order = self.rows
        if self.shuffle:
            generator = mixed_generator(self.seed, self.epoch)
            order = order[torch.randperm(order.numel(), generator=generator)]
            rows_per_step = self.batch_size * self.num_replicas
            if order.numel() < rows_per_step:  # fewer than one step: smaller batches, of one size nevertheless
                rows_per_step = order.numel() // self.num_replicas * self.num_replicas
            order = self.arrange(order[: num_steps * rows_per_step], rows_per_step)
        batches = order.tensor_split(num_steps * self.num_replicas)
        steps = torch.randperm(num_steps, generator=generator) if self.shuffle else torch.arange(num_steps)
        for step in steps[self.first_batch :].tolist():
            yield batches[step * self.num_replicas + self.rank].tolist()


class SizedBatchSampler(BatchSampler):
    """Batches of rows for one process out of several, of samples of like size if wanted.

    Args:
        rows: Rows to choose from, shape (N,); at least `num_replicas`.
        num_atoms: Size of every sample of the table, indexed by row.
        batch_size: Most samples in a batch of one process (see `__len__` for the exception of size 1).
        shuffle: Whether to shuffle anew in every epoch, and to drop what does not fill the last step.
        seed: Of the order, not negative.
        bucket_by_size: Whether, when shuffling, samples of like size are batched together. Of each
            `BUCKET_STEPS` steps the samples are sorted by size, cut in batches, and the steps shuffled.
            All processes get samples of like size in the same step, so none waits for another.
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
        """Sort the samples of each `BUCKET_STEPS` steps by size, if they are to be bucketed."""
        if not self.bucket_by_size:
            return order
        chunks = order.split(BUCKET_STEPS * rows_per_step)
        return torch.cat([chunk[self.num_atoms[chunk].argsort(stable=True)] for chunk in chunks])


class ResumableDataLoader(DataLoader[Any]):
    """A loader with a `BatchSampler` that Lightning can resume in the middle of an epoch.

    Lightning keeps what `state_dict` gives in its checkpoints. Without it, a resumed epoch would begin with
    the batches that it began with before, and never see the last ones.
    """

    sampler: BatchSampler
    num_given = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # Lightning asks for no more
        """Batches of the present epoch."""
        self.num_given = self.sampler.first_batch
        try:
            for batch in super().__iter__():
                self.num_given += 1
                yield batch
        except UserError as error:
            stop_workers(self)
            raise one_line(error) from error

    def state_dict(self) -> dict[str, int]:
        """Present epoch, and the number of batches of it that were given."""
        return {"epoch": self.sampler.epoch, "num_given": self.num_given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Lets the epoch of the state go on behind its batches; other epochs begin at their beginning."""
        self.sampler.resume(state["epoch"], state["num_given"])


def table_loader(
    trainer: Trainer | None,
    dataset: Dataset[Any],
    items: Tensor,
    batch_size: int,
    sampler: Callable[..., BatchSampler],
    *,
    split: str,
    samples: str,
    num_workers: int,
    pin_memory: bool,
) -> DataLoader[Any]:
    """A loader of a split of a table, whose dataset gives whole batches.

    Args:
        trainer: The trainer, if there is one: it says how many processes there are.
        dataset: Gives a batch for a list of items.
        items: What to ask for to get each sample of the split, shape (N,).
        batch_size: Samples in a batch.
        sampler: Makes the sampler from ``num_replicas`` and ``rank``, where there are several processes.
        split: Name of the split.
        samples: What the samples are, for messages.
        num_workers: Processes that make batches ahead.
        pin_memory: A GPU takes what lies in pinned memory without being waited for.

    Raises:
        UserError: There are fewer samples than processes.
    """
    distributed = (trainer.distributed_sampler_kwargs if trainer else None) or {}
    if (num_processes := distributed.get("num_replicas", 1)) > len(items):
        raise UserError(
            f"{num_processes} processes cannot share {len(items)} {samples} of split {split}; "
            f"raise data.num_{split} or lower trainer.devices"
        )
    options: dict[str, Any] = {
        "batch_size": None,
        "collate_fn": unchanged,
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "pin_memory": pin_memory,
    }
    if trainer and trainer.overfit_batches > 0:  # type: ignore[attr-defined]
        # Lightning then puts in a sampler of its own, which numbers the items of the dataset.
        return DataLoader(FixedBatches(dataset, [part.tolist() for part in items.split(batch_size)]), **options)
    return ResumableDataLoader(dataset, sampler=sampler(**distributed), **options)


def one_line(error: UserError) -> UserError:
    """An error out of a worker process without the stack trace that torch adds to its message."""
    return UserError(str(error).rstrip().rpartition(f"{UserError.__name__}: ")[2])


def stop_workers(loader: "DataLoader[Any]") -> None:
    """End the worker processes of a loader now; when Python comes to delete it, that may take 5 s for each."""
    if loader._iterator is not None and loader.num_workers:
        loader._iterator._shutdown_workers()  # type: ignore[attr-defined]  # as Lightning does
        loader._iterator = None


def unchanged(batch: Any) -> Any:
    """What the dataset gave; a function of its own because worker processes must be able to import it."""
    return batch
