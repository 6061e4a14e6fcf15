"""``unite predict``: a split of the data through the tokenizer."""

import hashlib
import os
from collections.abc import Iterator, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule
from safetensors.torch import save
from torch import Tensor

from unite.console import info, shown
from unite.engine.processes import LostProcessError
from unite.engine.seeding import mixed_generator
from unite.errors import UserError
from unite.files import file_checksum, write_whole
from unite.files.checked_json import DamagedFileError, read_checked_json, write_checked_json
from unite.modalities.combined import every_nth
from unite.module import UniteModule
from unite.outputs.folder import OutputFolder
from unite.outputs.job import Job

Split = Literal["train", "val", "test"]

#: A file of latents is closed once it is larger than this, in bytes.
PART_BYTES = 128 << 20

_STATE = ("num_batches", "num_samples", "num_files", "checksums")


def split_loader(datamodule: LightningDataModule, split: Split) -> Any:
    """Batches with every sample of a split once, in one order, not augmented.

    Raises:
        UserError: The datamodule can give its training samples only in the way training wants them.
    """
    datamodule.prepare_data()
    try:
        can_choose = hasattr(datamodule, "predict_split")
    except UserError:  # a part of a combined one cannot
        if split == "train":
            raise
        can_choose = False
    if can_choose:
        datamodule.predict_split = split  # type: ignore[attr-defined]
        datamodule.setup("predict")
        return datamodule.predict_dataloader()
    if split == "train":
        raise UserError(
            f"--split train: {type(datamodule).__name__} has no predict_split, so it cannot give its training samples "
            "in order; choose val or test"
        )
    datamodule.setup({"val": "validate", "test": "test"}[split])
    return datamodule.val_dataloader() if split == "val" else datamodule.test_dataloader()


def encode(model: UniteModule, modality: str, samples: Any, seed: int, batch_number: int) -> Tensor:
    """Latents (B, K, C) of a batch, with noise that depends on the seed and the number of the batch alone."""
    noise_seed = mixed_generator(seed, batch_number).initial_seed()
    return model.tokenize(modality, samples, torch.Generator(model.device).manual_seed(noise_seed))


class LatentFiles:
    """Latents of a split, written batch by batch into files of bounded size.

    Files are named ``MODALITY-SPLIT-00000.safetensors`` and so on. Each holds, for n samples,

    - ``latents``: float32, shape (n, K, C), zero where padded;
    - ``mask``: True where a latent is real, shape (n, K); only where samples differ in their number of latents;
    - ``index``: place of the sample in the split, from 0, int64, shape (n,);
    - ``label``: class, shape (n,), where the modality has classes;
    - what the adapter's :meth:`~unite.ModalityAdapter.annotations` adds, such as ``molecule_id``.

    To read them::

        from pathlib import Path
        import torch
        from safetensors.torch import load_file
        files = [load_file(file) for file in sorted(Path("latents").glob("molecule-test-*.safetensors"))]
        latents = [row[mask] for file in files for row, mask in zip(file["latents"], file["mask"])]  # each (K, C)

    or, where all samples have equally many, ``torch.cat([file["latents"] for file in files])``.

    Files that an interrupted command has closed are continued, unless the split is now of another number of batches.

    Args:
        folder: Where the files go; in the making they lie among its parts.
        split: Split that the samples are of.
        total: Of how many batches the split is, if known.
        part_bytes: Size from which on a file is closed.

    Raises:
        UserError: What an interrupted command has left is damaged.
    """

    def __init__(
        self, folder: OutputFolder, split: Split, total: int | None = None, part_bytes: int = PART_BYTES
    ) -> None:
        self.folder = folder
        self.split = split
        self.part_bytes = part_bytes
        self._state_file = folder.parts / "state.json"
        state = self._read_state(total)
        self._total = total
        self._progress = _Progress(**{name: state[name] for name in _STATE if name in state})
        self._batch: dict[str, dict[str, Tensor]] = {}
        self._waiting_bytes = 0

    @property
    def num_batches(self) -> int:
        """Batches that are in finished files."""
        return self._progress.num_batches

    @property
    def num_samples(self) -> dict[str, int]:
        """Samples of each modality in finished files."""
        return self._progress.num_samples

    def _read_state(self, total: int | None) -> dict[str, Any]:
        """What an interrupted command has noted; files of a split of another number of batches are thrown away."""
        if not self._state_file.is_file():
            return {}
        try:
            state = read_checked_json(self._state_file)
        except DamagedFileError as error:
            raise UserError(
                f"{self._state_file} is damaged ({error}); remove {shown(self.folder.parts)}, and the same command "
                "starts over"
            ) from error
        if total != state.get("total"):
            info(f"the split is now of {total} batches, and was of {state.get('total')}: starting over")
            for path in self.folder.parts.glob("*.safetensors"):
                path.unlink()
            self._state_file.unlink()
            return {}
        for name, checksum in state.get("checksums", {}).items():  # older ones have none
            path = self.folder.parts / name
            if not path.is_file() or file_checksum(path) != checksum:
                raise UserError(
                    f"{path} is missing or damaged; remove {shown(self.folder.parts)}, and the same command starts over"
                )
        return state

    def add(self, modality: str, rows: dict[str, Tensor]) -> None:
        """Add the samples of the next batch: tensors of shape (B, ...) by name, without ``index``."""
        self._batch[modality] = {name: value.cpu() for name, value in rows.items()}
        self._waiting_bytes += rows["latents"].nbytes

    def end_batch(self) -> None:
        """Note that a batch is complete; close the files if they are large enough."""
        batch, self._batch = self._batch, {}
        self._progress.waiting.append(batch)
        if self._waiting_bytes >= self.part_bytes:
            self.keep()

    def keep(self) -> None:
        """Close the files however small they are; of a batch that is not complete nothing is in them.

        Interrupted anywhere, it can be called again: it writes the same files.
        """
        before = self._progress
        modalities = dict.fromkeys(modality for batch in before.waiting for modality in batch)
        if not modalities:
            return
        num_samples, checksums = dict(before.num_samples), dict(before.checksums)
        for modality in modalities:
            batches = [batch[modality] for batch in before.waiting if modality in batch]
            columns = {name: [batch[name] for batch in batches] for name in batches[0]}
            columns |= {name: _padded(columns[name]) for name in ("latents", "mask") if name in columns}
            tensors = {name: torch.cat(column) for name, column in columns.items()}
            first = num_samples.get(modality, 0)
            num_samples[modality] = first + len(tensors["latents"])
            tensors["index"] = torch.arange(first, num_samples[modality])
            name = f"{modality}-{self.split}-{before.num_files:05d}.safetensors"
            content = save(tensors, {"modality": modality, "split": self.split})
            write_whole(self.folder.parts / name, content)
            checksums[name] = hashlib.sha256(content).hexdigest()
        num_batches = before.num_batches + len(before.waiting)
        after = _Progress(num_batches, num_samples, before.num_files + 1, checksums)
        write_checked_json(self._state_file, {**after.as_state(), "total": self._total})
        self._progress, self._waiting_bytes = after, 0

    def finish(self) -> list[Path]:
        """Close the last file; move all to where they belong, in place of those of before, and return them."""
        self.keep()
        made = sorted(self.folder.parts.glob("*.safetensors"))
        for modality in self.num_samples:
            for path in self.folder.path.glob(f"{modality}-{self.split}-[0-9][0-9][0-9][0-9][0-9].safetensors"):
                path.unlink()
        for path in made:
            os.replace(path, self.folder.path / path.name)
        self.folder.finish()
        return [self.folder.path / path.name for path in made]


@dataclass
class _Progress:
    """How far the files are; in one object, because an interruption may come between any two statements.

    Attributes:
        num_batches: Batches in finished files.
        num_samples: Samples of each modality in finished files.
        num_files: Finished files of each modality.
        checksums: SHA-256 of each finished file.
        waiting: Rows of complete batches that are in no file yet.
    """

    num_batches: int = 0
    num_samples: dict[str, int] = field(default_factory=dict)
    num_files: int = 0
    checksums: dict[str, str] = field(default_factory=dict)
    waiting: list[dict[str, dict[str, Tensor]]] = field(default_factory=list)

    def as_state(self) -> dict[str, Any]:
        """What of it is written down."""
        return {name: getattr(self, name) for name in _STATE}


def _padded(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors (B, K, ...) with zeros, or False, up to the largest K."""
    largest = max(tensor.shape[1] for tensor in tensors)
    return [F.pad(tensor, (*(0, 0) * (tensor.ndim - 2), 0, largest - tensor.shape[1])) for tensor in tensors]


def write_latents(
    model: UniteModule,
    datamodule: LightningDataModule,
    split: Split,
    job: Job,
    seed: int = 0,
    modality: str | None = None,
    part_bytes: int = PART_BYTES,
) -> None:
    """Write the latents of all samples of a split.

    Each process encodes a share of the batches, and the first one writes; what :class:`LatentFiles` has already is
    passed over.

    Args:
        model: The model, on its device.
        datamodule: Gives the batches ``{modality: samples}`` of the split.
        split: Which split.
        job: Where to, and the processes that share the work.
        seed: Of the registers' noise.
        modality: Write latents of this one only; None for all.
        part_bytes: Size from which on a file is closed.

    Raises:
        UserError: The datamodule cannot give the split in order, or it has nothing of the modality.
    """
    processes = job.processes
    with job.kept_on_interrupt(), model.evaluation():
        with processes.agreed():
            loader = split_loader(datamodule, split)
            total = len(loader) if isinstance(loader, Sized) else None
        files = processes.from_first(lambda: LatentFiles(job.folder, split, total, part_bytes))
        seed = processes.from_first(lambda: seed)
        first = files.num_batches
        batches = every_nth(loader, first + processes.rank, processes.size)
        with job.progress(desc="encode", total=total, initial=first, unit="batch") as bar:

            def take(batch: dict[str, dict[str, Tensor]]) -> None:
                for name, rows in batch.items():
                    files.add(name, rows)
                files.end_batch()
                bar.update()

            try:
                processes.share(_encoded(model, batches, modality, seed, job), take)
            except (KeyboardInterrupt, LostProcessError):
                if processes.is_first:
                    files.keep()
                raise
        if not processes.is_first:
            return
        files.keep()
        if not files.num_samples:
            raise UserError(f"{split} of the data has no {modality or 'samples'}; see --modality and --split")
        written = files.finish()
    for name, num_samples in files.num_samples.items():
        print(f"{name}: latents of {num_samples:,} samples of {split}")
    for path in written:
        print(f"wrote {shown(path)}")


def _encoded(
    model: UniteModule, batches: Iterator[tuple[int, dict[str, Any]]], modality: str | None, seed: int, job: Job
) -> Iterator[dict[str, dict[str, Tensor]]]:
    """Latents and further values of numbered batches, by modality; of one modality only, or of all."""
    for number, batch in batches:
        with job.autocast():
            rows = {
                name: _rows(model, name, move_data_to_device(samples, model.device), seed, number)
                for name, samples in batch.items()
                if modality in (None, name)
            }
        yield rows


def _rows(model: UniteModule, modality: str, samples: Any, seed: int, number: int) -> dict[str, Tensor]:
    adapter = model.adapter(modality)
    template = adapter.template(adapter.prepare(samples))
    mask = adapter.registers(template).mask
    latents = encode(model, modality, samples, seed, number).float()
    rows = {"latents": latents if mask is None else latents * mask[..., None]}
    if mask is not None:
        rows["mask"] = mask
    if template.condition is not None and adapter.num_classes:
        rows["label"] = template.condition
    return {**rows, **adapter.annotations(samples)}
