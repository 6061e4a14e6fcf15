"""Properties of the molecules of QM9 as it has them (B3LYP/6-31G(2df,p)), kept in a file beside the cache."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from unite.errors import UserError
from unite.files import open_text
from unite.modalities.molecule.data.qm9.chunks import fingerprint
from unite.modalities.molecule.data.qm9.table import MoleculeTable, load_or_make

HARTREE: Final = 27.211386246
"""eV (CODATA 2018)."""


class Source(NamedTuple):
    """Where a property is read from.

    Attributes:
        column: Column of qm9pack's files.
        unit: Factor from the unit of that column to ours.
        place: Column of ``y`` of PyG's data set, which has it in our unit.
    """

    column: str
    unit: float
    place: int


PROPERTIES: Final = {
    "mu": Source("Dipole_debye", 1.0, 0),
    "alpha": Source("Polarizability_bohr3", 1.0, 1),
    "homo": Source("HOMO_au", HARTREE, 2),
    "lumo": Source("LUMO_au", HARTREE, 3),
    "gap": Source("HOMO_LUMO_gap_au", HARTREE, 4),
    "cv": Source("Heatcapacity_Cv_cal_mol_K", 1.0, 11),
}
"""Dipole moment (D), polarizability (bohr³), energies of HOMO, LUMO and their gap (eV), heat capacity (cal/(mol K))."""


def load_or_read(table: MoleculeTable, folder: Path, csv_files: list[Path], pyg_folder: Path | None) -> Tensor:
    """All properties of the molecules of a table, read from a file in ``folder``, or from the sources and kept there.

    Args:
        table: The molecules, with hydrogens as atoms.
        folder: Where the file lies.
        csv_files: Files of the data set in the layout of qm9pack.
        pyg_folder: Folder of PyG's download in place of them; None takes the files.

    Returns:
        Columns in the order of :data:`PROPERTIES`, shape (N, 6); NaN where a molecule has none.

    Raises:
        UserError: The sources are not there or cannot be read, or ``folder`` cannot be written to.
    """
    molecules = {"z": table.z, "pos": table.pos, "ptr": table.ptr}
    path = folder / f"properties-{len(table)}-{fingerprint(molecules)}.safetensors"

    def read() -> dict[str, Tensor]:
        found = dict(_rows_of_pyg(pyg_folder) if pyg_folder else _rows_of_csv(csv_files))
        nothing = [torch.nan] * len(PROPERTIES)
        rows = [found.get(number, nothing) for number in table.molecule_id.tolist()]
        return {"properties": torch.tensor(rows, dtype=torch.float32)}

    return load_or_make(path, read, "the properties of QM9", "reading %s again")["properties"]


def _rows_of_csv(files: list[Path]) -> Iterator[tuple[int, list[float]]]:
    """Number and properties of each molecule of files in the layout of qm9pack."""
    with tqdm(desc="reading properties", unit="mol") as bar:
        for file in files:
            with open_text(file, newline="") as lines:
                reader = csv.DictReader(lines)
                known = reader.fieldnames or ()
                for row in reader:
                    try:
                        values = [
                            float(row[source.column]) * source.unit if source.column in known else torch.nan
                            for source in PROPERTIES.values()
                        ]
                        yield int(row["Index"]), values
                    except (KeyError, TypeError, ValueError) as error:
                        raise UserError(f"{file}, line {reader.line_num}: {error}; correct or remove it") from error
                    bar.update()


def _rows_of_pyg(folder: Path) -> Iterator[tuple[int, list[float]]]:
    """Number and properties of each molecule of PyG's download."""
    from torch_geometric.datasets import QM9  # slow to import, and only this source needs it

    try:
        dataset = QM9(str(folder), force_reload=True)  # as read_pyg: its files may be a stranger's
    except OSError as error:
        raise UserError(f"cannot read the properties of PyG's QM9 in {folder}: {error}") from error
    for data in tqdm(dataset, desc="reading properties", unit="mol"):
        yield int(data.idx) + 1, [float(data.y[0, source.place]) for source in PROPERTIES.values()]
