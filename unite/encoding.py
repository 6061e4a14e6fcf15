"""``unite predict`` and ``unite reconstruct``: a split of the data through the tokenizer, and back."""

import json
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

from unite.errors import UserError
from unite.messages import as_table, shown
from unite.modalities.combined import datamodule_of
from unite.module import UniteModule
from unite.output_folder import OutputFolder, write_json, write_whole
from unite.pictures import draw_table
from unite.seeding import mixed_generator

Split = Literal["train", "val", "test"]
Autocast = Callable[[], AbstractContextManager[Any]]

#: A file of latents is closed once it is larger than this, in bytes.
PART_BYTES = 128 << 20
#: Pairs in the picture of reconstructions, and pairs beside each other.
MAX_PAIRS, PAIR_COLUMNS = 32, 4


def split_loader(datamodule: LightningDataModule, split: Split) -> Any:
    """Batches with every sample of a split once, in one order, not augmented.

    Raises:
        UserError: The datamodule can give its training samples only in the way training wants them.
    """
    datamodule.prepare_data()
    if hasattr(datamodule, "predict_split"):
        datamodule.predict_split = split
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
    """

    def __init__(self, folder: OutputFolder, split: Split, part_bytes: int = PART_BYTES) -> None:
        self.folder = folder
        self.split = split
        self.part_bytes = part_bytes
        self._state_file = folder.parts / "state.json"
        state = json.loads(self._state_file.read_text()) if self._state_file.is_file() else {}
        self.num_batches: int = state.get("num_batches", 0)
        """Batches that are in finished files."""
        self.num_samples: dict[str, int] = state.get("num_samples", {})
        """Samples of each modality, the waiting ones included."""
        self._num_files: int = state.get("num_files", 0)
        self._waiting: dict[str, list[dict[str, Tensor]]] = {}
        self._waiting_bytes = 0

    def add(self, modality: str, rows: dict[str, Tensor]) -> None:
        """Add the samples of a batch: tensors of shape (B, ...) by name, without ``index``."""
        first = self.num_samples.get(modality, 0)
        size = len(rows["latents"])
        self.num_samples[modality] = first + size
        rows = {"index": torch.arange(first, first + size), **{name: value.cpu() for name, value in rows.items()}}
        self._waiting.setdefault(modality, []).append(rows)
        self._waiting_bytes += rows["latents"].nbytes

    def end_batch(self, number: int) -> None:
        """Note that batch ``number`` is complete; close the files if they are large enough."""
        if self._waiting_bytes >= self.part_bytes:
            self._close(number + 1)

    def _close(self, num_batches: int) -> None:
        for modality, batches in self._waiting.items():
            columns = {name: [batch[name] for batch in batches] for name in batches[0]}
            columns |= {name: _padded(columns[name]) for name in ("latents", "mask") if name in columns}
            tensors = {name: torch.cat(column) for name, column in columns.items()}
            name = f"{modality}-{self.split}-{self._num_files:05d}.safetensors"
            write_whole(self.folder.parts / name, save(tensors, {"modality": modality, "split": self.split}))
        self._num_files += 1
        self._waiting, self._waiting_bytes = {}, 0
        state = {"num_batches": num_batches, "num_samples": self.num_samples, "num_files": self._num_files}
        write_json(self._state_file, state)

    def finish(self, num_batches: int) -> list[Path]:
        """Close the last file; move all to where they belong, and return them."""
        if self._waiting:
            self._close(num_batches)
        made = sorted(self.folder.parts.glob("*.safetensors"))
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
    loader: Any,
    files: LatentFiles,
    autocast: Autocast,
    seed: int = 0,
    modality: str | None = None,
    show_progress: bool = False,
) -> None:
    """Write the latents of all samples that a loader gives.

    Args:
        model: The model, on its device.
        loader: Gives batches ``{modality: samples}``.
        files: Where to; batches that it has already are passed over.
        autocast: Gives the precision of the network.
        seed: Of the registers' noise.
        modality: Write latents of this one only; None for all.
        show_progress: Show a progress bar.
    """
    total = len(loader) if isinstance(loader, Sized) else None
    number = -1
    with (
        files.folder.kept_on_interrupt(),
        model.evaluation(),
        tqdm(total=total, desc="encode", unit="batch", disable=not show_progress) as bar,
    ):
        for number, batch in enumerate(loader):
            bar.update()
            if number < files.num_batches:
                continue
            for name, samples in batch.items():
                if modality in (None, name):
                    with autocast():
                        rows = _rows(model, name, move_data_to_device(samples, model.device), seed, number)
                    files.add(name, rows)
            files.end_batch(number)
        written = files.finish(number + 1)
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
    loader: Any,
    modality: str,
    num_samples: int,
    folder: OutputFolder,
    autocast: Autocast,
    seed: int = 0,
    show_progress: bool = False,
) -> None:
    """Write samples, what the decoder makes of their latents, a picture of both, and metrics.json.

    Args:
        model: The model, on its device.
        datamodule: Where metrics find their references.
        loader: Gives batches ``{modality: samples}``; as many are taken as are needed for ``num_samples``.
        modality: What to reconstruct.
        num_samples: How many samples to write. The metrics are of whole batches.
        folder: Where to.
        autocast: Gives the precision of the network.
        seed: Of the registers' noise.
        show_progress: Show a progress bar.

    Raises:
        UserError: The batches do not have the modality.
    """
    adapter = model.adapter(modality)
    metric = adapter.reconstruction_metric(datamodule_of(datamodule, modality))
    if metric is not None:
        metric.to(model.device)
    originals: list[Any] = []
    made: list[Any] = []
    with folder.kept_on_interrupt(), model.evaluation():
        with tqdm(total=num_samples, desc="reconstruct", unit="sample", disable=not show_progress) as bar:
            for number, batch in enumerate(loader):
                if modality not in batch:
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
        written: list[Path] = []
        for name, objects in (("originals", originals), ("reconstructions", made)):
            if objects:
                (folder.path / name).mkdir(exist_ok=True)
                written += adapter.save(objects, folder.path / name)
        columns = {"original": originals, "decoded": made} if originals else {"decoded": made}
        pairs = [[adapter.draw([item]) for item in pair] for pair in zip(*columns.values(), strict=True)][:MAX_PAIRS]
        rows = [
            [cell for pair in pairs[first : first + PAIR_COLUMNS] for cell in pair]
            for first in range(0, len(pairs), PAIR_COLUMNS)
        ]
        written.append(folder.path / "reconstructions.png")
        draw_table(rows, list(columns) * min(PAIR_COLUMNS, len(pairs))).save(written[-1])
        if metric is not None:
            values = {name: float(value) for name, value in metric.compute().items()}
            print(as_table(values))
            written.append(write_json(folder.path / "metrics.json", values))
    folder.finish()
    for path in written:
        print(f"wrote {shown(path)}")
