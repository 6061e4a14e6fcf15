"""Crystals out of files from any source: every record counts, a broken one with the reason.

CIF and POSCAR are read by pymatgen, extended XYZ by ASE. Parsing happens in processes that may crash or take too long.
"""

import re
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np

from unite.errors import UserError, require_packages
from unite.files import open_text
from unite.modalities.crystal.crystal import (
    EXTRA,
    MIN_VOLUME,
    Crystal,
    UnusableCrystalError,
    cell_matrix,
    from_ase,
    from_pymatgen,
)
from unite.modalities.crystal.files.writing import CELL_NAMES
from unite.modalities.crystal.metrics.validity import MAX_ATOMS

Format = Literal["cif", "extxyz", "poscar"]

SUFFIXES: Final[dict[str, Format]] = {".cif": "cif", ".extxyz": "extxyz", ".xyz": "extxyz", ".vasp": "poscar"}
MAX_BYTES: Final = 2_000_000
"""Of a record; a larger one is ``too_large``: pymatgen takes seconds for each MB."""


class Record(NamedTuple):
    """One structure of a file, unread.

    Attributes:
        file: The file.
        number: Its place there, from 1.
        format: How it is written.
        text: What is written.
    """

    file: str
    number: int
    format: Format
    text: str


def find_files(path: Path) -> list[Path]:
    """The file, or the files of a folder, that may hold crystals.

    Raises:
        UserError: There are none.
    """
    if path.is_file():
        if format_of(path) is None:
            raise UserError(f"{path} is none of {', '.join(SUFFIXES)} and POSCAR, which hold crystals")
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} is neither a file nor a folder")
    files = sorted(file for file in path.rglob("*") if file.is_file() and format_of(file))
    # Samples are written in both formats; each crystal counts once.
    if ours := [file for file in files if not (file.suffix == ".extxyz" and file.with_suffix(".cif") in files)]:
        return ours
    raise UserError(f"{path} has no files of {', '.join(SUFFIXES)} or POSCAR")


def format_of(path: Path) -> Format | None:
    """How a file is written, by its name; None of one that holds no crystals."""
    if re.fullmatch(r"(POSCAR|CONTCAR)([._-].*)?", path.name):
        return "poscar"
    return SUFFIXES.get(path.suffix.lower())


def read_records(files: list[Path]) -> Iterator[Record]:
    """The structures of files, one after another, not parsed."""
    for file in files:
        kind = format_of(file)
        assert kind is not None
        split = {"cif": _cif_blocks, "extxyz": _frames, "poscar": lambda lines: iter([list(lines)])}[kind]
        with open_text(file, errors="replace") as lines:
            for number, block in enumerate(split(lines), 1):
                yield Record(str(file), number, kind, "".join(block))


def _cif_blocks(lines: Iterator[str]) -> Iterator[list[str]]:
    """Data blocks with atoms; if no block of a file has any, the file as a whole."""
    blocks: list[list[str]] = [[]]
    is_text = False
    for line in lines:
        if line.startswith(";"):
            is_text = not is_text
        if not is_text and line[:5].lower() == "data_":
            blocks.append([])
        blocks[-1].append(line)
    with_atoms = [block for block in blocks if any("_atom_site" in line for line in block)]
    yield from with_atoms or [[line for block in blocks for line in block]]


def _frames(lines: Iterator[str]) -> Iterator[list[str]]:
    """Frames of an XYZ file: a number, a comment, and so many lines; what follows a wrong number is one frame."""
    for line in lines:
        if not line.strip():
            continue
        size = int(line) if line.strip().isdecimal() else None
        if size is None:
            yield [line, *lines]
            return
        yield [line, *islice(lines, size + 1)]


def parse(record: Record) -> Crystal:
    """The crystal of a record.

    Raises:
        UnusableCrystalError: There is none, or it cannot be used.
        UserError: What reads the format is not installed.
    """
    if len(record.text) > MAX_BYTES:
        raise UnusableCrystalError("too_large", f"{len(record.text):,} bytes")
    name = f"{Path(record.file).name}:{record.number}"
    require_packages(f"reading {record.format}", EXTRA, "ase" if record.format == "extxyz" else "pymatgen.core")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            crystal = {"cif": parse_cif, "extxyz": _parse_extxyz, "poscar": _parse_poscar}[record.format](record.text)
    except UserError:
        raise
    except Exception as error:  # whatever a parser trips over is the file's fault
        raise UnusableCrystalError("unreadable", " ".join(f"{error}".split())[:200] or type(error).__name__) from error
    if crystal.num_atoms > MAX_ATOMS:
        raise UnusableCrystalError("too_large", f"{crystal.num_atoms:,} atoms")
    return Crystal(crystal.atomic_numbers, crystal.fractional, crystal.cell, name)


def parse_cif(text: str) -> Crystal:
    """The first structure of a CIF, with all atoms of its cell as it is written.

    Raises:
        UnusableCrystalError: It has no cell, or a site that is not one whole atom.
        Exception: Whatever pymatgen raises.
    """
    from pymatgen.io.cif import CifParser

    found = {name: re.search(rf"^_cell_{name}\s+'?([-+\d.eE]+)", text, re.MULTILINE) for name in CELL_NAMES}
    if missing := [name for name, value in found.items() if value is None]:
        raise UnusableCrystalError("no_cell", f"no number _cell_{missing[0]}")
    volume = abs(np.linalg.det(cell_matrix(np.array([float(value[1]) for value in found.values() if value]))))
    if volume < MIN_VOLUME:
        raise UnusableCrystalError("no_volume", f"its cell has {volume:.3g} Å³")
    if (num_sites := _num_sites(text)) > MAX_ATOMS:
        raise UnusableCrystalError("too_large", f"{num_sites:,} sites")
    structure = CifParser.from_str(text).parse_structures(primitive=False, on_error="raise")[0]
    return from_pymatgen(structure)


def _num_sites(text: str) -> int:
    """Lines of the loop of atom sites: what takes pymatgen long is refused before."""
    _, _, rows = text.rpartition("_atom_site_")  # the last column's name, then the rows
    rows = re.split(r"^\s*(?:_|loop_|data_|#)", rows.partition("\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return len(rows.split("\n"))


def _parse_extxyz(text: str) -> Crystal:
    import io

    import ase.io

    size = text.split(maxsplit=1)[0]
    if size.isdecimal() and int(size) > MAX_ATOMS:
        raise UnusableCrystalError("too_large", f"{int(size):,} atoms")
    return from_ase(ase.io.read(io.StringIO(text), format="extxyz", index=0))


def _parse_poscar(text: str) -> Crystal:
    from pymatgen.io.vasp.inputs import Poscar

    return from_pymatgen(Poscar.from_str(text).structure)
