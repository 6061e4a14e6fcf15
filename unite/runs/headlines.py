"""Which of a run's metrics are shown first, and how. Imports nothing heavy."""

import math
import re
from collections.abc import Mapping, Sequence

from unite.console import as_table

FIRST_OF_SAMPLES = r"validity(_bonds)?"
HEADLINES = (
    r"match_rate(_strict|_random)?",
    r"exact_graph",
    r"rmsd",
    r"psnr",
    r"lpips",
    r"rfid.*",
    FIRST_OF_SAMPLES,
    r"uniqueness(_bonds)?",
    r"novelty(_bonds)?",
    r"neutral(_bonds)?",
    r"charged_carbon(_bonds)?",
    r"fid.*",
    r"precision.*",
    r"recall.*",
    r"structure_validity(_random)?",
    r"composition_validity",
    r"sites_right",
)
"""Metrics of tables and figures, in order. A modality with none of them shows all it has; metrics.json has all."""

SHORT = {
    "validity": "valid",
    "validity_bonds": "valid bonds",
    "uniqueness": "unique",
    "uniqueness_bonds": "unique",
    "novelty": "novel",
    "novelty_bonds": "novel",
    "structure_validity": "structure",
    "composition_validity": "composition",
    "sites_right": "sites",
    "match_rate": "match",
    "match_rate_strict": "strict",
    "exact_graph": "exact",
}
"""Words for the line of a validation; these are shares."""

MOST_IN_A_LINE = 6


def headlines(metrics: Sequence[str]) -> list[str]:
    """The metrics ``stage/modality/metric`` that a table shows, by modality and in the order of ``HEADLINES``."""
    chosen = []
    for prefix in dict.fromkeys(name.rpartition("/")[0] for name in metrics if name.count("/") == 2):
        own = [name for name in metrics if name.rpartition("/")[0] == prefix]
        ranks = {name: rank_of(name.rpartition("/")[2]) for name in own}
        ranked = sorted((name for name in own if ranks[name] is not None), key=lambda name: ranks[name] or 0)
        chosen += ranked or own
    return chosen


def rank_of(metric: str) -> int | None:
    """Place of a metric among the headlines; None if it is none."""
    return next((rank for rank, pattern in enumerate(HEADLINES) if re.fullmatch(pattern, metric)), None)


def tensorboard_tag(name: str) -> str:
    """The name of a metric in TensorBoard, which sorts groups and names by the alphabet and folds a group for itself.

    Headlines come first, as ``1 quality/01 validity (val molecule)``: those of samples, then those of reconstructions.
    Shares of rejected samples are a group of their own, ``rejects/val molecule/REASON``. All else keeps its name.
    """
    stage, _, rest = name.partition("/")
    modality, _, metric = rest.partition("/")
    if metric.startswith("reject/"):
        return f"rejects/{stage} {modality}/{metric.removeprefix('reject/')}"
    rank = rank_of(metric)
    if rank is None:
        return name
    place = (rank - HEADLINES.index(FIRST_OF_SAMPLES)) % len(HEADLINES) + 1
    return f"1 quality/{place:02d} {metric} ({stage} {modality})"


def as_short_table(values: Mapping[str, float]) -> str:
    """The metrics that matter as a table, and why samples were rejected in one line.

    Args:
        values: Metrics by name, with ``stage/modality/`` before it or not.
    """
    by_stage = {name if name.count("/") == 2 else f"//{name}": name for name in values if "reject" not in name}
    shown = [by_stage[name] for name in headlines(list(by_stage))]
    lines = [as_table({name: values[name] for name in shown})]
    rejects = {name.rpartition("/")[2].replace("_", " "): value for name, value in values.items() if "reject" in name}
    common = sorted(((share, reason) for reason, share in rejects.items() if share > 0), reverse=True)
    if common:
        lines.append("rejected: " + ", ".join(f"{share:.1%} {reason}" for share, reason in common))
    return "\n".join(lines)


def in_a_line(values: Mapping[str, float]) -> str:
    """The headlines of a validation in a line: ``valid 41.2 %, unique 99.1 %``, with names of several modalities."""
    names = [name for name in headlines(list(values)) if math.isfinite(values[name])]
    modalities = dict.fromkeys(name.split("/")[1] for name in names)
    parts = []
    for modality in modalities:
        own = [name for name in names if name.split("/")[1] == modality]
        generated = [name for name in own if name.rpartition("/")[2] in SHORT]
        words = [_word(name, values[name]) for name in (generated or own)[:MOST_IN_A_LINE]]
        parts.append((f"{modality}: " if len(modalities) > 1 else "") + ", ".join(words))
    return "; ".join(parts)


def _word(name: str, value: float) -> str:
    metric = name.rpartition("/")[2]
    return f"{SHORT[metric]} {value:.1%}" if metric in SHORT else f"{metric} {value:.4g}"
