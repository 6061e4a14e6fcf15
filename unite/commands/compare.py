"""``unite compare RUN RUN ...``: runs of any modality side by side, from the files in their folders.

Nothing is computed again: metrics come from metrics.csv (the last validation) and metrics.json (``unite test``),
parameters and steps from last.ckpt, training time from the TensorBoard events, alignment and compression from the
align.json of ``unite align``. What a run does not have is a dash, never a zero.
"""

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unite.analysis.comparison import RunSummary, comparison, draw_comparison, markdown_table
from unite.configurable import own_settings
from unite.console import shown
from unite.errors import UserError, install_hint, is_installed
from unite.files import leaving_no_empty_folders, read_json, require_writable, write_json
from unite.files.checked_json import DamagedFileError, read_checked_json
from unite.runs.metrics_table import validations
from unite.runs.names import short_names

if TYPE_CHECKING:
    from torch.nn import Module

    from unite.module import UniteModule

TABLE_FILE = "compare.md"
VALUES_FILE = "compare.json"
FIGURE_FILE = "compare.png"


def compare(runs: list[Path], *, output: Path = Path("runs/compare"), overwrite: bool = False) -> None:
    """Runs side by side: reconstruction, generation, alignment, compression, parameters, steps, time.

    Writes compare.md, compare.json and compare.png. Alignment and compression are shown for runs on which ``unite
    align`` was run, in RUN/align or, with --output, in another folder of the run: one for each modality.

    Args:
        runs: Run folders, or checkpoints in them.
        output: Where to write.
        overwrite: Replace a comparison of other runs there.

    Raises:
        UserError: A run is missing or damaged, or the output has a comparison of other runs.
    """
    folders = _run_folders(runs)
    names = short_names(folders)
    _claim(output, folders, overwrite)
    with leaving_no_empty_folders(output):
        require_writable(output)
        summaries = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    tables = comparison(summaries)
    text = "\n\n".join(f"{title}\n\n{markdown_table(rows)}" for title, rows in tables.items()) + "\n"
    print(text)

    written = [output / name for name in (TABLE_FILE, VALUES_FILE)]
    written[0].write_text(f"# {', '.join(names)}\n\n{text}")
    values = [
        {"folder": path, **asdict(summary)} for path, summary in zip(_relative(folders, output), summaries, strict=True)
    ]
    write_json(written[1], values)
    if not is_installed("matplotlib"):
        print(f"no figure: matplotlib is not installed: {install_hint('analysis', 'matplotlib')}", file=sys.stderr)
    else:
        written.append(output / FIGURE_FILE)
        draw_comparison(summaries, written[-1])
    for path in written:
        print(f"wrote {shown(path)}")


def _claim(output: Path, folders: Sequence[Path], overwrite: bool) -> None:
    """Let a comparison of the same runs, in any order, be replaced, and one of others only when that is asked for.

    Raises:
        UserError: Files of another comparison are there.
    """
    found = [name for name in (TABLE_FILE, VALUES_FILE, FIGURE_FILE) if (output / name).exists()]
    if not found or overwrite:
        return
    try:
        there = sorted(values["folder"] for values in read_json(output / VALUES_FILE))
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
    from unite.runs.checkpoint_io import LAST_CHECKPOINT

    folder = path.parent if path.is_file() else path
    if not (folder / LAST_CHECKPOINT).is_file():
        raise UserError(f"{path} is no run: name run folders, each with a {LAST_CHECKPOINT}")
    return folder


def _run_folders(paths: Sequence[Path]) -> list[Path]:
    """The run folders among some paths; what else a pattern such as ``runs/*`` matched is left out, and said.

    Raises:
        UserError: There is no run among them.
    """
    folders = []
    for path in paths:
        try:
            folders.append(_run_folder(path))
        except UserError as error:
            if path is paths[-1] and not folders:
                raise
            print(f"unite: left out: {error}", file=sys.stderr)
    return folders


# ---------------------------------------------------------------------- reading


def read_run(folder: Path, name: str | None = None) -> RunSummary:
    """Figures of a run, from its folder.

    Args:
        folder: The run folder, with last.ckpt.
        name: How tables call it; None for the name of the folder.

    Raises:
        UserError: last.ckpt is damaged, or of another program.
    """
    from unite.runs.checkpoint_io import LAST_CHECKPOINT
    from unite.runs.folder import read_checkpoint
    from unite.runs.sizes import no_larger_than

    path = folder / LAST_CHECKPOINT
    checkpoint = read_checkpoint(path)
    with no_larger_than(checkpoint["state_dict"], checkpoint["hyper_parameters"], path):
        parameters = count_parameters(checkpoint["hyper_parameters"])
    summary = RunSummary(
        name=name or folder.resolve().name,
        modalities=list(checkpoint["hyper_parameters"]["adapters"]),
        metrics=read_metrics(folder),
        steps=int(checkpoint["global_step"]),
        epochs=int(checkpoint["epoch"]) + 1,
        seconds=training_seconds(folder),
        parameters=parameters,
    )
    for file in sorted([*folder.glob("align.json"), *folder.glob("*/align.json")]):
        _add_alignment(summary, file)
    return summary


def read_metrics(folder: Path) -> dict[str, float]:
    """Metrics of a run: of the last validation that has each of them, and of ``unite test``."""
    metrics: dict[str, float] = {}
    for _, values in validations(folder):
        metrics |= values
    evaluated = folder / "metrics.json"
    if evaluated.is_file():
        found = read_json(evaluated)
        metrics |= {key: math.nan if value is None else float(value) for key, value in found.items()}
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
    module = without_weights(hyper_parameters)
    parts: dict[str, Module] = {"encoder": module.encoder}
    if module.separate_denoiser is not None:
        parts["denoiser"] = module.separate_denoiser
    parts |= {f"{name} adapter": adapter for name, adapter in module.adapters.items()}
    counts = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in parts.items()}
    return {**counts, "total": sum(counts.values())}


def without_weights(hyper_parameters: Mapping[str, Any]) -> "UniteModule":
    """The model of a checkpoint's settings, on no device.

    Raises:
        UserError: A class of the settings cannot be imported.
    """
    import torch
    from lightning.pytorch.cli import instantiate_module

    from unite.console import one_line
    from unite.module import UniteModule

    settings = own_settings(hyper_parameters)
    try:
        with torch.device("meta"):
            module: UniteModule = instantiate_module(UniteModule, settings)
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"the model of a checkpoint cannot be made: {one_line(error)}") from error
    return module


def _add_alignment(summary: RunSummary, file: Path) -> None:
    """Take alignment and compression from an align.json of ``unite align``; of an unknown form, say so."""
    from unite.analysis.alignment import late_layer

    try:
        found = read_checked_json(file)
        late = late_layer(found["alignment"], "cka_within")
        networks = found["compression"]["networks"]
        parts = networks.get("both", networks["encoder"])["trained"]["parts"]
        lengths = {part: float(values["megabytes"]) for part, values in parts.items()}
        summary.alignment[found["modality"]] = late
        summary.compression = lengths
    except (DamagedFileError, KeyError, TypeError, ValueError, IndexError) as error:
        print(f"unite: {shown(file)} is not as unite align writes it, and is left out: {error!r}", file=sys.stderr)
