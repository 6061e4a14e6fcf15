"""Molecule files of any kind as records to be scored: those with positions, or SMILES."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from unite.errors import UserError
from unite.modalities.molecule.data.files import sources
from unite.modalities.molecule.files.reading import Record, find_files, read_records
from unite.modalities.molecule.files.suffixes import SMILES, STRUCTURES, StructureFormat


@dataclass(frozen=True)
class AnyFiles:
    """Files with positions (SDF, MOL, XYZ) or SMILES (.smi, .csv, .parquet), all of one sort.

    Attributes:
        formats: What each file holds, by its name.
        are_smiles: Whether they hold SMILES.
    """

    formats: dict[Path, str]
    are_smiles: bool
    _only: StructureFormat | None
    _packed: list[sources.File]
    _smiles_column: str | None

    @classmethod
    def find(cls, path: Path, only: StructureFormat | None, smiles_column: str | None, option: str = "PATH") -> Self:
        """The files that a path names.

        Args:
            path: A file, or a folder of files with positions.
            only: Take files of this format from a folder.
            smiles_column: Column of SMILES in tables; None for the one called so.
            option: How the user calls the path.

        Raises:
            UserError: It names none.
        """
        suffix = path.suffix.lower()
        if path.is_dir() or suffix in (*STRUCTURES, ".txt") or not path.is_file():
            files = find_files(path, only)
            return cls({file: STRUCTURES.get(file.suffix.lower(), only or "") for file in files}, False, only, [], None)
        packed = sources.find_sources([str(path)], option)
        are_smiles = {file.format in SMILES.values() for file in packed}
        if len(are_smiles) > 1:
            raise UserError(f"{option} {path} has SMILES and files with positions; give them apart")
        formats = {Path(str(file)): file.format for file in packed}
        return cls(dict(formats), are_smiles.pop(), only, packed, smiles_column)

    @property
    def paths(self) -> list[Path]:
        """The files as they lie on the disk; of members of an archive, the archive."""
        return list(dict.fromkeys(file.path for file in self._packed)) or list(self.formats)

    @property
    def smiles_column(self) -> str | None:
        """Column of SMILES in tables; None for the one called so."""
        return self._smiles_column

    def records(self) -> Iterator[Record]:
        """Their records, one after another.

        Raises:
            UserError: A file cannot be read, or has no column of SMILES.
        """
        if not self._packed:
            yield from read_records(list(self.formats), self._only)
        for file in self._packed:
            for record in sources.read_records(file, self._smiles_column):
                yield Record(record.file, record.number, record.format, record.lines)
