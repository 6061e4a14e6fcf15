"""Molecules of files as one memory-mapped table: read in processes of their own, kept as they come, joined at the end.

An interruption leaves finished chunks, with which the next call continues. What a record is left out for is counted by
name, and listed in a report beside the table.
"""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from unite.console import shown
from unite.engine.workers import Divisible, Failure, num_cpus, work_apart
from unite.errors import UserError
from unite.files import write_json
from unite.files.checked import load_checked, save_checked
from unite.files.checked_json import DamagedFileError
from unite.files.tables import write_table
from unite.modalities.molecule.data.files.records import (
    GRAPH_FAULTS,
    Found,
    ReadSettings,
    RefusedError,
    are_conformers,
    read,
)
from unite.modalities.molecule.data.files.sources import File, Record, count_records, read_records

TABLE_FILE: Final = "molecules.safetensors"
REPORT_FILE: Final = "report.json"
CACHE_VERSION: Final = 4
MAX_LISTED: Final = 10_000
"""Refused records that the report lists; all are counted."""

_RECORDS_PER_CHUNK: Final = {"sdf": 256, "xyz": 256, "smiles": 128}
_MAX_PROPERTIES: Final = 64  # of the numbers in files, those that most molecules have

Arrays = dict[str, np.ndarray]


class Chunk(NamedTuple):
    """Records that are read together.

    Attributes:
        records: The records.
        first: Number of the first among all records, from 0.
        origin: Number of the list of files that they are from.
    """

    records: list[Record]
    first: int
    origin: int


def build_table(
    sources: Sequence[Sequence[File]], settings: ReadSettings, smiles_column: str | None, folder: Path
) -> None:
    """Read all files, and write the table and the report into a folder.

    Args:
        sources: Lists of files; the table notes for each molecule which list it is from.
        settings: What of records becomes of them.
        smiles_column: Column of SMILES in tables.
        folder: Where table, report and unfinished work lie; one process at a time writes there.

    Raises:
        UserError: A file cannot be read.
    """
    parts = folder / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    names: list[Path] = []
    files = [file for group in sources for file in group]
    chunks = _noted(_chunks(sources, settings, smiles_column), parts, names)
    kind = Divisible(
        partial(read_chunk, settings=settings), _one_by_one, partial(_refuse, settings=settings), _join_results
    )
    with tqdm(total=count_records(files), desc="reading molecules", unit="mol", smoothing=0.1) as bar:
        _work(kind, chunks, bar)
    if not names:
        raise UserError(f"{shown(files[0].path)} has no molecule: it is empty")
    report = _report(names, files)
    properties = list(report["properties"])
    write_json(folder / REPORT_FILE, report)  # first: a table that is there is complete
    write_table(partial(_table_parts, names, properties), folder / TABLE_FILE, {"properties": json.dumps(properties)})
    shutil.rmtree(parts, ignore_errors=True)


def _chunks(sources: Sequence[Sequence[File]], settings: ReadSettings, smiles_column: str | None) -> Iterator[Chunk]:
    first = 0
    for origin, files in enumerate(sources):
        for file in files:
            waiting: list[Record] = []
            for record in read_records(file, smiles_column):
                waiting.append(record)
                if len(waiting) >= max(_RECORDS_PER_CHUNK[record.format] // max(settings.num_conformers, 1), 8):
                    yield Chunk(waiting, first, origin)
                    first += len(waiting)
                    waiting = []
            if waiting:
                yield Chunk(waiting, first, origin)
                first += len(waiting)


def _noted(chunks: Iterator[Chunk], parts: Path, names: list[Path]) -> Iterator[tuple[Path, Chunk]]:
    """The chunks, each with its file, which goes into `names`."""
    for chunk in chunks:
        path = parts / f"{chunk.first}.safetensors"
        names.append(path)
        yield path, chunk


def _is_done(path: Path) -> bool:
    try:
        return bool(load_checked(path))
    except DamagedFileError:
        return False


def _work(kind: Divisible[Chunk, Arrays], chunks: Iterator[tuple[Path, Chunk]], bar: "tqdm[Any]") -> None:
    paths: list[Path] = []
    sizes: list[int] = []

    def jobs() -> Iterator[Chunk]:
        for path, chunk in chunks:
            if path.exists() and _is_done(path):
                bar.update(len(chunk.records))
                continue
            paths.append(path)
            sizes.append(len(chunk.records))
            yield chunk

    num_processes = num_cpus()
    if num_processes < 2 and sys.platform != "linux":
        done = ((number, kind.work(chunk)) for number, chunk in enumerate(jobs()))
    else:
        done = work_apart(kind, jobs(), num_processes)
    with closing(done):
        for number, found in done:
            save_checked({name: torch.from_numpy(array.copy()) for name, array in found.items()}, paths[number])
            bar.update(sizes[number])


# ---------------------------------------------------------------- in another process


def read_chunk(chunk: Chunk, settings: ReadSettings) -> Arrays:
    """The molecules of a chunk as flat arrays, with its remarks as JSON in ``remarks``."""
    found: list[tuple[int, Found]] = []
    refused: list[dict[str, object]] = []
    for number, record in enumerate(chunk.records, start=chunk.first):
        try:
            found.append((number, read(record, settings)))
        except RefusedError as error:
            refused.append(
                {"file": record.file, "record": record.number, "reason": error.reason, "detail": error.detail}
            )
    merged: list[tuple[int, Found]] = []
    for number, molecule in found:
        if merged and are_conformers(merged[-1][1], molecule):
            before = merged[-1][1]
            before.positions = np.concatenate([before.positions, molecule.positions])
        else:
            merged.append((number, molecule))
    notes = Counter(note for _, molecule in merged for note in molecule.notes)
    remarks = {
        "num_records": len(chunk.records),
        "refused": refused,
        "notes": notes,
        "fields": [molecule.fields for _, molecule in merged],
    }
    return _as_arrays(merged, chunk.origin) | {"remarks": _as_bytes(remarks)}


def _as_arrays(molecules: list[tuple[int, Found]], origin: int) -> Arrays:
    found = [molecule for _, molecule in molecules]
    smiles = [molecule.smiles.encode() for molecule in found]
    captions = [molecule.caption.encode() for molecule in found]
    bonds = _joined([molecule.bonds for molecule in found], (0, 3))
    return {
        "z": _joined([molecule.atomic_numbers for molecule in found]).astype(np.uint8),
        "charge": _joined([molecule.charges for molecule in found]).astype(np.int8),
        "pos": _joined([molecule.positions.reshape(-1, 3) for molecule in found], (0, 3)).astype(np.float32),
        "first": bonds[:, 0].astype(np.int16),
        "second": bonds[:, 1].astype(np.int16),
        "types": bonds[:, 2].astype(np.uint8),
        "num_atoms": np.array([len(molecule.atomic_numbers) for molecule in found], dtype=np.int32),
        "num_conformers": np.array([len(molecule.positions) for molecule in found], dtype=np.int32),
        "num_bonds": np.array([len(molecule.bonds) for molecule in found], dtype=np.int32),
        "key": np.array([molecule.key for molecule in found], dtype=np.int64),
        "scaffold": np.array([molecule.scaffold for molecule in found], dtype=np.int64),
        "fault": np.array([GRAPH_FAULTS.index(molecule.fault) for molecule in found], dtype=np.uint8),
        "molecule_id": np.array([number + 1 for number, _ in molecules], dtype=np.int64),
        "origin": np.full(len(found), origin, dtype=np.uint8),
        "smiles_text": np.frombuffer(b"".join(smiles), dtype=np.uint8),
        "smiles_length": np.array([len(text) for text in smiles], dtype=np.int32),
        "caption_text": np.frombuffer(b"".join(captions), dtype=np.uint8),
        "caption_length": np.array([len(text) for text in captions], dtype=np.int32),
    }


def _joined(arrays: list[np.ndarray], empty: tuple[int, ...] = (0,)) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(empty)


def _one_by_one(chunk: Chunk) -> list[Chunk]:
    return [Chunk([record], chunk.first + index, chunk.origin) for index, record in enumerate(chunk.records)]


def _refuse(chunk: Chunk, failure: Failure, settings: ReadSettings) -> Arrays:
    """What :func:`read_chunk` would give of one record that ends the process in which it is read."""
    (record,) = chunk.records
    refused = {"file": record.file, "record": record.number, "reason": failure.reason, "detail": failure.detail}
    remarks = {"num_records": 1, "refused": [refused], "notes": {}, "fields": []}
    return _as_arrays([], chunk.origin) | {"remarks": _as_bytes(remarks)}


def _join_results(results: list[Arrays]) -> Arrays:
    remarks = [_remarks(result["remarks"]) for result in results]
    joined = {name: np.concatenate([result[name] for result in results]) for name in results[0] if name != "remarks"}
    together = {
        "num_records": sum(remark["num_records"] for remark in remarks),
        "refused": [refused for remark in remarks for refused in remark["refused"]],
        "notes": sum((Counter(remark["notes"]) for remark in remarks), Counter()),
        "fields": [fields for remark in remarks for fields in remark["fields"]],
    }
    return joined | {"remarks": _as_bytes(together)}


def _as_bytes(remarks: object) -> np.ndarray:
    return np.frombuffer(json.dumps(remarks).encode(), dtype=np.uint8)


def _remarks(column: np.ndarray) -> dict[str, Any]:
    remarks: dict[str, Any] = json.loads(column.tobytes())
    return remarks


# ---------------------------------------------------------------- the table


def _table_parts(names: Sequence[Path], properties: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The parts of the table, with the numbers of the files as columns of ``y``."""
    for path in names:
        tensors, _ = load_checked(path)
        remarks = _remarks(tensors.pop("remarks").numpy())
        rows = [[fields.get(name, float("nan")) for name in properties] for fields in remarks["fields"]]
        tensors["y"] = torch.tensor(rows, dtype=torch.float32).view(len(rows), len(properties))
        yield tensors


def _report(names: Sequence[Path], files: Sequence[File]) -> dict[str, Any]:
    """What was found while reading, in plain values."""
    num_records = num_molecules = 0
    reasons: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    fields: Counter[str] = Counter()
    listed: list[dict[str, object]] = []
    for path in names:
        remarks = _remarks(load_checked(path)[0]["remarks"].numpy())
        num_records += remarks["num_records"]
        num_molecules += len(remarks["fields"])
        reasons.update(refused["reason"] for refused in remarks["refused"])
        notes.update(remarks["notes"])
        fields.update(name for values in remarks["fields"] for name in values)
        listed += remarks["refused"][: MAX_LISTED - len(listed)]
    return {
        "files": [str(file) for file in files],
        "num_records": num_records,
        "num_molecules": num_molecules,
        "refused": dict(reasons.most_common()),
        "notes": dict(notes),
        "properties": dict(fields.most_common(_MAX_PROPERTIES)),
        "refused_records": listed,
    }
