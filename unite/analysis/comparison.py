"""Runs side by side: the table, and the figure."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unite.runs.definitions import MISSING, definition
from unite.runs.headlines import headlines, rank_of

RECONSTRUCTION = r"match_rate.*|rmsd.*|psnr|lpips|rfid.*"
"""Those of reconstructions; the other headlines are of generated samples."""


@dataclass
class RunSummary:
    """Figures of a run, from its folder.

    Attributes:
        name: How tables call it.
        modalities: Names of the model's modalities.
        metrics: Metrics as ``stage/modality/metric``.
        steps: Optimizer steps of last.ckpt.
        epochs: Epochs that were begun.
        seconds: Training time with validations, without pauses between continued runs; None where no events are.
        parameters: Trainable parameters of ``encoder``, ``denoiser`` (a separate one), and each adapter; ``total``.
        alignment: For each modality with an align.json: late-layer CKA of the trained network and of its controls.
        compression: Description length of the trained encoder (and denoiser) by part, in MB.
    """

    name: str
    modalities: list[str]
    metrics: dict[str, float]
    steps: int
    epochs: int
    seconds: float | None
    parameters: dict[str, int]
    alignment: dict[str, dict[str, float]] = field(default_factory=dict)
    compression: dict[str, float] = field(default_factory=dict)


# ---------------------------------------------------------------------- tables


def comparison(runs: Sequence[RunSummary]) -> dict[str, list[list[str]]]:
    """Tables by title: one row per quantity, one column per run, and the names of the runs as first row."""
    header = ["", *[summary.name for summary in runs]]
    all_metrics = list(dict.fromkeys(name for summary in runs for name in summary.metrics))
    groups: dict[str, list[str]] = {"## Reconstruction": [], "## Generation": [], "## Other metrics": []}
    for name in headlines(all_metrics):
        metric = name.rpartition("/")[2]
        is_reconstruction = re.fullmatch(RECONSTRUCTION, metric)
        group = "Other metrics" if rank_of(metric) is None else "Reconstruction" if is_reconstruction else "Generation"
        groups[f"## {group}"].append(name)

    def rows(names: Sequence[str], values: Callable[[RunSummary], Mapping[str, float]]) -> list[list[str]]:
        return [[_with_unit(name), *[_number(values(summary).get(name)) for summary in runs]] for name in names]

    def alignment(summary: RunSummary) -> Mapping[str, float]:
        return {
            f"{modality}, {pairing}": value
            for modality, pairings in summary.alignment.items()
            for pairing, value in pairings.items()
        }

    def keys(values: Callable[[RunSummary], Mapping[str, float]]) -> list[str]:
        return list(dict.fromkeys(name for summary in runs for name in values(summary)))

    training = [
        ["modalities", *[", ".join(summary.modalities) for summary in runs]],
        ["steps", *[f"{summary.steps:,}" for summary in runs]],
        ["epochs", *[f"{summary.epochs:,}" for summary in runs]],
        ["training time", *[_duration(summary.seconds) for summary in runs]],
        *[
            [f"parameters, {part}", *[_count(summary.parameters.get(part)) for summary in runs]]
            for part in sorted(keys(lambda summary: summary.parameters), key="total".__eq__)  # the total last
        ],
    ]
    tables = {
        "## Training": training,
        **{title: rows(names, lambda summary: summary.metrics) for title, names in groups.items()},
        "## Alignment of the two passes (linear CKA behind the last block)": rows(keys(alignment), alignment),
        "## Compression (description length of the trained weights, MB)": rows(
            keys(lambda summary: summary.compression), lambda summary: summary.compression
        ),
    }
    return {title: [header, *table] for title, table in tables.items() if table}


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with its columns aligned; the first row is the header."""
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(rows[0]))]

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))} |"

    rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])


def _with_unit(metric: str) -> str:
    unit = definition(metric).unit
    return f"{metric} / {unit}" if unit else metric


def _number(value: float | None) -> str:
    return MISSING if value is None or math.isnan(value) else f"{value:.4g}"


def _count(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


# ---------------------------------------------------------------------- figure


def draw_comparison(runs: Sequence[RunSummary], path: Path) -> None:
    """One panel per quantity, one bar per run; a dash where a run has no such quantity."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown_metrics = headlines(list(dict.fromkeys(name for summary in runs for name in summary.metrics)))
    panels: dict[str, list[float | None]] = {
        _with_unit(name): [summary.metrics.get(name) for summary in runs] for name in shown_metrics
    }
    for modality in dict.fromkeys(name for summary in runs for name in summary.alignment):
        values = [summary.alignment.get(modality, {}).get("trained") for summary in runs]
        panels[f"CKA of the two passes, {modality}"] = values
    if any(summary.compression for summary in runs):
        panels["description length of the weights / MB"] = [summary.compression.get("total") for summary in runs]
    panels["parameters / 1,000,000"] = [summary.parameters["total"] / 1e6 for summary in runs]
    panels["training time / min"] = [None if summary.seconds is None else summary.seconds / 60 for summary in runs]

    columns = min(4, len(panels))
    num_rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, (0.9 + 0.32 * len(runs)) * num_rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{len(runs)} runs side by side; {MISSING} where a run has no such quantity", fontsize=11)
    places = range(len(runs))
    for number, (name, values) in enumerate(panels.items()):
        axes = figure.add_subplot(num_rows, columns, number + 1)
        known = [math.nan if value is None else value for value in values]
        lengths = [value if math.isfinite(value) else 0.0 for value in known]
        axes.barh(places, lengths, color="#4477aa")
        for place, value in zip(places, known, strict=True):
            axes.annotate(_number(value), (0 if math.isnan(value) else max(value, 0), place), (3, 0),
                          textcoords="offset points", va="center", fontsize=7)  # fmt: skip
        axes.set_yticks(places, [summary.name for summary in runs] if number % columns == 0 else [], fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.25)
        if not any(lengths):  # no length to take a scale from
            axes.set_xlim(0, 1)
        axes.set_title(name, fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
