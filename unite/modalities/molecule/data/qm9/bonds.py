"""Bonds of QM9: perceived once from the coordinates with the strict protocol, and kept in a file beside the cache.

Made on demand only (`bonds: true` or `unite prepare qm9 --bonds`). Finished chunks are kept as they come, so that an
interrupted run continues. A manifest in JSON lists the molecules without bonds, and those whose bonds are not those of
the data set's SMILES.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rdkit import Chem, rdBase
from torch import Tensor

from unite.console import info, shown
from unite.engine.workers import Divisible, Failure, num_cpus
from unite.files.checked_json import write_checked_json
from unite.modalities.molecule.data.qm9.chunks import (
    MOLECULES_PER_CHUNK,
    fingerprint,
    one_by_one,
    perceive_chunks,
    perception_bar,
)
from unite.modalities.molecule.data.qm9.table import (
    DamagedCacheError,
    MoleculeTable,
    load_or_make,
    load_tensors,
    save_tensors,
)
from unite.modalities.molecule.graph import graph_from_mol
from unite.modalities.molecule.perception.molecule import Molecule, hash_key, molecule_key
from unite.modalities.molecule.perception.perceive import perceive_all
from unite.modalities.molecule.perception.sanitizing import has_too_many_rings


class Row(NamedTuple):
    """A molecule of the table.

    Attributes:
        molecule: Atoms and positions, hydrogens as atoms.
        smiles: SMILES of the data set.
        number: Number in the data set.
    """

    molecule: Molecule
    smiles: str
    number: int


@dataclass(frozen=True, eq=False)
class BondTable:
    """Bonds and charges of the molecules of a table of QM9, one after another.

    Attributes:
        ends: The two atoms of each directed edge, counted from the first atom of its molecule, shape (2, E), int64.
            Every bond is two edges, next to each other.
        types: Indices into :data:`~unite.modalities.molecule.graph.BOND_TYPES`, shape (E,), uint8.
        ptr: First edge of each molecule, and the end, shape (N + 1,), int64.
        charge: Formal charges, shape (A,), int8.
        key: Hashed key of each molecule, shape (N,), int64; 0 where it has no bonds.
        has_bonds: Whether perception accepted the molecule, shape (N,); the others have no edges.
    """

    ends: Tensor
    types: Tensor
    ptr: Tensor
    charge: Tensor
    key: Tensor
    has_bonds: Tensor

    def united_atoms(self, explicit: MoleculeTable) -> tuple["BondTable", Tensor]:
        """The same bonds without hydrogens.

        Args:
            explicit: The molecules with hydrogens as atoms.

        Returns:
            The bonds between heavy atoms, and the number of hydrogens bonded to each heavy atom, shape (heavy atoms,),
            uint8; 0 in molecules without bonds.
        """
        is_heavy = explicit.z > 1
        heavy_before = torch.cat([is_heavy.new_zeros(1, dtype=torch.long), is_heavy.cumsum(0)])
        owner = torch.repeat_interleave(torch.arange(len(self.key)), self.ptr.diff())  # (E,) molecule of each edge
        atoms = self.ends + explicit.ptr[owner]  # (2, E) in the whole table
        to_hydrogen = atoms[0][is_heavy[atoms[0]] & ~is_heavy[atoms[1]]]
        num_hydrogens = to_hydrogen.bincount(minlength=len(is_heavy))[is_heavy].to(torch.uint8)
        is_kept = is_heavy[atoms].all(0)
        kept_before = torch.cat([is_kept.new_zeros(1, dtype=torch.long), is_kept.cumsum(0)])
        first_heavy = heavy_before[explicit.ptr[owner[is_kept]]]
        bonds = BondTable(
            ends=heavy_before[atoms[:, is_kept]] - first_heavy,
            types=self.types[is_kept],
            ptr=kept_before[self.ptr],
            charge=self.charge[is_heavy],
            key=self.key,
            has_bonds=self.has_bonds,
        )
        return bonds, num_hydrogens


def load_or_perceive(table: MoleculeTable, folder: Path, molecules_per_chunk: int = MOLECULES_PER_CHUNK) -> BondTable:
    """Bonds of all molecules, read from a file in `folder`, or perceived and written to it.

    Interrupted, it keeps the chunks that are done, and the next call continues.

    Args:
        table: Molecules with hydrogens as atoms.
        folder: Where the file, its manifest and unfinished work lie.
        molecules_per_chunk: Molecules perceived before they are written down.

    Raises:
        UserError: If the bonds have to be perceived and `folder` cannot be written to.
    """
    path = bond_file(table, folder)
    parts = path.with_suffix(".parts")

    def perceive() -> dict[str, Tensor]:
        parts.mkdir(exist_ok=True)
        if len(table) > molecules_per_chunk:
            info(
                f"perceiving the bonds of {len(table):,} molecules, which a model of bonds learns from: a minute or "
                f"two for all of QM9 on two cores, once; they are kept in {shown(folder)}"
            )
        chunks = list(perceive_in_chunks(table, parts, molecules_per_chunk))
        remarks = [remark for chunk in chunks for remark in json.loads(chunk.pop("remarks").numpy().tobytes())]
        write_manifest(manifest_file(path), table, remarks)
        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}

    bonds = as_table(load_or_make(path, perceive, "the bonds of QM9", "perceiving the bonds of %s again"))
    shutil.rmtree(parts, ignore_errors=True)
    return bonds


def bond_file(table: MoleculeTable, folder: Path) -> Path:
    """File of the bonds; its name changes with the molecules, with the rules of perception, and with RDKit."""
    molecules = {"z": table.z, "pos": table.pos, "ptr": table.ptr}
    return folder / f"bonds-{len(table)}-{fingerprint(molecules)}.safetensors"


def manifest_file(path: Path) -> Path:
    """Manifest beside a file of bonds."""
    return path.with_suffix(".json")


def as_table(tensors: dict[str, Tensor]) -> BondTable:
    """Directed edges from the bonds in a file."""
    ends = torch.stack([tensors["first"], tensors["second"]]).long()  # (2, bonds)
    num_bonds = tensors["num_bonds"].long()
    return BondTable(
        ends=torch.stack([ends, ends.flip(0)], dim=-1).flatten(1),
        types=tensors["types"].repeat_interleave(2),
        ptr=2 * torch.cat([num_bonds.new_zeros(1), num_bonds.cumsum(0)]),
        charge=tensors["charge"],
        key=tensors["key"],
        has_bonds=tensors["has_bonds"].bool(),
    )


def perceive_in_chunks(table: MoleculeTable, parts: Path, molecules_per_chunk: int) -> Iterator[dict[str, Tensor]]:
    """What :func:`perceive_chunk` gives for all molecules in turn, with a progress bar; finished chunks are read."""
    bounds = [*range(0, len(table), molecules_per_chunk), len(table)]
    smiles = table.smiles
    missing: dict[Path, list[Row]] = {}
    files = [parts / f"{start}-{end}.safetensors" for start, end in pairwise(bounds)]
    for file, (start, end) in zip(files, pairwise(bounds), strict=True):
        if not is_readable(file):
            numbers = table.molecule_id[start:end].tolist()
            missing[file] = list(map(Row, as_molecules(table, start, end), smiles[start:end], numbers))
    num_processes = min(num_cpus(), len(missing))
    with perception_bar(missing, len(table), "perceiving bonds") as bar:
        kind = Divisible(perceive_chunk, one_by_one, without_bonds, join_chunks)
        perceive_chunks(kind, missing, save_chunk, bar, num_processes)
    for file in files:
        yield load_tensors(file)


def is_readable(file: Path) -> bool:
    """Whether a chunk is there and whole."""
    try:
        load_tensors(file)
    except DamagedCacheError:
        return False
    return True


def as_molecules(table: MoleculeTable, start: int, end: int) -> list[Molecule]:
    """The molecules in rows `start` to `end` as objects that perception takes."""
    first = int(table.ptr[start])
    atoms = slice(first, int(table.ptr[end]))
    numbers, positions = table.z[atoms].long().numpy(), table.pos[atoms].numpy()
    return [
        Molecule(numbers[low:high], positions[low:high])
        for low, high in pairwise((table.ptr[start : end + 1] - first).tolist())
    ]


def perceive_chunk(rows: list[Row]) -> dict[str, np.ndarray]:
    """Bonds of some molecules as flat arrays, and remarks on those that are not as one would expect.

    Runs in a process of its own, so it uses no torch.

    Args:
        rows: The molecules.
    """
    bonds: list[tuple[int, int, int]] = []
    num_bonds, charges, keys, has_bonds = [], [], [], []
    remarks = []
    for (molecule, given, number), found in zip(rows, perceive_all([row.molecule for row in rows]), strict=True):
        has_bonds.append(found.mol is not None)
        if found.mol is None:
            remarks.append({"molecule_id": number, "smiles": given, "reason": found.reason})
            num_bonds.append(0)
            charges.extend([0] * molecule.num_atoms)
            keys.append(0)
            continue
        graph = graph_from_mol(found.mol)
        bonds.extend(graph.bond_list)
        num_bonds.append(len(graph.bond_list))
        charges.extend(graph.charges.tolist())
        key = molecule_key(found.mol)
        keys.append(hash_key(key))
        if key != key_of_smiles(given):
            remarks.append({"molecule_id": number, "smiles": given, "perceived": key})
    flat = np.array(bonds, dtype=np.uint8).reshape(-1, 3)
    return {
        "first": flat[:, 0],
        "second": flat[:, 1],
        "types": flat[:, 2],
        "num_bonds": np.array(num_bonds, dtype=np.int64),
        "charge": np.array(charges, dtype=np.int8),
        "key": np.array(keys, dtype=np.int64),
        "has_bonds": np.array(has_bonds, dtype=np.uint8),
        "remarks": as_bytes(remarks),
    }


def without_bonds(rows: list[Row], failure: Failure) -> dict[str, np.ndarray]:
    """What :func:`perceive_chunk` would give of one molecule that ends the process in which it is perceived."""
    ((molecule, smiles, number),) = rows
    remark = {"molecule_id": number, "smiles": smiles, "reason": failure.reason, "detail": failure.detail}
    nothing = np.zeros(0, dtype=np.uint8)
    return {
        "first": nothing,
        "second": nothing,
        "types": nothing,
        "num_bonds": np.zeros(1, dtype=np.int64),
        "charge": np.zeros(molecule.num_atoms, dtype=np.int8),
        "key": np.zeros(1, dtype=np.int64),
        "has_bonds": np.zeros(1, dtype=np.uint8),
        "remarks": as_bytes([remark]),
    }


def join_chunks(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What :func:`perceive_chunk` would give of all molecules of the parts."""
    remarks = [remark for part in parts for remark in json.loads(part["remarks"].tobytes())]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "remarks"}
    return joined | {"remarks": as_bytes(remarks)}


def as_bytes(remarks: list[dict[str, object]]) -> np.ndarray:
    """Remarks as an array, as it is kept in a file of tensors."""
    return np.frombuffer(json.dumps(remarks).encode(), dtype=np.uint8)


def key_of_smiles(smiles: str) -> str | None:
    """Key of a molecule given as SMILES, or None if RDKit cannot read it, or would take too long."""
    with rdBase.BlockLogs():
        unchecked: Chem.Mol | None = Chem.MolFromSmiles(smiles, sanitize=False)
        if unchecked is None or has_too_many_rings(unchecked):
            return None
        mol: Chem.Mol | None = Chem.MolFromSmiles(smiles)
    return None if mol is None else molecule_key(mol)


def save_chunk(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a finished chunk."""
    save_tensors({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, file)


def write_manifest(path: Path, table: MoleculeTable, remarks: list[dict[str, object]]) -> None:
    """Say in JSON how many molecules have bonds, which have none, and which differ from the data set's SMILES."""
    without = [remark for remark in remarks if "reason" in remark]
    differing = [remark for remark in remarks if "perceived" in remark]
    manifest = {
        "num_molecules": len(table),
        "num_with_bonds": len(table) - len(without),
        "num_as_smiles": len(table) - len(remarks),
        "agreement": (len(table) - len(remarks)) / len(table),
        "without_bonds": without,
        "other_than_smiles": differing,
    }
    write_checked_json(path, manifest, indent=1)
