"""The page of runs: metrics, curves, samples, reconstructions, alignment, settings; several runs side by side."""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unite.console import shown
from unite.files import newest, read_json
from unite.modalities.gallery import Gallery
from unite.report.curves import curves
from unite.report.elements import Html, element, section, table
from unite.report.metrics import STAGES, metrics_tables, parts_of
from unite.report.page import Page
from unite.report.settings import settings_parts
from unite.runs.definitions import MISSING
from unite.runs.metrics_table import read_metrics_table

MAX_PICTURE_BYTES = 1_000_000
"""Larger pictures are left out of a page."""


@dataclass
class Results:
    """What ``unite sample`` or ``unite reconstruct`` has left of one modality.

    Attributes:
        folder: Where.
        gallery: What the adapter shows of it; None for the pictures alone.
    """

    folder: Path
    gallery: Gallery | None


@dataclass
class Run:
    """A run, as a page shows it.

    Attributes:
        name: How the page calls it.
        folder: Where it lies.
        facts: What it is, in words: by name.
        metrics: ``stage/modality/metric``, of validation and test.
        samples: By modality.
        reconstructions: By modality.
    """

    name: str
    folder: Path
    facts: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    samples: dict[str, Results] = field(default_factory=dict)
    reconstructions: dict[str, Results] = field(default_factory=dict)


def page_of_runs(runs: Sequence[Run]) -> Page:
    """The page of one run, or of several side by side."""
    page = Page(", ".join(run.name for run in runs), _subtitle(runs))
    modalities = list(dict.fromkeys(name for run in runs for name in [*run.samples, *run.reconstructions]))
    page.add(*_metrics(runs), *_curves(runs))
    for modality in modalities:
        of = f" of {modality}" if len(modalities) > 1 else ""
        samples = {run.name: run.samples[modality] for run in runs if modality in run.samples}
        page.add(*_results(page, f"Samples{of}", samples, LEAD_OF_SAMPLES))
        made = {run.name: run.reconstructions[modality] for run in runs if modality in run.reconstructions}
        page.add(*_results(page, f"Reconstructions{of}", made, LEAD_OF_RECONSTRUCTIONS))
    page.add(*_last_pictures(runs), *_alignment(runs), *_settings(runs))
    return page


LEAD_OF_SAMPLES = "Made by unite sample. Click one to see it in full; what is in space turns when it is dragged."
LEAD_OF_RECONSTRUCTIONS = "Real samples through the tokenizer and back, made by unite reconstruct."


def _subtitle(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs side by side"
    return f"run in {shown(runs[0].folder)}"


# ---------------------------------------------------------------------- numbers


def _metrics(runs: Sequence[Run]) -> Iterator[Html]:
    """Metrics of each run; of a single one by stage."""
    parts: list[Html] = []
    facts = list(dict.fromkeys(name for run in runs for name in run.facts))
    if facts:
        rows = [[name, *[run.facts.get(name, MISSING) for run in runs]] for name in facts]
        if len(runs) == 1:
            told = [element("div", element("dt", name), element("dd", value)) for name, value in rows]
            yield section("Run", element("dl", *told, class_="facts"))
        else:
            yield section("Runs", table(["", *[run.name for run in runs]], rows))
    columns = {run.name: all_metrics(run) for run in runs}
    if len(runs) == 1:
        columns = by_stage(columns[runs[0].name])
    if any(columns.values()):
        parts += metrics_tables(columns)
        yield section("Metrics", *parts)


def all_metrics(run: Run) -> dict[str, float]:
    """Metrics of the run's evaluations, and of its samples and reconstructions."""
    metrics = dict(run.metrics)
    for kind, results in (("samples", run.samples), ("reconstructions", run.reconstructions)):
        for modality, result in results.items():
            for name, value in _json(result.folder / "metrics.json", {}).items():
                metrics[f"{kind}/{modality}/{name}"] = math.nan if value is None else float(value)
    return metrics


def by_stage(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Columns ``validation``, ``test`` and so on of ``any/modality/metric``."""
    columns: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        parts = parts_of(name)
        if parts.stage:
            columns.setdefault(STAGES[parts.stage], {})["/".join(("any", parts.modality, parts.metric))] = value
    return {title: columns[title] for title in STAGES.values() if title in columns}


def _curves(runs: Sequence[Run]) -> Iterator[Html]:
    rows = {run.name: read_metrics_table(run.folder) for run in runs}
    if parts := curves(rows):
        yield section("Curves", *parts, lead="Over optimizer steps. Point at a dot to read its value.")


# ---------------------------------------------------------------------- samples


def _results(page: Page, title: str, results: Mapping[str, Results], lead: str) -> Iterator[Html]:
    """Galleries of several runs in one place; pictures of those that have none."""
    if not results:
        return
    galleries = {name: result.gallery for name, result in results.items() if result.gallery is not None}
    parts: list[Html] = []
    for name, result in results.items():
        parts += _asked(name if len(results) > 1 else "", result.folder)
        parts += _sweep(name if len(results) > 1 else "", _json(result.folder / "sweep.json", []))
    if galleries:
        parts.append(page.gallery(galleries))
    for name, result in results.items():
        files = ["film_strip.png"] if name in galleries else ["grid.png", "reconstructions.png", "film_strip.png"]
        words = {file: file.removesuffix(".png").replace("_", " ") for file in files}
        parts += [_picture(result.folder / file, f"{name}: {words[file]}") for file in files]
    if any(parts):
        yield section(title, *parts, lead=lead)


def _asked(name: str, folder: Path) -> list[Html]:
    """What the samples of a folder were asked to be, and how many were drawn for those that are kept."""
    asked = _json(folder / "conditions.json", {})
    told = [f"{key} = {value:g}" for key, value in asked.get("targets", {}).items()]
    if "composition" in asked:
        told.append(f"composition {asked['composition']}")
    told += [f"“{prompt}”" for prompt in asked.get("prompt", ())]
    if sizes := asked.get("sizes"):
        told.append(f"sizes {', '.join(map(str, sizes))}")
    if "fix" in asked:
        atoms = ", ".join(map(str, asked.get("fix_atoms", []))) or "all"
        told.append(f"atoms of {Path(asked['fix']).name} kept: {atoms}")
    if "guidance_scale" in asked:
        told.append(f"guidance scale {asked['guidance_scale']:g}")
    if only := _json(folder / "only.json", {}):
        told.append(f"only {only['only']} ones: {only['num_accepted']:,} of {only['num_drawn']:,} drawn were")
    return [element("p", f"{name + ': ' if name else ''}Asked for: {'; '.join(told)}.")] if told else []


def _sweep(name: str, rows: Sequence[Mapping[str, float]]) -> list[Html]:
    """Metrics of each guidance scale; the samples below are of the best."""
    if not rows:
        return []
    names = [key for key in rows[0] if key != "guidance_scale"]
    fid = next((key for key in names if key.startswith("fid")), names[0])
    best = min(rows, key=lambda row: row[fid] if row[fid] is not None else float("inf"))
    body = [
        [f"{row['guidance_scale']:g}" + (" (shown)" if row is best else ""), *[_number(row[key]) for key in names]]
        for row in rows
    ]
    title = element("h3", f"Guidance scales{f' of {name}' if name else ''}")
    return [title, table(["scale", *[key.replace("_", " ") for key in names]], body)]


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4g}"


def _picture(file: Path, words: str) -> Html:
    """A picture as a part of the page; nothing if there is none, or it is too large."""
    if not file.is_file() or file.stat().st_size > MAX_PICTURE_BYTES:
        return Html()
    content = base64.b64encode(file.read_bytes()).decode()
    picture = element("img", src=f"data:image/png;base64,{content}", alt=words, loading="lazy")
    return element("figure", element("figcaption", words), picture, class_="picture")


def _last_pictures(runs: Sequence[Run]) -> Iterator[Html]:
    """Pictures of the last validation, of runs that have not been sampled."""
    for run in runs:
        if run.samples or run.reconstructions:
            continue
        files = [newest(run.folder / "pictures", f"*{kind}*.png") for kind in ("samples", "reconstructions")]
        pictures = [_picture(file, file.stem.replace("_", " ")) for file in files if file is not None]
        if any(pictures):
            lead = f"unite sample {run.name} -n 1000 and unite reconstruct {run.name} add what can be clicked."
            yield section(f"Last validation of {run.name}", *pictures, lead=lead)


# ---------------------------------------------------------------------- alignment and settings


def _alignment(runs: Sequence[Run]) -> Iterator[Html]:
    """Figures of ``unite align`` and ``unite latents``."""
    pictures = []
    for run in runs:
        results = [*run.folder.glob("*/align.json"), *run.folder.glob("*/latents.json")]
        for folder in sorted({file.parent for file in results}):
            files = sorted(folder.glob("*.png"))
            pictures += [_picture(file, f"{run.name}: {file.stem.replace('_', ' ')}") for file in files]
    if any(pictures):
        lead = "Do tokenizing and denoising agree? Compare with the controls: untrained networks have a high CKA, too."
        yield section("Representation", element("div", *pictures, class_="figures"), lead=lead)


def _settings(runs: Sequence[Run]) -> Iterator[Html]:
    files = {run.name: run.folder / "config.yaml" for run in runs}
    configs = {name: file.read_text(encoding="utf-8") for name, file in files.items() if file.is_file()}
    if configs:
        yield section("Settings", *settings_parts(configs))


def _json(file: Path, otherwise: Any) -> Any:
    """What a JSON file holds, if it is there, whole, and of the kind expected."""
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return otherwise
    return found if isinstance(found, type(otherwise)) else otherwise
