"""``unite compare RUN RUN ...``: runs side by side, of whatever modality, from what they left in their folders.

Nothing is computed again: metrics come from metrics.csv (the last validation) and metrics.json (``unite test``),
parameters and steps from last.ckpt, training time from the TensorBoard events, alignment and compression from the
align.json of ``unite align``. What a run does not have is a dash, never a zero.
"""

import argparse
import csv
import importlib.util
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from unite.errors import UserError
from unite.folders import leaving_no_empty_folders, require_writable
from unite.output_folder import write_json

TABLE_FILE = "compare.md"
VALUES_FILE = "compare.json"
FIGURE_FILE = "compare.png"

HEADLINES = (
    r"match_rate",
    r"rmsd",
    r"psnr",
    r"lpips",
    r"rfid.*",
    r"validity",
    r"uniqueness",
    r"novelty",
    r"fid.*",
    r"precision.*",
    r"recall.*",
)
"""Metrics of tables and figures, in order. A modality with none of them shows all it has; compare.json has all."""

UNITS = {"rmsd": "Å", "psnr": "dB"}
"""Units of metrics that have one."""

RECONSTRUCTION = r"match_rate.*|rmsd.*|psnr|lpips|rfid.*"
"""Those of reconstructions; the other headlines are of generated samples."""

MISSING = "–"  # noqa: RUF001  (a dash of tables)


@dataclass
class RunSummary:
    """What a run folder says of its run.

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


def run(args: list[str]) -> None:
    """Compare the runs that the arguments name; writes compare.md, compare.json and compare.png.

    Args:
        args: ``compare``, run folders, and options.

    Raises:
        UserError: A run is missing or damaged, or the output has a comparison of other runs.
    """
    options = _parser().parse_args(args[1:])
    folders = [_run_folder(path) for path in options.runs]
    names = _short_names(folders)
    _claim(options.output, folders, options.overwrite)
    with leaving_no_empty_folders(options.output):
        require_writable(options.output)
        runs = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    tables = comparison(runs)
    text = "\n\n".join(f"{title}\n\n{markdown_table(rows)}" for title, rows in tables.items()) + "\n"
    print(text)
    from unite.messages import shown

    written = [options.output / name for name in (TABLE_FILE, VALUES_FILE)]
    written[0].write_text(f"# {', '.join(names)}\n\n{text}")
    values = [
        {"folder": path, **asdict(summary)}
        for path, summary in zip(_relative(folders, options.output), runs, strict=True)
    ]
    write_json(written[1], values)
    if importlib.util.find_spec("matplotlib") is None:
        print("no figure: it takes matplotlib, which is not installed (pip install matplotlib)", file=sys.stderr)
    else:
        written.append(options.output / FIGURE_FILE)
        draw_comparison(runs, written[-1])
    for path in written:
        print(f"wrote {shown(path)}")


def _parser() -> argparse.ArgumentParser:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UserError(f"compare: {message}; see unite compare --help")

    parser = Parser(
        prog="unite compare",
        description="Runs side by side: reconstruction, generation, alignment, compression, parameters, steps, time.",
        epilog="Alignment and compression are shown for runs on which `unite align` was run, in RUN/align or, with "
        "--output, in another folder of the run: one for each modality.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run folders, or checkpoints in them")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=Path("runs/compare"), help="where to write (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a comparison of other runs there")
    return parser


def _claim(output: Path, folders: Sequence[Path], overwrite: bool) -> None:
    """Let a comparison of the same runs, in any order, be replaced, and one of others only when that is asked for.

    Raises:
        UserError: Files of another comparison are there.
    """
    from unite.messages import shown

    found = [name for name in (TABLE_FILE, VALUES_FILE, FIGURE_FILE) if (output / name).exists()]
    if not found or overwrite:
        return
    try:
        there = sorted(values["folder"] for values in json.loads((output / VALUES_FILE).read_text()))
    except (OSError, KeyError, TypeError, ValueError):
        there = []  # no word on which runs they are of
    if there != sorted(_relative(folders, output)):
        raise UserError(
            f"{shown(output / found[0])} is there and not of these runs; add --overwrite to replace it, or choose "
            "another --output"
        )


def _relative(folders: Sequence[Path], output: Path) -> list[str]:
    """Run folders as seen from the output: the same wherever the command is typed, and when both are moved."""
    return [Path(os.path.relpath(folder.resolve(), output.resolve())).as_posix() for folder in folders]


def _run_folder(path: Path) -> Path:
    """The run folder that a path names, itself or by a checkpoint in it.

    Raises:
        UserError: There is no run.
    """
    from unite.checkpointing import LAST_CHECKPOINT

    folder = path.parent if path.is_file() else path
    if not (folder / LAST_CHECKPOINT).is_file():
        raise UserError(f"{path} is no run: name run folders, each with a {LAST_CHECKPOINT}")
    return folder


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Names of run folders without what all paths begin with.

    Raises:
        UserError: A run is named twice.
    """
    resolved = [folder.resolve() for folder in folders]
    for folder in resolved:
        if resolved.count(folder) > 1:
            raise UserError(f"run {folder} is named twice; name each run once")
    for length in range(1, max(len(folder.parts) for folder in resolved) + 1):
        names = ["/".join(folder.parts[-length:]) for folder in resolved]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("paths that differ have names that differ")


# ---------------------------------------------------------------------- reading


def read_run(folder: Path, name: str | None = None) -> RunSummary:
    """What a run folder says of its run.

    Args:
        folder: The run folder, with last.ckpt.
        name: How tables call it; None for the name of the folder.

    Raises:
        UserError: last.ckpt is damaged, or of another program.
    """
    from unite.checkpointing import LAST_CHECKPOINT
    from unite.run_folder import read_checkpoint

    checkpoint = read_checkpoint(folder / LAST_CHECKPOINT)
    summary = RunSummary(
        name=name or folder.resolve().name,
        modalities=list(checkpoint["hyper_parameters"]["adapters"]),
        metrics=read_metrics(folder),
        steps=int(checkpoint["global_step"]),
        epochs=int(checkpoint["epoch"]) + 1,
        seconds=training_seconds(folder),
        parameters=count_parameters(checkpoint["hyper_parameters"]),
    )
    for file in sorted([*folder.glob("align.json"), *folder.glob("*/align.json")]):
        _add_alignment(summary, file)
    return summary


def read_metrics(folder: Path) -> dict[str, float]:
    """Metrics of a run: of the last validation that has each of them, and of ``unite test``."""
    metrics: dict[str, float] = {}
    table = folder / "metrics.csv"
    if table.is_file():
        with table.open(newline="") as file:
            for row in csv.DictReader(file):
                metrics |= {key: float(value) for key, value in row.items() if key.startswith("val/") and value}
    evaluated = folder / "metrics.json"
    if evaluated.is_file():
        values = json.loads(evaluated.read_text())
        metrics |= {key: math.nan if value is None else float(value) for key, value in values.items()}
    return metrics


def training_seconds(folder: Path) -> float | None:
    """Wall time between the first and the last event of each TensorBoard file, added up."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    total = None
    for file in sorted(folder.glob("events.out.tfevents.*")):
        times = [event.wall_time for event in EventFileLoader(str(file)).Load()]
        if times:
            total = (total or 0.0) + times[-1] - times[0]
    return total


def count_parameters(hyper_parameters: Mapping[str, Any]) -> dict[str, int]:
    """Trainable parameters of each part of a model, from the settings in its checkpoint.

    Raises:
        UserError: A class of the settings cannot be imported.
    """
    import torch
    from lightning.pytorch.cli import instantiate_module

    from unite.messages import one_line
    from unite.module import UniteModule

    settings = {key: value for key, value in hyper_parameters.items() if not key.startswith("_")}
    try:
        with torch.device("meta"):
            module: UniteModule = instantiate_module(UniteModule, settings)
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"the model of a checkpoint cannot be made: {one_line(error)}") from error
    parts: dict[str, torch.nn.Module] = {"encoder": module.encoder}
    if module.separate_denoiser is not None:
        parts["denoiser"] = module.separate_denoiser
    parts |= {f"{name} adapter": adapter for name, adapter in module.adapters.items()}
    counts = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in parts.items()}
    return {**counts, "total": sum(counts.values())}


def _add_alignment(summary: RunSummary, file: Path) -> None:
    """Take alignment and compression from an align.json of ``unite align``; of an unknown form, say so."""
    from unite.analysis.alignment import late_layer
    from unite.messages import shown

    try:
        found = json.loads(file.read_text())
        late = late_layer(found["alignment"], "cka_within")
        networks = found["compression"]["networks"]
        parts = networks.get("both", networks["encoder"])["trained"]["parts"]
        lengths = {part: float(values["megabytes"]) for part, values in parts.items()}
        summary.alignment[found["modality"]] = late
        summary.compression = lengths
    except (KeyError, TypeError, ValueError, IndexError) as error:
        print(f"unite: {shown(file)} is not as unite align writes it, and is left out: {error!r}", file=sys.stderr)


# ---------------------------------------------------------------------- tables


def headlines(metrics: Sequence[str]) -> list[str]:
    """The metrics ``stage/modality/metric`` that a table shows, by modality and in the order of ``HEADLINES``."""
    chosen = []
    for prefix in dict.fromkeys(name.rpartition("/")[0] for name in metrics if name.count("/") == 2):
        own = [name for name in metrics if name.rpartition("/")[0] == prefix]
        ranks = {name: _rank(name.rpartition("/")[2]) for name in own}
        ranked = sorted((name for name in own if ranks[name] is not None), key=lambda name: ranks[name] or 0)
        chosen += ranked or own
    return chosen


def _rank(metric: str) -> int | None:
    return next((rank for rank, pattern in enumerate(HEADLINES) if re.fullmatch(pattern, metric)), None)


def comparison(runs: Sequence[RunSummary]) -> dict[str, list[list[str]]]:
    """Tables by title: one row per quantity, one column per run, and the names of the runs as first row."""
    header = ["", *[summary.name for summary in runs]]
    all_metrics = list(dict.fromkeys(name for summary in runs for name in summary.metrics))
    groups: dict[str, list[str]] = {"## Reconstruction": [], "## Generation": [], "## Other metrics": []}
    for name in headlines(all_metrics):
        metric = name.rpartition("/")[2]
        is_reconstruction = re.fullmatch(RECONSTRUCTION, metric)
        group = "Other metrics" if _rank(metric) is None else "Reconstruction" if is_reconstruction else "Generation"
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
    unit = UNITS.get(metric.rpartition("/")[2])
    return metric if unit is None else f"{metric} / {unit}"


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
