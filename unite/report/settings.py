"""Settings of runs: the whole file of one, and where several differ."""

from collections.abc import Mapping
from typing import Any

import yaml

from unite.report.elements import Html, element, table
from unite.runs.definitions import MISSING

MAX_ROWS = 25
"""More settings that differ are to be unfolded: runs of different configs differ in most."""


def settings_parts(configs: Mapping[str, str]) -> list[Html]:
    """Where the settings of several runs differ, and each config.yaml to be unfolded.

    Args:
        configs: Text of the config.yaml by name of the run.
    """
    parts = []
    if len(configs) > 1:
        rows = differences({name: _flat(yaml.safe_load(text)) for name, text in configs.items()})
        if len(rows) > MAX_ROWS:
            summary = element("summary", f"The runs differ in {len(rows)} settings")
            parts.append(element("details", summary, table(["", *configs], rows)))
        elif rows:
            parts += [element("p", "The runs differ in these settings:"), table(["", *configs], rows)]
        else:
            parts.append(element("p", "The runs have the same settings."))
    for name, text in configs.items():
        label = "config.yaml" if len(configs) == 1 else f"config.yaml of {name}"
        parts.append(element("details", element("summary", label), element("pre", text)))
    return parts


def differences(settings: Mapping[str, Mapping[str, str]]) -> list[list[str]]:
    """Rows of key and value in each run, for the keys that are not the same in all; the run folder is none."""
    keys = dict.fromkeys(key for values in settings.values() for key in values)
    rows = [[key, *[values.get(key, MISSING) for values in settings.values()]] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1 and not row[0].endswith("default_root_dir")]


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings by their dotted keys."""
    if isinstance(value, dict) and value:
        parts = {str(key): part for key, part in value.items()}
    elif isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
        parts = {str(number): part for number, part in enumerate(value)}
    else:
        return {prefix: str(value)}
    flat: dict[str, str] = {}
    for name, part in parts.items():
        flat |= _flat(part, f"{prefix}.{name}".strip("."))
    return flat
