"""A record of a file becomes a molecule, or the name of the reason why it does not.

Runs in processes of its own, so it uses no torch.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
from rdkit import Chem, rdBase
from rdkit.Chem.Scaffolds import MurckoScaffold

from unite.errors import on_one_line
from unite.modalities.molecule.data.files.sources import Record
from unite.modalities.molecule.files import reading
from unite.modalities.molecule.files.conformers import MAX_ATOMS, make_conformers
from unite.modalities.molecule.graph import BOND_TYPES
from unite.modalities.molecule.perception.molecule import Molecule, hash_key, molecule_key
from unite.modalities.molecule.perception.perceive import perceive
from unite.modalities.molecule.perception.sanitizing import TooManyRingsError, sanitize

MAX_READ_ATOMS: Final = 1000
"""Atoms, hydrogens among them, beyond which a record is no molecule for this package."""

REFUSALS: Final = {
    "unreadable": "cannot be read",
    "empty": "without an atom",
    "unknown_element": "with an atom of no element, such as R or *",
    "sanitization": "with valences or rings that RDKit refuses",
    "mixture": "of several pieces: salts, solvents, mixtures",
    "nonfinite": "with a position that is no number",
    "too_large_to_read": f"of more than {MAX_READ_ATOMS} atoms",
    "too_large_for_conformers": f"of more than {MAX_ATOMS} atoms and without a shape",
    "no_conformer": "for which ETKDG finds no shape",
    "too_slow": "that took too long",
    "crashed": "that ended the process in which they were read",
}
"""Why a record is left out, whatever the model."""

GRAPH_FAULTS: Final = ("", "charged", "radical", "bond_type", "no_bonds")
"""Why a molecule has no place in a model of bonds, though its shape has one in a model of positions."""

_MIN_DISTANCE: Final = 0.1  # Å; nearer ones are no shape: zeros, or a drawing's
_NUMBER: Final = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


class RefusedError(Exception):
    """A record is no molecule to train on.

    Args:
        reason: One of :data:`REFUSALS`.
        detail: What there is to say about it.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class ReadSettings:
    """What of records becomes of them.

    Attributes:
        num_conformers: Conformers to make where a record has no shape; 0 leaves all shapes out.
        seed: Seed of the conformers.
        caption: Data item of an SDF, or column of a table, that is the caption; None for none.
    """

    num_conformers: int
    seed: int = 0
    caption: str | None = None


@dataclass
class Found:
    """A molecule.

    Attributes:
        atomic_numbers: Atomic numbers, shape (A,), hydrogens among the atoms.
        charges: Formal charges, shape (A,).
        bonds: Bonds as two atoms and an index into ``BOND_TYPES``, shape (bonds, 3).
        positions: Conformers in Å, shape (conformers, A, 3); no conformer where shapes are left out.
        key: Hashed key; 0 if there are no bonds.
        scaffold: Hashed Murcko scaffold; of molecules without a ring that of the empty one, 0 without bonds.
        smiles: SMILES, or nothing if there are no bonds.
        fault: One of :data:`GRAPH_FAULTS`.
        notes: What was done to it: ``hydrogens_added``, ``conformers_made``, ``not_relaxed``, ``bonds_perceived``.
        fields: Numbers of the molecule in the file.
        caption: Its caption, or nothing.
    """

    atomic_numbers: npt.NDArray[np.int64]
    charges: npt.NDArray[np.int64]
    bonds: npt.NDArray[np.int64]
    positions: npt.NDArray[np.float32]
    key: int = 0
    scaffold: int = 0
    smiles: str = ""
    fault: str = ""
    notes: list[str] = field(default_factory=list)
    fields: dict[str, float] = field(default_factory=dict)
    caption: str = ""


def read(record: Record, settings: ReadSettings) -> Found:
    """The molecule of a record.

    Raises:
        RefusedError: There is none, for one of :data:`REFUSALS`.
    """
    with rdBase.BlockLogs():
        if record.format == "smiles":
            found = _with_shapes(_from_smiles(record.lines[0]), settings)
        elif record.format == "sdf":
            found = _from_sdf(record, settings)
        else:
            found = _from_positions(reading.Record(record.file, record.number, "xyz", record.lines), settings)
    fields = _fields_of(record)
    found.fields = numeric_fields(fields)
    if settings.caption is not None:
        found.caption = " ".join(fields.get(settings.caption, "").split())
    return found


def _from_smiles(text: str) -> Chem.Mol:
    mol = Chem.MolFromSmiles(text, sanitize=False) if text else None
    if mol is None:
        raise RefusedError("unreadable", f"no SMILES: {text[:60]!r}" if text else "no SMILES")
    return mol


def _from_sdf(record: Record, settings: ReadSettings) -> Found:
    """With the bonds that it has; loose atoms with a shape are read as those of an XYZ file."""
    end = next((number for number, line in enumerate(record.lines) if line.startswith("M  END")), len(record.lines))
    mol = Chem.MolFromMolBlock("\n".join([*record.lines[:end], "M  END", ""]), sanitize=False, removeHs=False)
    if mol is None:
        raise RefusedError("unreadable", reading.parse(_as_sdf(record)).error or "RDKit cannot read it")
    if mol.GetNumAtoms() > 1 and mol.GetNumBonds() == 0 and _has_shape(mol):
        return _from_positions(_as_sdf(record), settings)
    return _with_shapes(mol, settings)


def _as_sdf(record: Record) -> reading.Record:
    return reading.Record(record.file, record.number, "sdf", record.lines)


def _has_shape(mol: Chem.Mol) -> bool:
    """Whether positions are those of a molecule in space, not of a drawing or forgotten."""
    if not mol.GetNumConformers() or not mol.GetConformer().Is3D():
        return False
    positions = mol.GetConformer().GetPositions()
    return not np.isfinite(positions).all() or _smallest_distance(positions) > _MIN_DISTANCE


def _smallest_distance(positions: npt.NDArray[np.floating]) -> float:
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    return float(distances[np.triu_indices(len(positions), 1)].min(initial=math.inf))


def _with_shapes(mol: Chem.Mol, settings: ReadSettings) -> Found:
    """Sanitized, with all hydrogens as atoms, and the shape that it has, or shapes that are made."""
    _require_readable(mol)
    try:
        sanitize(mol)
    except TooManyRingsError as error:
        raise RefusedError("too_slow", str(error)) from error
    except (ValueError, RuntimeError) as error:
        raise RefusedError("sanitization", on_one_line(error)) from error
    if (num_pieces := len(Chem.GetMolFrags(mol))) > 1:
        raise RefusedError("mixture", f"{num_pieces} pieces: {Chem.MolToSmiles(mol)[:80]}")
    has_shape = _has_shape(mol)
    complete = Chem.AddHs(mol, addCoords=has_shape)
    _require_size(complete.GetNumAtoms(), MAX_READ_ATOMS, "too_large_to_read")
    notes = ["hydrogens_added"] if has_shape and complete.GetNumAtoms() > mol.GetNumAtoms() else []
    if settings.num_conformers == 0:
        positions = np.zeros((0, complete.GetNumAtoms(), 3), dtype=np.float32)
    elif has_shape:
        positions = complete.GetConformer().GetPositions().astype(np.float32)[None]
        if not np.isfinite(positions).all():
            raise RefusedError("nonfinite")
    else:
        _require_size(complete.GetNumAtoms(), MAX_ATOMS, "too_large_for_conformers")
        made = make_conformers(complete, settings.num_conformers, settings.seed)
        if not len(made.positions):
            raise RefusedError("no_conformer", Chem.MolToSmiles(mol)[:80])
        positions = made.positions
        notes += ["conformers_made"] + ([] if made.is_relaxed else ["not_relaxed"])
    return _found(complete, positions, notes)


def _require_readable(mol: Chem.Mol) -> None:
    if mol.GetNumAtoms() == 0:
        raise RefusedError("empty")
    _require_size(mol.GetNumAtoms(), MAX_READ_ATOMS, "too_large_to_read")
    if unknown := [atom for atom in mol.GetAtoms() if atom.GetAtomicNum() == 0 or atom.HasQuery()]:
        raise RefusedError("unknown_element", unknown[0].GetSymbol())


def _require_size(num_atoms: int, largest: int, reason: str) -> None:
    if num_atoms > largest:
        raise RefusedError(reason, f"{num_atoms} atoms")


def _found(mol: Chem.Mol, positions: npt.NDArray[np.float32], notes: list[str]) -> Found:
    """The data of a sanitized molecule with all hydrogens."""
    index_of = {name: number for number, name in enumerate(BOND_TYPES)}
    names = [str(bond.GetBondType()).lower() for bond in mol.GetBonds()]
    bonds = [
        (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), index_of.get(name, 0))
        for bond, name in zip(mol.GetBonds(), names, strict=True)
    ]
    charges = np.array([atom.GetFormalCharge() for atom in mol.GetAtoms()], dtype=np.int64)
    fault = ""
    if any(kind == 0 for _, _, kind in bonds):
        fault = "bond_type"
    elif any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms()):
        fault = "radical"
    elif charges.sum():
        fault = "charged"
    key = molecule_key(mol)
    return Found(
        atomic_numbers=np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.int64),
        charges=charges,
        bonds=np.array(bonds, dtype=np.int64).reshape(-1, 3),
        positions=positions,
        key=hash_key(key),
        scaffold=hash_key(_scaffold(mol)),
        smiles=key,
        fault=fault,
        notes=notes,
    )


def _scaffold(mol: Chem.Mol) -> str:
    """SMILES of the Murcko scaffold: the rings and what links them; of a molecule without rings nothing."""
    flat = Chem.Mol(mol)
    Chem.RemoveStereochemistry(flat)
    return str(MurckoScaffold.MurckoScaffoldSmiles(mol=Chem.RemoveHs(flat)))


def _from_positions(record: reading.Record, settings: ReadSettings) -> Found:
    """With the bonds that perception finds, if it finds some."""
    entry = reading.parse(record)
    if entry.molecule is None:
        raise RefusedError("unreadable", entry.error)
    molecule = entry.molecule
    if molecule.num_hydrogens is not None:
        raise RefusedError("unreadable", "its hydrogens are counted, not placed")
    if len(molecule.atomic_numbers) == 0:
        raise RefusedError("empty")
    _require_size(len(molecule.atomic_numbers), MAX_READ_ATOMS, "too_large_to_read")
    if (unknown := np.flatnonzero(molecule.atomic_numbers == 0)).size:
        raise RefusedError("unknown_element", entry.symbols[unknown[0]])
    if not np.isfinite(molecule.positions).all():
        raise RefusedError("nonfinite")
    positions = molecule.positions.astype(np.float32)[None]
    perception = perceive(Molecule(molecule.atomic_numbers, molecule.positions))
    if perception.mol is not None:
        found = _found(perception.mol, positions, ["bonds_perceived"])
    elif settings.num_conformers == 0:
        raise RefusedError("unreadable", f"no bonds: {perception.reason}")
    else:
        no_bonds = np.zeros((0, 3), dtype=np.int64)
        found = Found(
            molecule.atomic_numbers, np.zeros_like(molecule.atomic_numbers), no_bonds, positions, fault="no_bonds"
        )
    found.positions = found.positions if settings.num_conformers else found.positions[:0]
    return found


def _fields_of(record: Record) -> Mapping[str, str]:
    """Data items of an SDF, ``key=value`` of the comment of an XYZ file, or the other columns of a table."""
    if record.format == "xyz" and len(record.lines) > 1:
        return dict(re.findall(rf"(\w+)=({_NUMBER})(?=\s|$)", record.lines[1]))
    if record.format != "sdf":
        return record.fields
    fields = {}
    for number, line in enumerate(record.lines[:-1]):
        if line.startswith(">") and (name := re.search(r"<(.+)>", line)):
            fields[name[1]] = record.lines[number + 1]
    return fields


def numeric_fields(fields: Mapping[str, str]) -> dict[str, float]:
    """Those fields that are numbers."""
    return {
        name: float(text) for name, text in fields.items() if re.fullmatch(rf"\s*{_NUMBER}\s*", text) and name.strip()
    }


def are_conformers(first: Found, second: Found) -> bool:
    """Whether two records are shapes of one molecule: the same atoms and bonds in the same order.

    Without bonds there is no telling, and shapes that were made of the same SMILES are the same shapes.
    """
    return (
        first.key == second.key != 0
        and "conformers_made" not in [*first.notes, *second.notes]
        and np.array_equal(first.atomic_numbers, second.atomic_numbers)
        and np.array_equal(first.charges, second.charges)
        and np.array_equal(first.bonds, second.bonds)
    )
