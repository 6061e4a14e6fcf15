"""Real molecules for the tests, read without the package's own reader."""

import csv
import importlib.util
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np

from tests.support.paths import TINY_CSV
from unite.modalities.molecule.perception.molecule import Molecule

NUM_MOLECULES = 130_831
ATOMIC_NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}


@cache
def tiny_molecules() -> tuple[tuple[Molecule, str], ...]:
    """All molecules of the tiny file with the data set's SMILES."""
    with TINY_CSV.open(newline="") as file:
        return tuple(parse(file))


@cache
def random_molecules(number: int, seed: int = 0) -> tuple[tuple[Molecule, str], ...]:
    """Molecules drawn from all of QM9 with the data set's SMILES; only their rows are parsed."""
    spec = importlib.util.find_spec("qm9pack")  # importing it fails, its files are all that is needed
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "data"
    chosen = set(np.random.default_rng(seed).choice(NUM_MOLECULES, number, replace=False).tolist())
    lines, row = [], 0
    for part in sorted(folder.glob("qm9_part*.csv")):
        with part.open(newline="") as file:
            header = next(file)
            for line in file:
                if row in chosen:
                    lines.append(line)
                row += 1
    assert row == NUM_MOLECULES
    return tuple(parse([header, *lines]))


def parse(lines: Iterable[str]) -> Iterable[tuple[Molecule, str]]:
    for row in csv.DictReader(lines):
        elements = json.loads(row["Elements"].replace("'", '"'))
        positions = json.loads(re.sub(r"\.(?=[,\]])", ".0", row["XYZ_Ang"]))  # five rows have numbers like "0."
        atomic_numbers = np.array([ATOMIC_NUMBERS[element] for element in elements], dtype=np.int64)
        yield Molecule(atomic_numbers, np.array(positions)), row["SMILES"]
