"""Several modalities in one training: datamodules side by side, so that each step has a batch of each.

``configs/joint.yaml`` trains one Generative Encoder on images and molecules in this way. The null condition of each
adapter is its *modality embedding*, which tells the encoder the modality of its input
(:meth:`unite.ModalityAdapter.null_condition`).
"""

import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from unite.errors import UserError


class CombinedDataModule(LightningDataModule):
    """Yields ``{modality: samples, ...}`` with a batch of every part in each step.

    Each part keeps its own batch size. An **epoch** is one pass over the part with the most batches; the others begin
    again when they run out, shuffled anew. Validation, test and prediction see every sample of every part once: their
    steps have all modalities until the shorter parts end.

    Under several processes each part divides its own data, as all datamodules of this package do.

    Args:
        parts: Datamodule of each modality, under the name that the adapter of the model has. A part may call its
            modality otherwise, so that one model can have two adapters of one kind.

    Raises:
        UserError: There is no part.
    """

    def __init__(self, parts: dict[str, LightningDataModule]) -> None:
        super().__init__()
        if not parts:
            raise UserError("data.parts is empty; name a datamodule for each modality")
        self.parts = parts

    def prepare_data(self) -> None:
        """Download or build what the parts need."""
        for part in self.parts.values():
            part.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Set up the parts, with the trainer of this datamodule."""
        for part in self.parts.values():
            part.trainer = self.trainer
            part.setup(stage)  # type: ignore[arg-type]  # Lightning's own annotation forgets None

    @property
    def predict_split(self) -> str:
        """Split that `predict` runs over, of every part.

        Raises:
            UserError: A part cannot choose one.
        """
        return str(self._choosable()[0].predict_split)

    @predict_split.setter
    def predict_split(self, split: str) -> None:
        for part in self._choosable():
            part.predict_split = split

    def _choosable(self) -> list[Any]:
        for modality, part in self.parts.items():
            if not hasattr(part, "predict_split"):
                raise UserError(f"data.parts.{modality} ({type(part).__name__}) has no predict_split")
        return list(self.parts.values())

    def teardown(self, stage: str | None = None) -> None:
        """Clean up after the parts."""
        for part in self.parts.values():
            part.teardown(stage)  # type: ignore[arg-type]

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """Move a batch as its parts do."""
        moved: dict[str, Any] = {}
        for modality, samples in batch.items():
            moved |= self.parts[modality].transfer_batch_to_device({modality: samples}, device, dataloader_idx)
        return moved

    def train_dataloader(self) -> "SideBySideLoader":
        """Training batches of all parts, the shorter ones again and again."""
        return self._loader("train_dataloader", cycle=True)

    def val_dataloader(self) -> "SideBySideLoader":
        """Every validation sample of every part once."""
        return self._loader("val_dataloader", cycle=False)

    def test_dataloader(self) -> "SideBySideLoader":
        """Every test sample of every part once."""
        return self._loader("test_dataloader", cycle=False)

    def predict_dataloader(self) -> "SideBySideLoader":
        """Every sample that the parts predict for once."""
        return self._loader("predict_dataloader", cycle=False)

    def _loader(self, name: str, cycle: bool) -> "SideBySideLoader":
        loaders = {modality: getattr(part, name)() for modality, part in self.parts.items()}
        for modality, loader in loaders.items():
            if cycle and len(loader) == 0:
                raise UserError(f"data.parts.{modality} has no batch to train on: lower its batch_size")
        if self.trainer is not None and self.trainer.world_size > 1:
            for modality, loader in loaders.items():
                if isinstance(loader, DataLoader) and not isinstance(loader.sampler, DistributedSampler):
                    raise UserError(
                        f"data.parts.{modality} would give every process all of its data: its {name} needs a "
                        "DistributedSampler of its own in a CombinedDataModule; or set trainer.devices to 1"
                    )
        return SideBySideLoader(loaders, cycle)


class SideBySideLoader:
    """Steps over several loaders at once: step i has the i-th batch of each.

    Lightning's ``CombinedLoader`` would repeat a short loader in the order of its first pass, and could not be resumed
    in a later one. Here every pass of a part is an epoch of its own: in epoch e, a part that is passed r times has its
    epochs e * r to e * r + r - 1, so that a resumed run finds its place.

    Args:
        loaders: Loader of each modality; a batch is a dictionary with one entry.
        cycle: Whether shorter loaders begin again until the longest ends, or are left out from there on.
    """

    def __init__(self, loaders: Mapping[str, Any], cycle: bool) -> None:
        self.loaders = dict(loaders)
        self.cycle = cycle
        self.epoch = 0
        self.num_given = 0
        self.passes: dict[str, int] = {}
        self.resumed: dict[str, Any] = {"epoch": -1}
        if cycle:
            self.sampler = self  # Lightning calls set_epoch of the attribute of this name

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be that of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of the longest loader."""
        return max(len(loader) for loader in self.loaders.values())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches ``{modality: samples}`` of the present epoch."""
        is_resumed = self.resumed["epoch"] == self.epoch
        self.num_given = self.resumed["num_given"] if is_resumed else 0
        streams = {}
        for modality, loader in self.loaders.items():
            first_pass = self.resumed["passes"][modality] if is_resumed else 0
            if is_resumed and (state := self.resumed["parts"][modality]) is not None:
                loader.load_state_dict(state)
            streams[modality] = self._stream(modality, first_pass)
        while self.num_given < len(self):
            batch = {}
            for modality, stream in streams.items():
                samples = next(stream, None)
                if samples is not None:
                    batch[modality] = samples
            self.num_given += 1
            yield batch

    def _stream(self, modality: str, first_pass: int) -> Iterator[Any]:
        """Samples of one part in the present epoch, beginning with the given pass."""
        loader = self.loaders[modality]
        passes_per_epoch = -(-len(self) // len(loader)) if self.cycle else 1
        for number in range(first_pass, passes_per_epoch):
            self.passes[modality] = number
            _set_epoch(loader, self.epoch * passes_per_epoch + number)
            for batch in loader:
                (samples,) = batch.values()
                yield samples

    def state_dict(self) -> dict[str, Any]:
        """Present epoch, and where in it each part is."""
        parts = {
            modality: loader.state_dict() if hasattr(loader, "state_dict") else None
            for modality, loader in self.loaders.items()
        }
        return {"epoch": self.epoch, "num_given": self.num_given, "passes": dict(self.passes), "parts": parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the epoch of the state go on behind its batches; other epochs begin at their beginning."""
        self.resumed = state


def every_nth(loader: Any, first: int, step: int) -> Iterator[tuple[int, Any]]:
    """Some batches of a loader that gives the same ones in the same order each time, and does not shuffle.

    Only these are loaded, if the loader is a ``DataLoader`` of numbered samples, or several such ones side by side.
    Other loaders have to go through the batches between.

    Args:
        loader: The loader.
        first: Number of the first batch to give.
        step: Distance to the next.

    Yields:
        Number of a batch, and the batch.
    """
    part = _part_of(loader, first, step)
    if part is None:
        yield from itertools.islice(enumerate(loader), first, None, step)
    else:
        yield from zip(itertools.count(first, step), part, strict=False)


def _part_of(loader: Any, first: int, step: int) -> Any:
    """A loader of some batches of another one; None if there cannot be one."""
    if isinstance(loader, SideBySideLoader):
        parts = {modality: _part_of(each, first, step) for modality, each in loader.loaders.items()}
        return None if None in parts.values() else SideBySideLoader(parts, cycle=False)
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    part = copy.copy(loader)
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    # Around DataLoader.__setattr__, which refuses what could not be changed once batches are being loaded.
    vars(part)[name] = _EveryNth(getattr(loader, name), first, step)
    return part


class _EveryNth:
    """Every n-th of what a sampler gives."""

    first_batch = 0  # as BatchSampler has it

    def __init__(self, sampler: Any, first: int, step: int) -> None:
        self.sampler, self.first, self.step = sampler, first, step

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self.sampler, self.first, None, self.step)

    def __len__(self) -> int:
        return len(range(self.first, len(self.sampler), self.step))


def _set_epoch(loader: Any, epoch: int) -> None:
    """Tell a loader the epoch as Lightning does; one without such a sampler is shuffled anew by itself."""
    set_epoch = getattr(getattr(loader, "sampler", None), "set_epoch", None)
    if set_epoch is not None:
        set_epoch(epoch)


def datamodule_of(datamodule: LightningDataModule | None, modality: str) -> LightningDataModule | None:
    """The datamodule that yields a modality: a part of a combined one, else the one that there is."""
    if isinstance(datamodule, CombinedDataModule):
        return datamodule.parts.get(modality)
    return datamodule
