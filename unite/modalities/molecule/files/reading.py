"""Molecules out of files from any source: SDF (V2000 and V3000), MOL, and XYZ, plain or extended, of many frames.

Only elements, coordinates and the total charge are taken, by a reader of our own: RDKit's refuses elements that do not
exist and coordinates that are not finite without saying so, and those are what a score has to count. Reading goes in
two steps, so that the second can run in several processes: files are cut into records of text, and records become
molecules.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
from rdkit import Chem

from unite.errors import UserError
from unite.files import open_text
from unite.modalities.molecule.files.suffixes import STRUCTURES, StructureFormat
from unite.modalities.molecule.perception.molecule import Molecule

_Positions = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

MAX_SDF_COORDINATE: Final = 9999.0  # Å; larger ones do not fit the columns of an SDF

#: A symbol or number of an element and the beginning of a coordinate.
_ATOM_LINE: Final = r"\s*[A-Za-z0-9]{1,3}\s+[-+]?[0-9]*\.?[0-9]+\S*\s+[-+]?\S*[0-9]\S*\s+[-+]?\S*[0-9]"


class Record(NamedTuple):
    """The text of one molecule in a file.

    Attributes:
        file: Name of the file.
        number: Place of the record in the file, from 1.
        format: How to read it. A SMILES has one line.
        lines: Its lines, without the ``$$$$`` that ends a record of an SDF.
    """

    file: str
    number: int
    format: Literal["sdf", "xyz", "smiles"]
    lines: list[str]


@dataclass(frozen=True, eq=False)
class Entry:
    """What a record holds.

    Attributes:
        molecule: The molecule; elements that do not exist have the number 0. None if the record cannot be read.
        symbols: Symbols of the atoms; those of elements that do not exist as they are written.
        error: Why the record cannot be read; empty if it can.
        is_flat: Whether the positions are those of a drawing in the plane, not of a molecule.
    """

    molecule: Molecule | None
    symbols: list[str]
    error: str = ""
    is_flat: bool = False


def find_files(path: Path, only: StructureFormat | None = None) -> list[Path]:
    """The file itself, or the molecule files in a folder (not in its subfolders) by name.

    Args:
        path: A file or a folder.
        only: Take files of this format from a folder, those that end in .txt among them, as EDM's samples do.

    Raises:
        UserError: There is none, the file's format is unknown, or the folder has files of both formats.
    """
    known = ", ".join(STRUCTURES)
    if path.is_file():
        if _format_of(path, only) is None:
            raise UserError(
                f"{path} is no molecule file by its name; the ending must be one of {known}, "
                "or .txt with --format xyz or --format sdf"
            )
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    formats = {_format_of(file, None) for file in files} - {None}
    if only is None and len(formats) > 1:
        raise UserError(
            f"{path} has SDF and XYZ files, which may hold the same molecules: choose with --format sdf or --format xyz"
        )
    chosen = [file for file in files if (found := _format_of(file, only)) is not None and only in (None, found)]
    if not chosen:
        raise UserError(f"{path} has no molecule files ({known})")
    return chosen


def _format_of(path: Path, only: StructureFormat | None) -> StructureFormat | None:
    """The format that the ending of a file tells, or None; of .txt the one asked for."""
    return only if path.suffix.lower() == ".txt" else STRUCTURES.get(path.suffix.lower())


def read_records(files: Sequence[Path], only: StructureFormat | None = None) -> Iterator[Record]:
    """The records of files, one after another; a file is never held in memory as a whole.

    Args:
        files: Files that :func:`find_files` gave.
        only: As it was for :func:`find_files`.

    Raises:
        UserError: A file cannot be opened.
    """
    for file in files:
        format_ = _format_of(file, only)
        assert format_ is not None
        try:
            with open_text(file, errors="replace") as lines:
                for number, record in enumerate(cut(lines, format_), start=1):
                    yield Record(str(file), number, format_, record)
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from error


def cut(lines: Iterable[str], format_: StructureFormat) -> Iterator[list[str]]:
    """The lines of each record of a file."""
    return _cut_sdf(lines) if format_ == "sdf" else _cut_xyz(lines)


def _cut_sdf(lines: Iterable[str]) -> Iterator[list[str]]:
    record: list[str] = []
    for line in lines:
        if line.startswith("$$$$"):
            yield record
            record = []
        else:
            record.append(line.rstrip("\r\n"))
    if any(line.strip() for line in record):  # a MOL file, or an SDF that breaks off
        yield record


def _cut_xyz(lines: Iterable[str]) -> Iterator[list[str]]:
    """Frames by their numbers of atoms; one that breaks off, or has lost its number, cannot be read.

    Other text behind a frame is no molecule: the files of QM9 have frequencies, SMILES and InChI behind the atoms.
    """
    is_first = True
    for record in _cut_frames(lines):
        if is_first or _as_count(record[0]) is not None or any(re.match(_ATOM_LINE, line) for line in record):
            yield record
        is_first = False


def _cut_frames(lines: Iterable[str]) -> Iterator[list[str]]:
    record: list[str] = []
    missing = 0  # lines of the frame that are still to come
    for line in lines:
        text = line.rstrip("\r\n")
        is_count = _as_count(text) is not None
        if missing and not (is_count and len(record) > 1):  # a comment may be a number, an atom may not
            record.append(text)
            missing -= 1
        elif is_count:
            if record:
                yield record
            record, missing = [text], int(text) + 1
        elif text.strip():
            record.append(text)
            continue
        if record and not missing and _as_count(record[0]) is not None:
            yield record
            record = []
    if record:
        yield record


def _as_count(text: str) -> int | None:
    """The number that a text is, or None; Python's own idea of digits includes ² and numbers without end."""
    return int(text) if re.fullmatch(r"\s*[0-9]{1,9}\s*", text) else None


def parse(record: Record) -> Entry:
    """The molecule of a record, or why there is none.

    Hydrogens that our own files count are taken as counted, coordinates that our SDF files keep apart as they were
    generated: such files are scored as the samples they were written from.
    """
    try:
        return _parse_sdf(record.lines) if record.format == "sdf" else _parse_xyz(record.lines)
    except _UnreadableError as error:
        return Entry(None, [], str(error))


class _UnreadableError(Exception):
    """A record is no molecule; the message says why."""


def _parse_sdf(lines: list[str]) -> Entry:
    if len(lines) < 4:
        raise _UnreadableError("no counts line")
    rows = _v3000_atoms(lines) if "V3000" in lines[3] else _v2000_atoms(lines)
    symbols = [row[0] for row in rows]
    positions = _as_positions([row[1:] for row in rows])
    if _is_ours(lines) and (apart := _property(lines, "positions")) is not None:
        positions = _kept_apart(apart, positions)
    counts = counted_hydrogens(lines)
    if counts is not None:
        symbols, positions = symbols[: len(counts)], positions[: len(counts)]
    is_flat = lines[1][20:22] == "2D" and not positions[:, 2].any()
    charge = 0 if _is_ours(lines) else _sdf_charge(lines)  # what was generated is to be neutral, whatever was predicted
    return replace(_as_entry(symbols, positions, counts, charge), is_flat=is_flat)


def counted_hydrogens(lines: list[str]) -> list[str] | None:
    """Hydrogens on each atom of an SDF of our own with united atoms; those behind were added when it was written.

    None for other files, which may mean something else by that name.
    """
    return _property(lines, "num_hydrogens") if _is_ours(lines) else None


def properties(lines: list[str]) -> dict[str, str]:
    """First lines of the data items of an SDF, by name."""
    found: dict[str, str] = {}
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if named := re.match(r">.*<([^>]+)>", line):
            found.setdefault(named[1], following.strip())
    return found


def is_graph(lines: list[str]) -> bool:
    """Whether `write_sdf` wrote a record of bonds alone, laid out in the plane."""
    return _property(lines, "valid_bonds") is not None and _property(lines, "valid") is None


def _is_ours(lines: list[str]) -> bool:
    """Whether `write_sdf` wrote the record: other programs have data items called positions, too."""
    return any(_property(lines, name) is not None for name in ("reject_reason", "reject_reason_bonds"))


def _kept_apart(words: list[str], positions: _Positions) -> _Positions:
    """Positions as they were generated, of which the atoms of the record have those that an SDF can hold, and zeros."""
    apart = _as_positions([words[start : start + 3] for start in range(0, len(words), 3)])
    if apart.shape != positions.shape:
        raise _UnreadableError("its positions do not fit its atoms")
    fits = np.abs(apart) <= MAX_SDF_COORDINATE  # NaN compares as False
    if not np.allclose(np.where(fits, apart, 0.0), positions, rtol=0, atol=1e-3):
        raise _UnreadableError("its positions contradict those of its atoms")
    return apart


def _v2000_atoms(lines: list[str]) -> list[list[str]]:
    """Symbol, x, y, z of the atoms; by columns, which may touch."""
    num_atoms = _as_count(lines[3][:3])
    if num_atoms is None:
        raise _UnreadableError(f"no number of atoms in {lines[3][:39]!r}")
    block = lines[4 : 4 + num_atoms]
    rows = [[line[31:34].strip(), line[:10], line[10:20], line[20:30]] for line in block]
    if len(rows) < num_atoms or any(
        not row[0] or line.startswith("M  ") for row, line in zip(rows, block, strict=True)
    ):
        raise _UnreadableError(f"breaks off before its {num_atoms} atoms")
    return rows


def _v3000_atoms(lines: list[str]) -> list[list[str]]:
    rows: list[list[str]] = []
    is_inside = is_complete = False
    for line in lines[4:]:
        if line.startswith("M  V30 BEGIN ATOM"):
            is_inside = True
        elif line.startswith("M  V30 END ATOM"):
            is_complete = True
            break
        elif is_inside:
            words = line.split()
            if len(words) < 7:
                raise _UnreadableError(f"no atom in {line[:39]!r}")
            rows.append(words[3:7])
    if not is_complete:
        raise _UnreadableError("breaks off before the end of its atoms")
    return rows


def _sdf_charge(lines: list[str]) -> int:
    """Sum of the formal charges; lines of charges replace those beside the atoms."""
    if "V3000" in lines[3]:
        return sum(int(found[1]) for line in lines[4:] if (found := re.search(r"\bCHG=([-+]?\d{1,2})\b", line)))
    end = next((number for number, line in enumerate(lines) if line.startswith(("M  END", ">"))), len(lines))
    told = [line.split()[4::2] for line in lines[4:end] if line.startswith("M  CHG")]
    if told:
        return sum(int(word) for words in told for word in words if re.fullmatch(r"[-+]?\d{1,2}", word))
    num_atoms = _as_count(lines[3][:3]) or 0
    codes = [_as_count(line[36:39]) or 0 for line in lines[4 : 4 + num_atoms]]
    return sum(4 - code for code in codes if 1 <= code <= 7)  # 4 is a radical, without a charge


def _property(lines: list[str], name: str) -> list[str] | None:
    """Words of a data item of an SDF."""
    for number, line in enumerate(lines):
        if line.startswith(">") and f"<{name}>" in line:
            return lines[number + 1].split() if number + 1 < len(lines) else []
    return None


def _parse_xyz(lines: list[str]) -> Entry:
    num_atoms = _as_count(lines[0])
    if num_atoms is None:
        raise _UnreadableError(f"no number of atoms in {lines[0][:39]!r}")
    rows = [line.split() for line in lines[2:]]
    if len(rows) < num_atoms or len(lines) < 2:
        raise _UnreadableError(f"breaks off before its {num_atoms} atoms")
    species, pos, hydrogens = _columns(lines[1])
    if any(len(row) < max(species + 1, pos + 3, (hydrogens or 0) + 1) for row in rows):
        raise _UnreadableError("an atom has too few columns")
    positions = _as_positions([row[pos : pos + 3] for row in rows])
    counts = None if hydrogens is None else [row[hydrogens] for row in rows]
    charge = re.search(r"(?i)\bcharge=\"?([-+]?\d{1,2})\b(?![.\d])", lines[1])
    return _as_entry([row[species] for row in rows], positions, counts, int(charge[1]) if charge else 0)


def _columns(comment: str) -> tuple[int, int, int | None]:
    """Columns of species, of x, and of counted hydrogens if there are some; extended XYZ names them."""
    named = re.search(r'Properties="?([^\s"]+)', comment)
    if named is None:
        return 0, 1, None
    parts = named[1].split(":")
    places: dict[str, int] = {}
    column = 0
    for name, size in zip(parts[0::3], parts[2::3], strict=False):
        places[name] = column
        column += _as_count(size) or 1
    species = places.get("species", places.get("Z"))
    if species is None or "pos" not in places:
        raise _UnreadableError("its Properties name no species and pos")
    return species, places["pos"], places.get("num_hydrogens")


def _as_positions(rows: list[list[str]]) -> _Positions:
    try:
        return np.array([[_as_number(word) for word in row] for row in rows], dtype=np.float64).reshape(-1, 3)
    except ValueError as error:
        raise _UnreadableError(f"a coordinate is no number ({error})") from error


def _as_number(word: str) -> float:
    """A number, also with the exponents of Fortran (0.1D+01) and of QM9's own files (-8.7*^-6)."""
    try:
        return float(word)
    except ValueError:
        return float(re.sub(r"\*\^|(?<=[0-9.])[dD](?=[-+0-9])", "e", word))


def _as_entry(symbols: list[str], positions: _Positions, counts: list[str] | None, charge: int) -> Entry:
    table = _atomic_numbers()
    numbers = [table.get(symbol.capitalize(), 0) for symbol in symbols]
    hydrogens = None if counts is None else [_as_count(count) for count in counts]
    is_counted = hydrogens is None or (len(hydrogens) == len(symbols) and None not in hydrogens)
    if len(positions) != len(symbols) or not is_counted:
        raise _UnreadableError("its num_hydrogens or positions do not fit its atoms")
    molecule = Molecule(
        np.array(numbers, dtype=np.int64),
        positions,
        None if hydrogens is None else np.array(hydrogens, dtype=np.int64),
        charge=charge,
    )
    return Entry(molecule, [_symbol(number) or symbol for number, symbol in zip(numbers, symbols, strict=True)])


@cache
def _symbol(atomic_number: int) -> str:
    return str(Chem.GetPeriodicTable().GetElementSymbol(atomic_number)) if atomic_number else ""


@cache
def _atomic_numbers() -> dict[str, int]:
    """Atomic numbers by symbol or by themselves, as some XYZ files have them; heavy hydrogen is hydrogen."""
    table = Chem.GetPeriodicTable()
    numbers = {table.GetElementSymbol(number): number for number in range(1, 119)}
    return numbers | {"D": 1, "T": 1} | {str(number): number for number in range(1, 119)}
