"""Metrics as a table with their meaning, and why samples were rejected."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unite.report.elements import Html, element
from unite.runs.definitions import definition, written
from unite.runs.headlines import headlines

STAGES = {
    "val": "validation",
    "test": "test",
    "samples": "these samples",
    "reconstructions": "these reconstructions",
    "any": "",
}
"""Words for the stages of metrics; for ``any`` the columns name them."""


class Name(NamedTuple):
    """A metric's name in parts; stage and modality are empty where it has none."""

    stage: str
    modality: str
    metric: str


def parts_of(name: str) -> Name:
    """The parts of ``stage/modality/metric``, or of a metric alone."""
    stage, _, rest = name.partition("/")
    modality, _, metric = rest.partition("/")
    return Name(stage, modality, metric) if stage in STAGES and metric else Name("", "", name)


def metrics_tables(columns: Mapping[str, Mapping[str, float]]) -> list[Html]:
    """The headlines of several sets of metrics side by side, then all others to be unfolded.

    Args:
        columns: Metrics by name for each column, ``stage/modality/metric`` or ``metric``.
    """
    names = list(dict.fromkeys(name for values in columns.values() for name in values))
    judged = {"/".join(parts_of(name)): name for name in names if "/" not in parts_of(name).metric}
    first = [judged[name] for name in headlines(list(judged))]
    others = [name for name in names if name not in first]
    parts = [_table(first, columns)] if first else []
    if others:
        summary = element("summary", f"Further metrics ({len(others)})")
        parts.append(element("details", summary, _table(others, columns)))
    return parts


def _table(names: Sequence[str], columns: Mapping[str, Mapping[str, float]]) -> Html:
    titles = list(columns) if len(columns) > 1 or next(iter(columns)) in STAGES.values() else [""]
    head = element("tr", *[element("th", title, scope="col") for title in ["", *titles, "meaning"]])
    has_modalities = len({parts_of(name).modality for name in names}) > 1
    rows = [element("tr", *_row(name, columns, has_modalities)) for name in names]
    return element("div", element("table", element("thead", head), element("tbody", *rows)), class_="wide")


def _row(name: str, columns: Mapping[str, Mapping[str, float]], has_modalities: bool) -> list[Html]:
    parts = parts_of(name)
    told = [parts.modality] if has_modalities else []
    told += [STAGES[parts.stage]] if STAGES.get(parts.stage) else []
    words = [element("span", f" {', '.join(told)}", class_="stage-of")] if any(told) else []
    shown = parts.metric.replace("_", " ").replace("/", ": ")
    values = [element("td", written(name, values.get(name)), class_="number") for values in columns.values()]
    return [
        element("th", shown, *words, scope="row"),
        *values,
        element("td", definition(name).words, class_="meaning"),
    ]
