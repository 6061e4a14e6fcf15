"""Metrics as a table with their meaning, and why samples were rejected."""

from collections.abc import Mapping, Sequence

from unite.report.elements import Html, element
from unite.runs.definitions import definition, written
from unite.runs.headlines import headlines

STAGES = {"train": "training", "val": "validation", "test": "test"}


def metrics_tables(columns: Mapping[str, Mapping[str, float]]) -> list[Html]:
    """The headlines of several sets of metrics side by side, then all others to be unfolded.

    Args:
        columns: Metrics by name for each column, ``stage/modality/metric`` or ``metric``.
    """
    names = list(dict.fromkeys(name for values in columns.values() for name in values))
    staged = {name if name.count("/") >= 2 and name.split("/")[0] in STAGES else f"//{name}": name for name in names}
    judged = [name for name in staged if not _own(name).startswith("reject")]
    first = [staged[name] for name in headlines([name for name in judged if name.count("/") == 2])]
    others = sorted(set(names) - set(first), key=names.index)
    parts = [_table(first, columns)] if first else []
    if others:
        summary = element("summary", f"{'All' if not first else 'Further'} metrics ({len(others)})")
        parts.append(element("details", summary, _table(others, columns)))
    return parts


def _own(name: str) -> str:
    return name.split("/", 2)[2]


def _table(names: Sequence[str], columns: Mapping[str, Mapping[str, float]]) -> Html:
    titles = list(columns) if len(columns) > 1 else [""]
    head = element("tr", *[element("th", title, scope="col") for title in ["", *titles, "meaning"]])
    rows = [element("tr", *_row(name, columns)) for name in names]
    return element("div", element("table", element("thead", head), element("tbody", *rows)), class_="wide")


def _row(name: str, columns: Mapping[str, Mapping[str, float]]) -> list[Html]:
    stage, _, rest = name.partition("/")
    modality, _, metric = rest.partition("/")
    is_staged = bool(metric) and stage in STAGES
    words = [element("span", f" {modality}, {STAGES[stage]}", class_="stage-of")] if is_staged else []
    shown = (metric if is_staged else name).replace("_", " ").replace("/", ": ")
    values = [element("td", written(name, values.get(name)), class_="number") for values in columns.values()]
    return [
        element("th", shown, *words, scope="row"),
        *values,
        element("td", definition(name).words, class_="meaning"),
    ]
