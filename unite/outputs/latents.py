"""``unite predict`` and ``unite reconstruct``: a split of the data through the tokenizer, and back."""

import hashlib
import os
from collections.abc import Callable, Sized
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from unite.console import info, shown
from unite.engine.seeding import mixed_generator
from unite.errors import UserError
from unite.files import file_checksum, write_json, write_whole
from unite.files.checked_json import DamagedFileError, read_checked_json, write_checked_json
from unite.modalities.combined import datamodule_of
from unite.module import UniteModule
from unite.outputs.folder import OutputFolder
from unite.runs.headlines import as_short_table

Split = Literal["train", "val", "test"]
Autocast = Callable[[], AbstractContextManager[Any]]

#: A file of latents is closed once it is larger than this, in bytes.
PART_BYTES = 128 << 20
#: Pairs in the picture of reconstructions, and pairs beside each other.
MAX_PAIRS = 32


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

    Args:
        folder: Where the files go; in the making they lie among its parts.
        split: Split that the samples are of.
        part_bytes: Size from which on a file is closed.

    Raises:
        UserError: What an interrupted command has left is damaged.
    """

    def __init__(self, folder: OutputFolder, split: Split, part_bytes: int = PART_BYTES) -> None:
        self.folder = folder
        self.split = split
        self.part_bytes = part_bytes
        self._state_file = folder.parts / "state.json"
        state = self._read_state()
        self.num_batches: int = state.get("num_batches", 0)
        """Batches that are in finished files."""
        self.num_samples: dict[str, int] = state.get("num_samples", {})
        """Samples of each modality, the waiting ones included."""
        self._num_files: int = state.get("num_files", 0)
        self._total: int | None = state.get("total")
        self._checksums: dict[str, str] = state.get("checksums", {})  # SHA-256 of each finished file
        self._num_complete = self.num_batches
        self._is_within_batch = False
        self._waiting: dict[str, list[dict[str, Tensor]]] = {}
        self._waiting_bytes = 0

    def _read_state(self) -> dict[str, Any]:
        if not self._state_file.is_file():
            return {}
        try:
            return read_checked_json(self._state_file)
        except DamagedFileError as error:
            raise UserError(
                f"{self._state_file} is damaged ({error}); remove {shown(self.folder.parts)}, and the same command "
                "starts over"
            ) from error

    def begin(self, total: int | None) -> None:
        """Say of how many batches the split is; files that were made of another number are thrown away.

        Raises:
            UserError: A finished file is missing, or not as it was written.
        """
        if self.num_batches and total != self._total:
            info(f"the split is now of {total} batches, and was of {self._total}: starting over")
            for path in self.folder.parts.glob("*.safetensors"):
                path.unlink()
            self._state_file.unlink()
            self.num_batches, self.num_samples, self._num_files, self._checksums = 0, {}, 0, {}
        self._total = total
        for name, checksum in self._checksums.items():
            path = self.folder.parts / name
            if not path.is_file() or file_checksum(path) != checksum:
                raise UserError(
                    f"{path} is missing or damaged; remove {shown(self.folder.parts)}, and the same command starts over"
                )

    def add(self, modality: str, rows: dict[str, Tensor]) -> None:
        """Add the samples of a batch: tensors of shape (B, ...) by name, without ``index``."""
        self._is_within_batch = True
        first = self.num_samples.get(modality, 0)
        size = len(rows["latents"])
        self.num_samples[modality] = first + size
        rows = {"index": torch.arange(first, first + size), **{name: value.cpu() for name, value in rows.items()}}
        self._waiting.setdefault(modality, []).append(rows)
        self._waiting_bytes += rows["latents"].nbytes

    def end_batch(self, number: int) -> None:
        """Note that batch ``number`` is complete; close the files if they are large enough."""
        self._num_complete = number + 1
        self._is_within_batch = False
        if self._waiting_bytes >= self.part_bytes:
            self._close()

    def keep(self) -> None:
        """Close the files however small they are, unless a batch is only half in them."""
        if self._waiting and not self._is_within_batch:
            self._close()

    def _close(self) -> None:
        for modality, batches in self._waiting.items():
            columns = {name: [batch[name] for batch in batches] for name in batches[0]}
            columns |= {name: _padded(columns[name]) for name in ("latents", "mask") if name in columns}
            tensors = {name: torch.cat(column) for name, column in columns.items()}
            name = f"{modality}-{self.split}-{self._num_files:05d}.safetensors"
            content = save(tensors, {"modality": modality, "split": self.split})
            write_whole(self.folder.parts / name, content)
            self._checksums[name] = hashlib.sha256(content).hexdigest()
        self._num_files += 1
        self._waiting, self._waiting_bytes = {}, 0
        state = {
            "num_batches": self._num_complete,
            "num_samples": self.num_samples,
            "num_files": self._num_files,
            "total": self._total,
            "checksums": self._checksums,
        }
        write_checked_json(self._state_file, state)

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


def _padded(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors (B, K, ...) with zeros, or False, up to the largest K."""
    largest = max(tensor.shape[1] for tensor in tensors)
    return [F.pad(tensor, (*(0, 0) * (tensor.ndim - 2), 0, largest - tensor.shape[1])) for tensor in tensors]


def write_latents(
    model: UniteModule,
    datamodule: LightningDataModule,
    files: LatentFiles,
    autocast: Autocast,
    seed: int = 0,
    modality: str | None = None,
    show_progress: bool = False,
) -> None:
    """Write the latents of all samples of a split.

    Args:
        model: The model, on its device.
        datamodule: Gives the batches ``{modality: samples}`` of the split.
        files: Where to, and which split; batches that it has already are passed over.
        autocast: Gives the precision of the network.
        seed: Of the registers' noise.
        modality: Write latents of this one only; None for all.
        show_progress: Show a progress bar.

    Raises:
        UserError: The datamodule cannot give the split in order, or it has nothing of the modality.
    """
    with files.folder.kept_on_interrupt(), model.evaluation():
        loader = split_loader(datamodule, files.split)
        total = len(loader) if isinstance(loader, Sized) else None
        files.begin(total)
        try:
            for number, batch in enumerate(
                tqdm(loader, desc="encode", total=total, unit="batch", disable=not show_progress)
            ):
                if number < files.num_batches:
                    continue
                for name, samples in batch.items():
                    if modality in (None, name):
                        with autocast():
                            rows = _rows(model, name, move_data_to_device(samples, model.device), seed, number)
                        files.add(name, rows)
                files.end_batch(number)
        except KeyboardInterrupt:
            files.keep()
            raise
        if not files.num_samples:
            raise UserError(f"{files.split} of the data has no {modality or 'samples'}; see --modality and --split")
        written = files.finish()
    for name, num_samples in files.num_samples.items():
        print(f"{name}: latents of {num_samples:,} samples of {files.split}")
    for path in written:
        print(f"wrote {shown(path)}")


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


def limit_batches(datamodule: LightningDataModule, num_samples: int) -> None:
    """Choose the size of evaluation batches so that, as far as may be, whole batches make up ``num_samples``."""
    size = getattr(datamodule, "eval_batch_size", None)
    if isinstance(size, int):
        num_batches = -(-num_samples // size)
        datamodule.eval_batch_size = -(-num_samples // num_batches)  # type: ignore[attr-defined]


@torch.no_grad()
def write_reconstructions(
    model: UniteModule,
    datamodule: LightningDataModule,
    split: Split,
    modality: str,
    num_samples: int,
    folder: OutputFolder,
    autocast: Autocast,
    seed: int = 0,
    show_progress: bool = False,
) -> None:
    """Write samples, what the decoder makes of their latents, a picture of both, and metrics.json.

    Nothing is kept of an interrupted call: it takes seconds, unless very many samples are asked for.

    Args:
        model: The model, on its device.
        datamodule: Gives the batches ``{modality: samples}``, and the references of metrics.
        split: The split; as many of its batches are taken as are needed for ``num_samples``.
        modality: What to reconstruct.
        num_samples: How many samples to write. The metrics are of whole batches.
        folder: Where to.
        autocast: Gives the precision of the network.
        seed: Of the registers' noise.
        show_progress: Show a progress bar.

    Raises:
        UserError: The batches do not have the modality, or the datamodule cannot give the split in order.
    """
    adapter = model.adapter(modality)
    originals: list[Any] = []
    made: list[Any] = []
    with folder.kept_on_interrupt(), model.evaluation():
        loader = split_loader(datamodule, split)
        metric = adapter.reconstruction_metric(datamodule_of(datamodule, modality))
        if metric is not None:
            metric.to(model.device)
        with tqdm(total=num_samples, desc="reconstruct", unit="sample", disable=not show_progress) as bar:
            for number, batch in enumerate(loader):
                if modality not in batch:
                    if made:  # another modality has more batches
                        continue
                    raise UserError(f"the data has no {modality}; it has {', '.join(batch)}: see --modality")
                with autocast():
                    samples = move_data_to_device(batch[modality], model.device)
                    prepared = adapter.prepare(samples)
                    template = adapter.template(prepared)
                    prediction = adapter.decode(encode(model, modality, samples, seed, number), template)
                originals += adapter.originals(prepared)
                made += adapter.finish(prediction, template)
                if metric is not None:
                    metric.update(*adapter.metric_arguments(prediction, prepared))
                bar.update(min(len(template), num_samples - bar.n))
                if len(made) >= num_samples:
                    break
        originals, made = originals[:num_samples], made[:num_samples]
        if len(made) < num_samples:
            info(f"{split} has {len(made):,} samples, fewer than the {num_samples:,} asked for: all are taken")
        written: list[Path] = []
        for name, objects in (("originals", originals), ("reconstructions", made)):
            if objects:
                (folder.path / name).mkdir(exist_ok=True)
                written += adapter.save(objects, folder.path / name)
        written.append(folder.path / "reconstructions.png")
        adapter.draw_reconstructions(originals[:MAX_PAIRS], made[:MAX_PAIRS]).save(written[-1])
        if metric is not None:
            values = {name: float(value) for name, value in metric.compute().items()}
            print(as_short_table(values))
            written.append(write_json(folder.path / "metrics.json", values))
    folder.finish()
    for path in written:
        print(f"wrote {shown(path)}")
