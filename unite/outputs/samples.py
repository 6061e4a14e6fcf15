"""``unite sample``: what generation writes, and how an interrupted one goes on."""

import hashlib
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor
from torchmetrics import Metric

from unite.console import info, shown
from unite.engine.noise import SampleNoise
from unite.errors import UserError
from unite.files import write_json
from unite.flow import SamplingOptions
from unite.modalities.base import ModalityAdapter
from unite.modalities.combined import datamodule_of
from unite.modalities.pictures import SCREEN_WIDTH, draw_table, shown_of, with_note
from unite.module import UniteModule
from unite.outputs.folder import OutputFolder
from unite.runs.headlines import as_short_table
from unite.runs.kept_latents import KeptLatents

MAX_DRAWN = 64
FILM_FRAMES = 12


@dataclass(frozen=True, kw_only=True)
class SampleSettings(SamplingOptions):
    """What determines the samples of a model; see :meth:`unite.UniteModule.generate`."""

    modality: str
    num_samples: int
    labels: list[int] | None
    batch_size: int
    seed: int


@runtime_checkable
class Cautious(Protocol):
    """A metric that knows when its numbers are not to be trusted."""

    def caution(self) -> str | None:
        """What to know of the numbers, in one line; None if there is nothing."""


def write_samples(
    model: UniteModule,
    datamodule: LightningDataModule | None,
    settings: SampleSettings,
    folder: OutputFolder,
    autocast: Callable[[], AbstractContextManager[Any]],
    guidance_sweep: list[float] | None = None,
    film_strip: int = 0,
    show_progress: bool = False,
) -> None:
    """Generate samples; write them with a picture, their labels, and metrics.json.

    Args:
        model: The model, on its device.
        datamodule: The data that novelty and the like are measured against.
        settings: What to generate.
        folder: Where to.
        autocast: Gives the precision of the network.
        guidance_sweep: Scales to choose from by FID, in place of the one in ``settings``.
        film_strip: Samples, from the first, whose coming into being is drawn as well.
        show_progress: Show a progress bar.

    Raises:
        UserError: A setting is outside its range, or a sweep has no FID to go by.
    """
    adapter = model.adapter(settings.modality)

    def generate(scale: float) -> list[Any]:
        with autocast():
            return model.generate(
                **{**asdict(settings), "guidance_scale": scale},
                show_progress=show_progress,
                kept=KeptLatents(folder.parts / f"guidance_{scale:g}"),
            )

    written: list[Path] = []
    with folder.kept_on_interrupt():
        adapter.cycle_labels(settings.num_samples, settings.labels)  # refuses labels that there are not
        metric = _metric(adapter, datamodule, settings, guidance_sweep)
        if metric is not None:
            metric.to(model.device)
        scale = settings.guidance_scale
        if guidance_sweep and metric is not None:
            rows, scale, objects = _sweep(guidance_sweep, generate, metric)
            values = next(row for row in rows if row["guidance_scale"] == scale)
            written.append(write_json(folder.path / "sweep.json", rows))
        else:
            objects = generate(scale)
            values = {} if metric is None else measure(metric, objects)
        written += adapter.save(objects, folder.path)
        labels = adapter.drawn_labels(settings.num_samples, settings.labels, settings.seed)
        if labels is not None:
            classes = {"class_names": adapter.class_names, "labels": labels}
            written.append(write_json(folder.path / "labels.json", classes))
        if film_strip:
            with autocast():
                strip = draw_film_strip(model, settings, scale, min(film_strip, settings.num_samples))
            written.append(folder.path / "film_strip.png")
            strip.save(written[-1])
        drawn = objects[:MAX_DRAWN]
        pictures = {"grid.png": adapter.draw_samples(drawn, labels), "grid_3d.png": adapter.draw_in_space(drawn)}
        for name, picture in pictures.items():
            if picture is not None:
                note = shown_of(len(drawn), len(objects))
                (picture if len(drawn) == len(objects) else with_note(picture, note)).save(folder.path / name)
                written.append(folder.path / name)
        if metric is not None:
            print(as_short_table(values))
            caution = metric.caution() if isinstance(metric, Cautious) else None
            if caution is not None:
                warnings.warn(caution, stacklevel=1)
            written.append(write_json(folder.path / "metrics.json", values))
    folder.finish()
    for path in written:
        print(f"wrote {shown(path)}")


def _metric(
    adapter: ModalityAdapter,
    datamodule: LightningDataModule | None,
    settings: SampleSettings,
    guidance_sweep: list[float] | None,
) -> Metric | None:
    """The adapter's metric, as far as the settings and the data at hand allow one.

    Raises:
        UserError: A sweep is asked for, but there is no metric, or not of all classes.
    """
    metric = None
    if settings.labels:
        if guidance_sweep:
            raise UserError("--guidance_sweep compares scales by FID, which needs all classes: leave out --labels")
        info("no metrics: they compare with all classes, and only some were asked for")
    else:
        try:
            metric = adapter.generation_metric(datamodule_of(datamodule, settings.modality))
        except UserError as error:
            print(f"unite: no comparison with the training data: {error}", file=sys.stderr)
            metric = adapter.generation_metric(None)
    if guidance_sweep and metric is None:
        raise UserError("--guidance_sweep compares scales by FID, and this modality has no metrics")
    return metric


def measure(metric: Metric, objects: list[Any]) -> dict[str, float]:
    """Metrics of finished objects by name."""
    metric.reset()
    metric.update(objects)
    return {name: float(value) for name, value in metric.compute().items()}


def _sweep(
    scales: list[float], generate: Callable[[float], list[Any]], metric: Metric
) -> tuple[list[dict[str, float]], float, list[Any]]:
    """Metrics of all guidance scales, the scale of the lowest FID, and the samples made with it.

    Raises:
        UserError: No metric is a FID.
    """
    rows: list[dict[str, float]] = []
    best: tuple[float, float, list[Any]] | None = None
    for scale in scales:
        objects = generate(scale)
        values = measure(metric, objects)
        fid = next((name for name in values if name.startswith("fid")), None)
        if fid is None:
            raise UserError("--guidance_sweep compares scales by FID, and this modality has none")
        print(f"guidance_scale {scale:g}: {fid} {values[fid]:.4g}")
        rows.append({"guidance_scale": scale, **values})
        if best is None or values[fid] < best[0]:
            best = values[fid], scale, objects
    assert best is not None  # there is at least one scale
    print(f"best: guidance_scale {best[1]:g}")
    return rows, best[1], best[2]


@torch.no_grad()
def draw_film_strip(model: UniteModule, settings: SampleSettings, guidance_scale: float, num_rows: int) -> Image.Image:
    """Samples on their way from noise to data: in each row the clean sample as it is predicted at rising times.

    They are the first of the samples. Twelve times are shown at most, and no more than fit on a screen, evenly spread;
    the last column is the finished sample.

    Args:
        model: The model, on its device.
        settings: How to generate.
        guidance_scale: Classifier-free guidance, in place of the one in ``settings``.
        num_rows: Samples to show.
    """
    adapter = model.adapter(settings.modality)
    generator = torch.Generator().manual_seed(settings.seed)
    template = adapter.draw_template(num_rows, settings.labels, generator).to(model.device)
    predictions: dict[float, Tensor] = {}
    with model.evaluation():
        latents = model.sample_latents(
            adapter,
            template,
            SampleNoise(settings.seed, torch.arange(num_rows)),
            settings.but(guidance_scale=guidance_scale),
            on_prediction=lambda time, prediction: predictions.update({time: prediction}),
        )
        finished = adapter.finish(adapter.decode(latents, template), template)
        num_frames = min(FILM_FRAMES, max(SCREEN_WIDTH // adapter.draw(finished[:1]).width, 2))
        times = sorted(time for time in predictions if time < 1)
        places = torch.linspace(0, len(times) - 1, min(num_frames - 1, len(times))).round().int().tolist()
        frames = [(times[place], predictions[times[place]]) for place in places]
        columns = [(time, adapter.finish(adapter.decode(state, template), template)) for time, state in frames]
    columns.append((1.0, finished))
    cells = [[adapter.draw([objects[row]]) for _, objects in columns] for row in range(num_rows)]
    return draw_table(cells, [f"t = {time:.2f}" for time, _ in columns])


def fingerprint(model: UniteModule) -> str:
    """Short name of a model's weights, by which a continued command knows that they are the same."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
