"""Reading ``metrics.csv`` of a run folder. Imports nothing heavy."""

import csv
from pathlib import Path

METRICS_TABLE = "metrics.csv"


def read_metrics_table(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """The rows of a run's ``metrics.csv``: the step, counted from 0, and the values that were logged at it.

    Args:
        folder: The run folder; one without the file has no rows.
    """
    file = folder / METRICS_TABLE
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        return [
            (int(row["step"]), {name: float(value) for name, value in row.items() if value and "/" in name})
            for row in csv.DictReader(lines)
            if None not in row.values()  # a run that was killed may have left half a row
        ]


def validations(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Those of :func:`read_metrics_table` that are of validations, with nothing else."""
    found = []
    for step, values in read_metrics_table(folder):
        if of_validation := {name: value for name, value in values.items() if name.startswith("val/")}:
            found.append((step, of_validation))
    return found
