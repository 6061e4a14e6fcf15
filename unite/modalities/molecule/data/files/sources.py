"""Molecule files as records of text, one for each molecule: found by path, folder or pattern, and unpacked on the way.

Nothing here knows chemistry: a record may be anything. :mod:`~unite.modalities.molecule.data.files.records` reads it.
"""

import csv
import glob
import gzip
import io
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, NamedTuple, TextIO

from unite.errors import UserError, on_one_line, require_packages
from unite.files import open_text
from unite.modalities.molecule.data.files.packed import read_geom_msgpack, read_geom_pickle, read_pyg
from unite.modalities.molecule.files.reading import cut
from unite.modalities.molecule.files.suffixes import FORMATS, Format, StructureFormat

_WHOLE_FORMATS: Final[dict[str, tuple[StructureFormat, Callable[[Path], Iterator[list[str]]]]]] = {
    "pyg": ("xyz", read_pyg),
    "msgpack": ("xyz", read_geom_msgpack),
    "pickle": ("sdf", read_geom_pickle),
}  # files that are no text, by the form of the records that come of them
_ROWS_AT_ONCE: Final = 10_000  # of a Parquet file in memory


class Record(NamedTuple):
    """A molecule as a file has it.

    Attributes:
        file: Name of the file.
        number: Place in the file, from 1; of a table, the row.
        format: ``sdf``, ``xyz`` or ``smiles``: how to read the lines.
        lines: The text.
        fields: Its other values in the file, by name of a column.
    """

    file: str
    number: int
    format: Literal["sdf", "xyz", "smiles"]
    lines: list[str]
    fields: Mapping[str, str]


class File(NamedTuple):
    """A file of molecules, by itself or within a zip archive.

    Attributes:
        path: The file or the archive.
        format: What it holds.
        member: Name within the archive; empty for a file by itself.
    """

    path: Path
    format: Format
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)


def find_sources(paths: Sequence[str], option: str = "data.path") -> list[File]:
    """The files that paths name: files, folders with their subfolders, and patterns such as ``part_*.sdf``, by name.

    Args:
        paths: What the user gave.
        option: How the user calls it.

    Raises:
        UserError: One names nothing, or a file of no known format.
    """
    found: list[File] = []
    for text in paths:
        path = Path(text).expanduser()
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if _is_visible(file.relative_to(path)) and file.is_file())
            files = [file for item in inside for file in _files_of(item)]
            if not files:
                raise UserError(f"{option} {text} has no molecule files ({_known()})")
        else:
            matches = [path] if path.is_file() else [Path(match) for match in sorted(glob.glob(str(path)))]
            if not matches:
                raise UserError(f"{option} is {text}, but there is no such file, folder or pattern")
            files = [file for match in matches for file in _files_of(match)]
            if not files:
                raise UserError(f"{option} is {text}, which is no molecule file by its name; known are {_known()}")
        found += files
    return list(dict.fromkeys(found))


def _known() -> str:
    return f"{', '.join(FORMATS)}; those that are text also with .gz or in a .zip"


def _is_visible(path: Path) -> bool:
    return not any(part.startswith((".", "__MACOSX")) for part in path.parts)


def _files_of(path: Path) -> list[File]:
    """The file if its name says what it holds, or the members of an archive of which this is so."""
    if path.suffix.lower() != ".zip":
        format_ = _format_of(path)
        is_setting = format_ == "pyg" and path.stem in ("pre_filter", "pre_transform")  # beside PyG's data.pt
        return [] if format_ is None or is_setting else [File(path, format_)]
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in sorted(archive.namelist()) if _is_visible(Path(name))]
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be unpacked ({error})") from error
    formats = {name: format_ for name in names if (format_ := _format_of(Path(name))) is not None}
    return [File(path, format_, name) for name, format_ in formats.items() if _is_text(format_)]


def _format_of(path: Path) -> Format | None:
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    format_ = FORMATS.get(name.suffix.lower())
    return None if format_ is None or (name != path and not _is_text(format_)) else format_


def _is_text(format_: Format) -> bool:
    return format_ != "parquet" and format_ not in _WHOLE_FORMATS


@contextmanager
def _opened(file: File) -> Iterator[TextIO]:
    """The text of a file, unpacked as it is read."""
    if file.member:
        with zipfile.ZipFile(file.path) as archive, archive.open(file.member) as content:
            packed = gzip.GzipFile(fileobj=content) if file.member.lower().endswith(".gz") else content
            yield io.TextIOWrapper(packed, encoding="utf-8-sig", errors="replace", newline="")
    elif file.path.suffix.lower() == ".gz":
        with gzip.open(file.path, "rt", encoding="utf-8-sig", errors="replace", newline="") as lines:
            yield lines
    else:
        with open_text(file.path, newline="", errors="replace") as lines:
            yield lines


def read_records(file: File, smiles_column: str | None) -> Iterator[Record]:
    """The records of a file, one after another; it is never held in memory as a whole.

    Args:
        file: The file.
        smiles_column: Column of SMILES in a table; None for one called so.

    Raises:
        UserError: It cannot be read, or lacks the column.
    """
    try:
        if file.format == "parquet":
            yield from _rows_of_parquet(file, smiles_column)
            return
        if file.format in _WHOLE_FORMATS:
            form, read = _WHOLE_FORMATS[file.format]
            for number, lines_ in enumerate(read(file.path), start=1):
                yield Record(str(file), number, form, lines_, {})
            return
        with _opened(file) as lines:
            if file.format == "csv":
                yield from _rows_of_csv(file, lines, smiles_column)
            elif file.format == "smi":
                yield from _lines_of_smiles(file, lines)
            elif file.format == "sdf" or file.format == "xyz":
                for number, record in enumerate(cut(lines, file.format), start=1):
                    yield Record(str(file), number, file.format, record, {})
    except (OSError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    except csv.Error as error:
        raise UserError(f"{file} is no table: {error}") from error


def _lines_of_smiles(file: File, lines: TextIO) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if words and not (number == 1 and words[0].lower() in ("smiles", "canonical_smiles")):
            yield Record(str(file), number, "smiles", words[:1], {})


def _rows_of_csv(file: File, lines: TextIO, smiles_column: str | None) -> Iterator[Record]:
    first = lines.readline()
    delimiter = max("\t;,", key=first.count)
    header = next(csv.reader([first], delimiter=delimiter), [])
    place = _smiles_place([name.strip() for name in header], smiles_column, file)
    for number, row in enumerate(csv.reader(lines, delimiter=delimiter), start=1):
        if row:
            fields = {name.strip(): value for name, value in zip(header, row, strict=False)}
            smiles = row[place].strip() if place < len(row) else ""
            yield Record(str(file), number, "smiles", [smiles], _others(fields, header[place].strip()))


def _rows_of_parquet(file: File, smiles_column: str | None) -> Iterator[Record]:
    require_packages(str(file), "parquet", "pyarrow")
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        table = ParquetFile(file.path)
        names = table.schema_arrow.names
        column = names[_smiles_place(names, smiles_column, file)]
        number = 0
        for batch in table.iter_batches(_ROWS_AT_ONCE):
            for row in batch.to_pylist():
                number += 1
                fields = {name: str(value) for name, value in row.items() if isinstance(value, int | float | str)}
                yield Record(str(file), number, "smiles", [fields.get(column, "")], _others(fields, column))
    except ArrowException as error:
        raise UserError(f"cannot read {file}: {on_one_line(error)}") from error


def _others(fields: Mapping[str, str], smiles_column: str) -> dict[str, str]:
    return {name: value for name, value in fields.items() if name != smiles_column}


def _smiles_place(header: Sequence[str], asked: str | None, file: File) -> int:
    """Number of the column of SMILES.

    Raises:
        UserError: There is none of that name, or none that is called so.
    """
    columns = ", ".join(header[:20]) or "no columns"
    if asked is not None:
        if asked not in header:
            raise UserError(f"smiles_column is {asked!r}, but {file} has {columns}")
        return header.index(asked)
    called = [place for place, name in enumerate(header) if re.fullmatch(r"(canonical_?|rdkit_?)?smiles", name.lower())]
    if not called:
        raise UserError(f"{file} has no column called smiles; name one in smiles_column: {columns}")
    return called[0]


def count_records(files: Sequence[File]) -> int | None:
    """About how many records the files have, for a progress bar; None where counting would mean reading them."""
    total = 0
    for file in files:
        if file.format in ("xyz", "parquet", *_WHOLE_FORMATS) or file.member or file.path.suffix.lower() == ".gz":
            return None
        mark = b"$$$$" if file.format == "sdf" else b"\n"
        with file.path.open("rb") as content:
            total += max(sum(block.count(mark) for block in iter(lambda: content.read(1 << 20), b"")), 1)
    return total
