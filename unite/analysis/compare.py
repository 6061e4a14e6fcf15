"""``unite compare RUN RUN ...``: runs side by side, whatever their modality."""

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from unite.errors import UserError

MAX_PANELS = 12


@dataclass(frozen=True)
class RunSummary:
    """What is known of one run.

    Attributes:
        name: The shortest end of its path that tells it from the others.
        facts: Modalities, steps, minutes of training, parameters by part.
        settings: All settings of the model, flat.
        metrics: Of metrics.json.
        alignment: Of ``unite align``, empty where it has not been run.
        compression: Of ``unite align``.
    """

    name: str
    facts: dict[str, Any]
    settings: dict[str, Any]
    metrics: dict[str, float | None]
    alignment: dict[str, float]
    compression: dict[str, float]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.removeprefix('unite ')}: {message}; see {self.prog} --help")


def run(args: list[str]) -> None:
    """Compare runs.

    Args:
        args: `compare` and its options.
    """
    options = _parser().parse_args(args[1:])
    if len(options.runs) < 2:
        raise UserError("compare takes two or more runs; one alone is described by its metrics.json")
    from unite.analysis.loading import claim_output, write_json
    from unite.messages import shown

    claim_output(options.output, "compare.json", options.overwrite)
    summaries = [summarise(path, name) for path, name in zip(options.runs, _short_names(options.runs), strict=True)]
    comparison = compare(summaries)
    text = as_markdown(comparison)
    print(text)
    (options.output / "compare.md").write_text(text)
    written = [options.output / "compare.md", write_json(comparison, options.output / "compare.json")]
    rows = _drawable(comparison)
    if rows:
        from unite.analysis.probes import require_analysis_packages

        require_analysis_packages()
        from unite.analysis.figures import draw_comparison

        written.append(draw_comparison(rows, comparison["runs"], options.output / "compare.png"))
    for path in written:
        print(f"wrote {shown(path)}")
    missing = [summary.name for summary in summaries if not summary.alignment]
    if missing:
        print(f"no alignment and compression of {', '.join(missing)}: run unite align --ckpt_path RUN first")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="unite compare",
        description="Put runs side by side: settings that differ, steps, time, parameters, metrics (metrics.json) and, "
        "where unite align has been run, alignment and compression. Writes compare.md, compare.json and a figure.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or checkpoints within them")
    parser.add_argument("--output", type=Path, default=Path("comparison"), metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier comparison there")
    return parser


def _short_names(paths: list[Path]) -> list[str]:
    """The last parts of the paths, as many as tell all apart; a number where the same path comes twice."""
    folders = [(path if path.is_dir() else path.parent).resolve() for path in paths]
    for length in range(1, max(len(folder.parts) for folder in folders)):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({number})" for number, path in enumerate(folders, 1)]


def summarise(path: Path, name: str) -> RunSummary:
    """Read what a run folder holds.

    Raises:
        UserError: There is no checkpoint, or a file is damaged.
    """
    from unite.run_folder import METRICS_FILE, find_checkpoint, read_checkpoint

    checkpoint = find_checkpoint(str(path))
    assert checkpoint is not None
    content = read_checkpoint(checkpoint)
    hparams = {key: value for key, value in content["hyper_parameters"].items() if not key.startswith("_")}
    parameters = _count_parameters(content)
    folder = checkpoint.parent
    facts = {
        "modalities": ", ".join(hparams["adapters"]),
        "steps": int(content.get("global_step", 0)),
        "minutes of training": _minutes(folder),
        **{f"parameters: {part}": number for part, number in parameters.items()},
    }
    alignment, compression = _alignment(folder / "align" / "align.json")
    return RunSummary(
        name, facts, dict(_flat(hparams)), _read_json(folder / METRICS_FILE) or {}, alignment, compression
    )


def _count_parameters(checkpoint: Mapping[str, Any]) -> dict[str, int]:
    """Entries of the saved weights by part of the model; the few saved buffers count, too."""
    counts: dict[str, int] = {"encoder": 0, "separate denoiser": 0}
    for name, tensor in checkpoint["state_dict"].items():
        first, *rest = name.split(".")
        part = {"encoder": "encoder", "separate_denoiser": "separate denoiser"}.get(first)
        part = part or (f"adapter and decoder, {rest[0]}" if first == "adapters" else "other")
        counts[part] = counts.get(part, 0) + tensor.numel()
    counts["total"] = sum(counts.values())
    return {part: number for part, number in counts.items() if number or part == "separate denoiser"}


def _minutes(folder: Path) -> float | None:
    """Wall time of training from the TensorBoard events, added up over continuations; None without events."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    seconds = 0.0
    files = sorted(folder.glob("events.out.tfevents.*"))
    for file in files:
        times = [event.wall_time for event in EventFileLoader(str(file)).Load()]
        seconds += times[-1] - times[0] if times else 0.0
    return seconds / 60 if files else None


def _alignment(file: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Late-layer similarity, agreement of the outputs, and description lengths of an align.json."""
    content = _read_json(file)
    if content is None:
        return {}, {}
    import numpy as np

    from unite.analysis.alignment import late_layer

    result, lengths = content["alignment"], content["compression"]
    found = {}
    for measure, label in (("cka_within", "CKA"), ("cknna_within", "CKNNA")):
        for pairing, value in late_layer(result, measure).items():
            found[f"{label} behind the last block, {pairing}"] = value
    outputs = np.asarray(result["measures"]["cosine"]["trained"], dtype=np.float64)[..., -1].mean(axis=0)
    for time, cosine in zip(result["times"], outputs, strict=True):
        found[f"cosine of the outputs at t = {time:g}"] = float(cosine)
    network = "both" if "both" in lengths["networks"] else "encoder"
    bits = {
        f"MB of weights, {part}, {state}": float(described["parts"][part]["megabytes"])
        for state, described in lengths["networks"][network].items()
        for part in ("normalization", "functional", "total")
    }
    return found, bits


def _read_json(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {error}; make it anew, or remove it") from error
    assert isinstance(content, dict)
    return content


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as pairs of a dotted name and a value, as the command line spells them."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def compare(summaries: list[RunSummary]) -> dict[str, Any]:
    """The runs by section and row; what a run does not have is None.

    Returns:
        ``runs``: names; ``sections[section][row]``: one value for each run.
    """
    sections: dict[str, dict[str, list[Any]]] = {}
    for section, attribute in (
        ("run", "facts"),
        ("settings that differ", "settings"),
        ("metrics", "metrics"),
        ("alignment of tokenization and denoising", "alignment"),
        ("description length of the encoder (and denoiser)", "compression"),
    ):
        tables = [getattr(summary, attribute) for summary in summaries]
        names = list(dict.fromkeys(name for table in tables for name in table))
        rows = {name: [table.get(name) for table in tables] for name in names}
        if attribute == "settings":
            rows = {name: values for name, values in rows.items() if any(value != values[0] for value in values)}
        if rows:
            sections[section] = rows
    return {"runs": [summary.name for summary in summaries], "sections": sections}


def as_markdown(comparison: Mapping[str, Any]) -> str:
    """Tables, one for each section; reasons of rejection are left to compare.json."""
    runs = comparison["runs"]
    lines = ["# Comparison of runs", ""]
    for section, rows in comparison["sections"].items():
        lines += [f"## {section}", "", f"| | {' | '.join(runs)} |", "|---|" + "---|" * len(runs)]
        for name, values in rows.items():
            if "/reject/" not in name:
                lines.append(f"| {name} | {' | '.join(map(_shown, values))} |")
        lines.append("")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _drawable(comparison: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """Rows that at least two runs have, for a figure: alignment first, then metrics."""
    rows: dict[str, list[float | None]] = {}
    for section, table in comparison["sections"].items():
        if section in ("run", "settings that differ"):
            continue
        for name, values in table.items():
            known = [value for value in values if isinstance(value, int | float)]
            is_control = name.endswith((", shuffled", ", untrained", ", scrambled", ", initial", ", random"))
            if len(known) > 1 and "/reject/" not in name and not is_control:
                rows[name] = values
    order = sorted(rows, key=lambda name: "/" in name)  # names of metrics have slashes
    return {name: rows[name] for name in order[:MAX_PANELS]}
