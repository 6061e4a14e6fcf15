"""MP20 and sets in its form: ``train.csv``, ``val.csv``, ``test.csv`` with a column ``cif``; read once, then kept."""

import csv
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from tqdm import tqdm

from unite.console import info, shown
from unite.engine.workers import Divisible, Failure, in_order, num_cpus, work_apart
from unite.errors import UserError, require_packages
from unite.files import open_text, require_writable
from unite.files.checked import load_checked, save_checked
from unite.files.checked_json import DamagedFileError
from unite.files.locks import one_after_another
from unite.modalities.crystal.crystal import EXTRA, Crystal, UnusableCrystalError
from unite.modalities.crystal.data.table import SPLITS, CrystalTable, Split, table_of
from unite.modalities.crystal.files.reading import Record, parse

CACHE: Final = "crystals.safetensors"
VERSION: Final = 1
ROWS_AT_ONCE: Final = 50
NO_PROPERTIES: Final = ("", "unnamed: 0", "spacegroup.number", "material_id", "cif")


class Row(NamedTuple):
    """A row of a CSV file.

    Attributes:
        split: Place in :data:`SPLITS`.
        record: Its CIF, unread.
        name: What it is called.
        properties: Its properties in the order of the set; NaN where unknown.
    """

    split: int
    record: Record
    name: str
    properties: tuple[float, ...]


def load_or_read(root: Path, num_workers: int = 0) -> CrystalTable:
    """The crystals of a folder, out of the cache there or, where it is missing or older than the files, out of these.

    Args:
        root: The folder.
        num_workers: Processes that read; 0 for one per CPU, at most eight.

    Raises:
        UserError: Files are missing or cannot be read, or no crystal of them can be used.
    """
    cache = root / CACHE
    files = {split: root / f"{split}.csv" for split in SPLITS}
    if missing := [file for file in files.values() if not file.is_file()]:
        raise UserError(
            f"{missing[0]} is not a file; set data.root to a folder with train.csv, val.csv and test.csv, as CDVAE, "
            "ADiT and FlowMM name MP20 and where to get it"
        )
    stats = json.dumps([VERSION, *((file.name, file.stat().st_size) for file in files.values())])
    key = hashlib.sha256(stats.encode()).hexdigest()
    if (found := _load(cache, key)) is not None:
        return found
    require_writable(root, "see data.root", "the cache")
    with one_after_another(cache):
        if (found := _load(cache, key)) is not None:
            return found
        table = _read(files, num_workers or num_cpus())
        tensors = {name: getattr(table, name) for name in _TENSORS}
        notes = {"key": key, "names": json.dumps(table.names), "property_names": json.dumps(table.property_names)}
        save_checked(tensors, cache, notes)
    return table


_TENSORS = ("atomic_numbers", "fractional", "cell", "num_atoms", "split", "properties")


def _load(cache: Path, key: str) -> CrystalTable | None:
    """The table of a cache that was made of the same files; None if there is none."""
    if not cache.is_file():
        return None
    try:
        tensors, notes = load_checked(cache)
    except DamagedFileError as error:
        info(f"{shown(cache)} is damaged ({error}): reading the files again")
        return None
    if notes.get("key") != key:
        return None
    names, property_names = json.loads(notes["names"]), json.loads(notes["property_names"])
    return CrystalTable(**tensors, names=names, property_names=property_names)


def _read(files: dict[Split, Path], num_workers: int) -> CrystalTable:
    require_packages("reading CIF", EXTRA, "pymatgen.core")
    names = _property_names(files["train"])
    rows = [row for split, file in enumerate(files.values()) for row in _rows(file, split, names)]
    crystals: list[Crystal] = []
    kept: list[Row] = []
    left_out: Counter[str] = Counter()
    with closing(reduced(rows, num_workers)) as done:
        for row, found in zip(rows, tqdm(done, "read", len(rows), unit="crystal"), strict=True):
            if isinstance(found, Crystal):
                crystals.append(Crystal(found.atomic_numbers, found.fractional, found.cell, row.name))
                kept.append(row)
            else:
                left_out[found] += 1
    if left_out:
        counts = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in left_out.most_common())
        info(f"left out of {len(rows):,} structures: {counts}")
    for split, file in enumerate(files.values()):
        if not any(row.split == split for row in kept):
            raise UserError(f"{file} has no crystal that can be used: {dict(left_out) or 'it has no rows'}")
    return table_of(crystals, [row.split for row in kept], [row.properties for row in kept], names)


def reduced(rows: list[Row], num_workers: int) -> Generator[Crystal | str, None, None]:
    """The Niggli-reduced crystal of each row, or the kind of what is wrong with it, in their order."""
    reading: Divisible[list[Row], list[Crystal | str]] = Divisible(
        work=_reduce_all,
        split=lambda job: [[row] for row in job],
        refuse=lambda job, failure: [Failure(*failure).reason],
        join=lambda parts: [found for part in parts for found in part],
    )
    jobs = (rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE))
    with closing(in_order(work_apart(reading, jobs, num_workers))) as done:
        for part in done:
            yield from part


def _reduce_all(rows: list[Row]) -> list[Crystal | str]:
    found: list[Crystal | str] = []
    for row in rows:
        try:
            found.append(parse(row.record).niggli())
        except UnusableCrystalError as error:
            found.append(error.kind)
        except ValueError:  # pymatgen finds no reduced cell
            found.append("not_reducible")
    return found


def _property_names(file: Path) -> list[str]:
    """Columns of a file whose first row has a number."""
    with open_text(file, newline="") as lines:
        reader = csv.DictReader(lines)
        _allow_long_fields()
        first = next(reader, {})
    return [name for name, value in first.items() if name.lower() not in NO_PROPERTIES and _number(value) is not None]


def _rows(file: Path, split: int, property_names: list[str]) -> Iterator[Row]:
    with open_text(file, newline="") as lines:
        reader = csv.DictReader(lines)
        _allow_long_fields()
        if "cif" not in (reader.fieldnames or ()):
            raise UserError(f"{file} has no column cif; it has {', '.join(reader.fieldnames or ()) or 'no columns'}")
        for number, row in enumerate(reader, 1):
            values = (_number(row.get(name)) for name in property_names)
            properties = tuple(float("nan") if value is None else value for value in values)
            name = row.get("material_id") or str(number)
            yield Row(split, Record(str(file), number, "cif", row["cif"] or ""), name, properties)


def _number(value: str | None) -> float | None:
    try:
        return float(value) if value else None
    except ValueError:
        return None


def _allow_long_fields() -> None:
    """CIFs are longer than what the module csv takes by default."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
