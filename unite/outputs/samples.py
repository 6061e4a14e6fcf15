"""``unite sample``: what generation writes, and how an interrupted one goes on."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor
from torchmetrics import Metric

from unite.console import info, is_first_process
from unite.engine.noise import SampleNoise
from unite.engine.selection import Selection
from unite.errors import UserError, require
from unite.files import write_json
from unite.generation import acceptance
from unite.modalities.base import ModalityAdapter, Template
from unite.modalities.combined import datamodule_of
from unite.modalities.pictures import SCREEN_WIDTH, draw_table, shown_of, with_note
from unite.module import UniteModule
from unite.outputs.collected import Batch, Collected, Finish
from unite.outputs.job import Job
from unite.outputs.settings import SampleSettings
from unite.runs.headlines import as_short_table
from unite.runs.kept_latents import KeptLatents

MAX_DRAWN = 64
FILM_FRAMES = 12


@runtime_checkable
class Cautious(Protocol):
    """A metric that knows when its numbers are not to be trusted."""

    def caution(self) -> str | None:
        """What to know of the numbers, in one line; None if there is nothing."""


def write_samples(
    model: UniteModule,
    datamodule: LightningDataModule | None,
    settings: SampleSettings,
    job: Job,
    guidance_sweep: list[float] | None = None,
    film_strip: int = 0,
) -> None:
    """Generate samples; write them with a picture, their labels, and metrics.json.

    With ``only`` the samples are drawn until there are enough, and only.json says how many that took. The metrics are
    those of the first ``num_samples`` that were drawn, the same as without it.

    Each process generates a share of them and counts it in the metrics; the first one writes.

    Args:
        model: The model, on its device.
        datamodule: The data that novelty and the like are measured against.
        settings: What to generate.
        job: Where to, and the processes that share the work.
        guidance_sweep: Scales to choose from by FID, in place of the one in ``settings``.
        film_strip: Number of samples, from the first, to draw at several times from noise to data.

    Raises:
        UserError: A setting is outside its range, or a sweep has no FID to go by.
    """
    adapter = model.adapter(settings.modality)
    written: list[Path] = []
    folder = job.folder
    with job.kept_on_interrupt():
        settings = job.processes.from_first(lambda: settings)  # a seed may be drawn by each process
        with job.processes.agreed():
            _require_possible(adapter, settings, guidance_sweep, film_strip)
            metric = _metric(adapter, datamodule, settings, guidance_sweep)
            if metric is not None:
                metric.to(model.device)
        making = _Making(model, settings, job, metric)
        scale = settings.guidance_scale
        if guidance_sweep and metric is not None:
            rows, scale, made = _sweep(guidance_sweep, making)
        else:
            made = making.samples(scale)
        objects, values = made.objects, made.values
        caution = _caution(metric)
        if not job.processes.is_first:
            return
        if guidance_sweep:
            written.append(write_json(folder.path / "sweep.json", rows))
        written += adapter.save(objects, folder.path)
        if settings.only is not None:
            info(made.selection.told())
            written.append(write_json(folder.path / "only.json", made.selection.summary()))
        if conditions := settings.but(guidance_scale=scale).conditions():
            if (part := _template(model, settings, made.selection.num_drawn).part) is not None:
                conditions["fixed_places"] = part.places[made.selection.kept].tolist()
            written.append(write_json(folder.path / "conditions.json", conditions))
        labels = adapter.drawn_labels(made.selection.num_drawn, settings.labels, settings.seed)
        if labels is not None:
            labels = [labels[index] for index in made.selection.kept]
            classes = {"class_names": adapter.class_names, "labels": labels}
            written.append(write_json(folder.path / "labels.json", classes))
        if film_strip:
            with job.autocast():
                strip = draw_film_strip(model, settings, scale, min(film_strip, settings.num_samples))
            written.append(folder.path / "film_strip.png")
            strip.save(written[-1])
        written += _write_pictures(adapter, objects, labels, folder.path)
        if metric is not None:
            print(as_short_table(values))
            if caution is not None:
                warnings.warn(caution, stacklevel=1)
            written.append(write_json(folder.path / "metrics.json", values))
    job.finish(written)


def _require_possible(
    adapter: ModalityAdapter, settings: SampleSettings, guidance_sweep: list[float] | None, film_strip: int
) -> None:
    """Refuse settings that the model, or one another, do not allow.

    Raises:
        UserError: There are such settings.
    """
    require(film_strip >= 0, f"film_strip is {film_strip}; it must be at least 0")
    require(
        not film_strip or settings.solver != "dopri5",
        f"film_strip is {film_strip}, but with dopri5 each sample has its own times: choose another --solver",
    )
    adapter.wanted_template(1, settings.wanted, torch.Generator())  # refuses what the model does not know
    for line in adapter.unusual(settings.wanted):
        info(line)
    if settings.only is not None:
        adapter.are_valid([])  # refuses where there is no word for it
        require(not guidance_sweep, "--only goes with one guidance scale: leave out --guidance_sweep")
        require(not film_strip, "--film_strip shows samples as they are drawn: leave out --only")


def _write_pictures(
    adapter: ModalityAdapter, objects: Sequence[Any], labels: list[int] | None, folder: Path
) -> list[Path]:
    """Write a picture of the first samples, and one in space for a modality that has one; returns the files."""
    written = []
    drawn = objects[:MAX_DRAWN]
    pictures = {"grid.png": adapter.draw_samples(drawn, labels), "grid_3d.png": adapter.draw_in_space(drawn)}
    for name, picture in pictures.items():
        if picture is not None:
            note = shown_of(len(drawn), len(objects))
            (picture if len(drawn) == len(objects) else with_note(picture, note)).save(folder / name)
            written.append(folder / name)
    return written


@dataclass(frozen=True)
class _Making:
    """How all processes together make samples and their metrics.

    Attributes:
        model: The model, on its device.
        settings: What to generate.
        job: Where latents are kept until all is done, and the processes.
        metric: What to measure, on the device; all processes have their own, and compute its values together.
    """

    model: UniteModule
    settings: SampleSettings
    job: Job
    metric: Metric | None

    def samples(self, scale: float) -> "_Made":
        """Samples of one guidance scale in their order, in the first process; and their metrics, in all.

        Raises:
            UserError: Only some are to be kept, and none is one of them.
        """
        settings, processes = self.settings, self.job.processes
        if self.metric is not None:
            self.metric.reset()
        selection = settings.selection()
        template = _template(self.model, settings, selection.most)
        kept = processes.from_first(lambda: KeptLatents(self.job.folder.parts / f"guidance_{scale:g}"))
        values: dict[str, Tensor] | None = None
        accepted = acceptance(self.model.adapter(settings.modality), settings.only)
        with self.job.progress(total=settings.num_samples, desc="generate", unit="sample") as bar:
            collected = Collected(selection, accepted, kept, bar)
            while drawn := processes.from_first(selection.next_draw):
                # The metrics are of the first draw, which is the same whatever is kept of it.
                finish = partial(self._finished, is_counted=values is None)
                missing = processes.from_first(partial(collected.add_kept, drawn, template, finish))
                # Each process has samples of all sizes.
                order = missing[torch.argsort(template.sizes[missing], stable=True)] if len(missing) else missing
                share = order[processes.rank :: processes.size]
                processes.share(self._batches(share, template, scale, finish), collected.add_new)
                if values is None:
                    values = {} if self.metric is None else self.metric.compute()
        objects = [collected.objects[index] for index in selection.kept] if processes.is_first else []
        return _Made(objects, {name: float(value) for name, value in (values or {}).items()}, selection)

    def _batches(self, indices: Tensor, template: Template, scale: float, finish: Finish) -> Iterator[Batch]:
        """New samples at these places, a batch at a time."""
        settings = self.settings.but(guidance_scale=scale)
        batches = self.model.generate_latents(
            settings.modality, template, indices, settings, settings.batch_size, settings.seed
        )
        while True:
            with self.job.autocast():
                found = next(batches, None)
            if found is None:
                return
            indices, part, latents = found
            yield Batch(indices, latents.cpu(), finish(latents, part))

    @torch.no_grad()
    def _finished(self, latents: Tensor, template: Template, is_counted: bool) -> list[Any]:
        """Finished objects from latents, counted in the metric or not."""
        adapter, template = self.model.adapter(self.settings.modality), template.to(self.model.device)
        with self.job.autocast(), self.model.evaluation():
            objects = adapter.finish(adapter.decode(latents.to(self.model.device), template), template)
        if self.metric is not None and is_counted:
            self.metric.update(objects)
        return objects


class _Made(NamedTuple):
    """What all processes have made.

    Attributes:
        objects: The samples that are kept, in their order; in the first process only.
        values: Metrics of the first draw.
        selection: Which samples are kept, in the first process.
    """

    objects: list[Any]
    values: dict[str, float]
    selection: Selection


def _template(model: UniteModule, settings: SampleSettings, num_samples: int) -> Template:
    """Sizes and conditions of samples, from the first, drawn as :meth:`unite.UniteModule.generate` draws them."""
    generator = torch.Generator().manual_seed(settings.seed)
    return model.adapter(settings.modality).wanted_template(num_samples, settings.wanted, generator)


def _caution(metric: Metric | None) -> str | None:
    """What to know of the numbers of all processes."""
    if isinstance(metric, Metric) and isinstance(metric, Cautious):
        with metric.sync_context():
            return metric.caution()
    return None


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
    elif any(settings.prompt or ()):
        info("no comparison with the training data, of which a prompt asks for a part")
        metric = adapter.generation_metric(None)
    else:
        try:
            metric = adapter.generation_metric(datamodule_of(datamodule, settings.modality))
        except UserError as error:
            if is_first_process():
                print(f"unite: no comparison with the training data: {error}", file=sys.stderr)
            metric = adapter.generation_metric(None)
    if guidance_sweep and metric is None:
        raise UserError("--guidance_sweep compares scales by FID, and this modality has no metrics")
    return metric


def _sweep(scales: list[float], making: _Making) -> tuple[list[dict[str, float]], float, _Made]:
    """Metrics of all guidance scales, the scale of the lowest FID, and what was made with it.

    Raises:
        UserError: No metric is a FID.
    """
    rows: list[dict[str, float]] = []
    best: tuple[float, float, _Made] | None = None
    for scale in scales:
        made = making.samples(scale)
        fid = next((name for name in made.values if name.startswith("fid")), None)
        if fid is None:
            raise UserError("--guidance_sweep compares scales by FID, and this modality has none")
        if making.job.processes.is_first:
            print(f"guidance_scale {scale:g}: {fid} {made.values[fid]:.4g}")
        rows.append({"guidance_scale": scale, **made.values})
        if best is None or made.values[fid] < best[0]:
            best = made.values[fid], scale, made
    assert best is not None  # there is at least one scale
    if making.job.processes.is_first:
        print(f"best: guidance_scale {best[1]:g}")
    return rows, best[1], best[2]


@torch.no_grad()
def draw_film_strip(model: UniteModule, settings: SampleSettings, guidance_scale: float, num_rows: int) -> Image.Image:
    """Samples on their way from noise to data: in each row the clean sample as it is predicted at rising times.

    They are the first of the samples. Twelve times are shown at most, and no more than fit on a screen, evenly spread;
    the last column is the finished sample. Of restarts, which go back in time, no more than that is shown.

    Args:
        model: The model, on its device.
        settings: How to generate.
        guidance_scale: Classifier-free guidance, in place of the one in ``settings``.
        num_rows: Samples to show.
    """
    adapter = model.adapter(settings.modality)
    template = _template(model, settings, num_rows).to(model.device)
    predictions: dict[float, Tensor] = {}

    def note(time: float, prediction: Tensor) -> None:
        if not predictions or time > max(predictions):
            predictions[time] = prediction

    with model.evaluation():
        latents = model.sample_latents(
            adapter,
            template,
            SampleNoise(settings.seed, torch.arange(num_rows)),
            settings.but(guidance_scale=guidance_scale),
            on_prediction=note,
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
