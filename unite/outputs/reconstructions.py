"""``unite reconstruct``: samples of a split through the tokenizer and back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule
from torchmetrics import Metric

from unite.console import info
from unite.errors import UserError
from unite.files import write_json
from unite.modalities.base import ModalityAdapter
from unite.modalities.combined import datamodule_of, every_nth
from unite.module import UniteModule
from unite.outputs.job import Job
from unite.outputs.latents import Split, encode, split_loader
from unite.runs.headlines import as_short_table

#: Pairs in the picture of reconstructions.
MAX_PAIRS = 32


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
    job: Job,
    seed: int = 0,
) -> None:
    """Write samples, what the decoder makes of their latents, a picture of both, and metrics.json.

    Each process does a share of the batches and counts it in the metrics; the first one writes. Nothing is kept of an
    interrupted call: it takes seconds, unless very many samples are asked for.

    Args:
        model: The model, on its device.
        datamodule: Gives the batches ``{modality: samples}``, and the references of metrics.
        split: The split; as many of its batches are taken as are needed for ``num_samples``.
        modality: Modality to reconstruct.
        num_samples: Number of samples to write. The metrics are those of whole batches.
        job: Where to, and the processes that share the work.
        seed: Of the registers' noise.

    Raises:
        UserError: The batches do not have the modality, or the datamodule cannot give the split in order.
    """
    adapter = model.adapter(modality)
    processes = job.processes
    with job.kept_on_interrupt(), model.evaluation():
        with processes.agreed():
            loader = split_loader(datamodule, split)
            metric = adapter.reconstruction_metric(datamodule_of(datamodule, modality))
            if metric is not None:
                metric.to(model.device)
        seed = processes.from_first(lambda: seed)
        batches = _decoded(model, modality, every_nth(loader, processes.rank, processes.size), job, seed)
        originals, made = _collected(batches, num_samples, metric, job)
        values = {} if metric is None else {name: float(value) for name, value in metric.compute().items()}
        if not processes.is_first:
            return
        if len(made) < num_samples:
            info(f"{split} has {len(made):,} samples, fewer than the {num_samples:,} asked for: all are taken")
        written = _write(adapter, originals, made, job.folder.path)
        if metric is not None:
            print(as_short_table(values))
            written.append(write_json(job.folder.path / "metrics.json", values))
    job.finish(written)


def _collected(
    batches: Iterator["_Decoded"], num_samples: int, metric: Metric | None, job: Job
) -> tuple[list[Any], list[Any]]:
    """The first originals and reconstructions of all processes; each counts its whole batches in its metric."""
    processes = job.processes
    originals: list[Any] = []
    made: list[Any] = []
    num_done = 0
    with job.progress(total=num_samples, desc="reconstruct", unit="sample") as bar:
        while num_done < num_samples:
            with processes.agreed():
                batch = next(batches, None)
            sizes = processes.agree(content=0 if batch is None else len(batch.made))
            if not any(sizes):
                break
            # Of the batches made at a time, those that one process alone would make.
            is_needed = num_done + sum(sizes[: processes.rank]) < num_samples
            with processes.agreed():
                if metric is not None and batch is not None and is_needed:
                    metric.update(*batch.measured)
            for part in processes.gather(None if batch is None else (batch.originals, batch.made)):
                originals += part[0] if part is not None else []
                made += part[1] if part is not None else []
            num_done += sum(sizes)
            bar.update(min(num_done, num_samples) - bar.n)
    return originals[:num_samples], made[:num_samples]


class _Decoded(NamedTuple):
    """A batch, decoded.

    Attributes:
        originals: Samples as finished objects, or nothing.
        made: Their reconstructions.
        measured: Arguments of the metric.
    """

    originals: list[Any]
    made: list[Any]
    measured: tuple[Any, ...]


def _decoded(
    model: UniteModule, modality: str, batches: Iterator[tuple[int, dict[str, Any]]], job: Job, seed: int
) -> Iterator[_Decoded]:
    """Decode what the tokenizer makes of numbered batches, until one does not have the modality.

    Raises:
        UserError: The first batch of all does not have it.
    """
    adapter = model.adapter(modality)
    for number, batch in batches:
        if modality not in batch:
            if number == 0:
                raise UserError(f"the data has no {modality}; it has {', '.join(batch)}: see --modality")
            return  # another modality has more batches
        with job.autocast():
            samples = move_data_to_device(batch[modality], model.device)
            prepared = adapter.prepare(samples)
            template = adapter.template(prepared)
            prediction = adapter.decode(encode(model, modality, samples, seed, number), template)
        yield _Decoded(
            adapter.originals(prepared),
            adapter.finish(prediction, template),
            adapter.metric_arguments(prediction, prepared),
        )


def _write(adapter: ModalityAdapter, originals: list[Any], made: list[Any], folder: Path) -> list[Path]:
    """Write originals, if there are any, and reconstructions, with a picture of both."""
    written: list[Path] = []
    for name, objects in (("originals", originals), ("reconstructions", made)):
        if objects:
            (folder / name).mkdir(exist_ok=True)
            written += adapter.save(objects, folder / name)
    written.append(folder / "reconstructions.png")
    adapter.draw_reconstructions(originals[:MAX_PAIRS], made[:MAX_PAIRS]).save(written[-1])
    return written
