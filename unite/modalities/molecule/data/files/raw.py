"""Molecules of any file in the form that QM9's table is built of, where such a file is given in place of a CSV."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from unite.console import info
from unite.modalities.molecule.data.files.records import ReadSettings, RefusedError, read
from unite.modalities.molecule.data.files.selection import described
from unite.modalities.molecule.data.files.sources import count_records, find_sources, read_records
from unite.modalities.molecule.data.qm9.table import RawMolecule
from unite.modalities.molecule.files.suffixes import STRUCTURES


def are_molecule_files(paths: Sequence[Path]) -> bool:
    """Whether these are SDF, MOL or XYZ files by their names."""
    return all(path.suffix.lower() in STRUCTURES for path in paths)


def read_raw_molecules(paths: Sequence[Path]) -> Iterator[RawMolecule]:
    """The first shape of each molecule, numbered as it comes; how many are left out is printed at the end, by reason.

    Raises:
        UserError: A file cannot be read.
    """
    files = find_sources([str(path) for path in paths], "data.csv_files")
    refused: Counter[str] = Counter()
    number = 0
    with tqdm(total=count_records(files), desc="reading molecules", unit="mol", smoothing=0.1) as bar:
        for file in files:
            for record in read_records(file, smiles_column=None):
                number += 1
                bar.update()
                try:
                    found = read(record, ReadSettings(num_conformers=1))
                except RefusedError as error:
                    refused[error.reason] += 1
                    continue
                positions = found.positions[0].ravel().tolist()
                yield RawMolecule(number, found.smiles, found.atomic_numbers.tolist(), positions)
    if refused:
        info(f"left out: {described(refused)}")
