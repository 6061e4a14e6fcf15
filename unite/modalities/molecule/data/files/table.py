"""The table of molecules that training reads: flat, memory-mapped, with several conformers a molecule.

A *sample* is a conformer: its number determines the molecule and the shape. So a sampler that draws
numbers by a seed and an epoch draws shapes, and worker processes need nothing else.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from unite.files.checked import load_checked
from unite.files.tables import offsets, write_table
from unite.modalities.molecule.data.files.cache import TABLE_FILE
from unite.modalities.molecule.data.qm9.table import UNATTACHED, count_hydrogens

UNITED_FILE: Final = "united.safetensors"
_MOLECULES_AT_ONCE: Final = 4096
#: Columns with a value for each molecule that hydrogens have no part in.
_OF_MOLECULES: Final = (
    "num_conformers",
    "key",
    "scaffold",
    "fault",
    "molecule_id",
    "origin",
    "smiles_length",
    "caption_length",
    "y",
)


@dataclass(frozen=True, eq=False)
class FileTable:
    """Molecules of files, N of them, with A atoms, E bonds and C conformers in all, which have P positions.

    Attributes:
        z: Atomic numbers, shape (A,), uint8.
        charge: Formal charges, shape (A,), int8.
        num_hydrogens: Hydrogens on each heavy atom, shape (A,), uint8, ``UNATTACHED`` on one of a molecule that has a
            hydrogen which cannot be counted; None where hydrogens are atoms.
        pos: Positions in Å, shape (P, 3), float32; the conformers of a molecule one after another.
        first: First atom of each bond, counted from that of its molecule, shape (E,), int16.
        second: Second atom, shape (E,), int16.
        types: Indices into :data:`~unite.modalities.molecule.graph.BOND_TYPES`, shape (E,), uint8.
        num_atoms: Shape (N,), int32.
        num_conformers: Shape (N,), int32; 0 where shapes were left out.
        num_bonds: Shape (N,), int32.
        key: Hashed keys, shape (N,), int64; 0 without bonds.
        scaffold: Hashed Murcko scaffolds, shape (N,), int64; 0 without bonds.
        fault: Index into :data:`~unite.modalities.molecule.data.files.records.GRAPH_FAULTS`, shape (N,), uint8.
        molecule_id: Number of the record that a molecule is from, among all records that were read, from 1; shape (N,).
        origin: Number of the list of files that it is from, shape (N,), uint8.
        smiles_text: SMILES without stereochemistry, one after another, shape (characters,), uint8.
        smiles_length: Shape (N,), int32.
        caption_text: Captions as UTF-8, one after another, shape (bytes,), uint8.
        caption_length: Shape (N,), int32; 0 where there is none.
        y: Numbers of the molecules in the files, shape (N, properties), float32; NaN where one is missing.
        properties: Their names.
    """

    z: Tensor
    charge: Tensor
    pos: Tensor
    first: Tensor
    second: Tensor
    types: Tensor
    num_atoms: Tensor
    num_conformers: Tensor
    num_bonds: Tensor
    key: Tensor
    scaffold: Tensor
    fault: Tensor
    molecule_id: Tensor
    origin: Tensor
    smiles_text: Tensor
    smiles_length: Tensor
    caption_text: Tensor
    caption_length: Tensor
    y: Tensor
    properties: tuple[str, ...] = ()
    num_hydrogens: Tensor | None = None

    @classmethod
    def load(cls, path: Path) -> "FileTable":
        """A table from its file, memory-mapped.

        Raises:
            DamagedFileError: It cannot be read, or its checksum does not match.
        """
        tensors, notes = load_checked(path)
        return cls(**tensors, properties=tuple(json.loads(notes["properties"])))

    def __len__(self) -> int:
        return len(self.num_atoms)

    @cached_property
    def ptr(self) -> Tensor:
        """First atom of each molecule, and the end, shape (N + 1,)."""
        return offsets(self.num_atoms)

    @cached_property
    def bond_ptr(self) -> Tensor:
        """First bond of each molecule, and the end, shape (N + 1,)."""
        return offsets(self.num_bonds)

    @cached_property
    def sample_ptr(self) -> Tensor:
        """First sample of each molecule, and the end, shape (N + 1,); a molecule without a shape is one sample, too."""
        return offsets(self.num_conformers.clamp(min=1))

    @cached_property
    def position_ptr(self) -> Tensor:
        """First position of each molecule, and the end, shape (N + 1,)."""
        return offsets(self.num_conformers.long() * self.num_atoms)

    @cached_property
    def caption_ptr(self) -> Tensor:
        """First byte of each caption, and the end, shape (N + 1,)."""
        return offsets(self.caption_length)

    def caption(self, row: int) -> str | None:
        """Caption of a molecule; None if it has none."""
        start, end = self.caption_ptr[[row, row + 1]].tolist()
        return self.caption_text[start:end].numpy().tobytes().decode() or None

    def smiles(self, row: int) -> str:
        """SMILES of a molecule, without stereochemistry; empty without bonds."""
        start, end = offsets(self.smiles_length)[[row, row + 1]].tolist()
        return self.smiles_text[start:end].numpy().tobytes().decode()

    def per_molecule(self, values: Tensor) -> Tensor:
        """Sums over the atoms of each molecule of values (A,), shape (N,), int64."""
        totals = torch.cat([torch.zeros(1, dtype=torch.long), values.long().cumsum(0)])
        return totals[self.ptr[1:]] - totals[self.ptr[:-1]]

    def rows(self, start: int, end: int) -> "FileTable":
        """The molecules from a row to another, still on disk."""
        atoms = slice(*self.ptr[[start, end]].tolist())
        bonds = slice(*self.bond_ptr[[start, end]].tolist())
        positions = slice(*self.position_ptr[[start, end]].tolist())
        text = slice(*offsets(self.smiles_length)[[start, end]].tolist())
        captions = slice(*self.caption_ptr[[start, end]].tolist())
        return FileTable(
            **{name: getattr(self, name)[start:end] for name in (*_OF_MOLECULES, "num_atoms", "num_bonds")},
            **{name: getattr(self, name)[bonds] for name in ("first", "second", "types")},
            z=self.z[atoms],
            charge=self.charge[atoms],
            num_hydrogens=None if self.num_hydrogens is None else self.num_hydrogens[atoms],
            pos=self.pos[positions],
            smiles_text=self.smiles_text[text],
            caption_text=self.caption_text[captions],
            properties=self.properties,
        )

    def columns(self) -> dict[str, Tensor]:
        """All tensors by name, as they are written."""
        return {
            name: value for name, value in vars(self).items() if isinstance(value, Tensor) and not _is_derived(name)
        }


def _is_derived(name: str) -> bool:
    return name.endswith("ptr")


def write_united(folder: Path) -> None:
    """Write, beside the table of a folder, the same molecules as united atoms: hydrogens counted on heavy atoms.

    Bonds say whose a hydrogen is; without bonds it is counted on the heavy atom nearest to it.
    """
    explicit = FileTable.load(folder / TABLE_FILE)

    def parts() -> Iterator[dict[str, Tensor]]:
        for start in range(0, max(len(explicit), 1), _MOLECULES_AT_ONCE):
            yield united_atoms(explicit.rows(start, min(start + _MOLECULES_AT_ONCE, len(explicit)))).columns()

    write_table(parts, folder / UNITED_FILE, {"properties": json.dumps(explicit.properties)})


def united_atoms(table: FileTable) -> FileTable:
    """The molecules without hydrogens, which ``num_hydrogens`` of their heavy atoms then stands for."""
    owner = torch.repeat_interleave(torch.arange(len(table)), table.num_atoms.long())  # (A,) molecule of each atom
    is_heavy = table.z > 1
    counts, is_uncountable = _counted_hydrogens(table, owner)
    counts[is_uncountable[owner] & is_heavy] = UNATTACHED
    heavy_before = offsets(is_heavy)

    bond_owner = torch.repeat_interleave(torch.arange(len(table)), table.num_bonds.long())
    ends = torch.stack([table.first, table.second]).long() + table.ptr[bond_owner]  # (2, E) in the whole table
    is_kept = is_heavy[ends].all(0)
    kept = heavy_before[ends[:, is_kept]] - heavy_before[table.ptr[bond_owner[is_kept]]]

    sizes = table.num_atoms.long().repeat_interleave(table.num_conformers)  # (C,) atoms of each conformer
    conformer = torch.repeat_interleave(torch.arange(len(sizes)), sizes)  # (P,) conformer of each position
    row = torch.repeat_interleave(torch.arange(len(table)), table.num_conformers.long())  # (C,) molecule
    place = torch.arange(len(table.pos)) - offsets(sizes)[conformer]
    is_heavy_position = is_heavy[table.ptr[row[conformer]] + place]
    return FileTable(
        **{name: getattr(table, name) for name in _OF_MOLECULES},
        z=table.z[is_heavy],
        charge=table.charge[is_heavy],
        num_hydrogens=counts[is_heavy].to(torch.uint8),
        pos=table.pos[is_heavy_position],
        first=kept[0].to(torch.int16),
        second=kept[1].to(torch.int16),
        types=table.types[is_kept],
        num_atoms=table.per_molecule(is_heavy).int(),
        num_bonds=offsets(is_kept)[table.bond_ptr].diff().int(),
        smiles_text=table.smiles_text,
        caption_text=table.caption_text,
        properties=table.properties,
    )


def _counted_hydrogens(table: FileTable, owner: Tensor) -> tuple[Tensor, Tensor]:
    """Hydrogens on each atom, shape (A,), and molecules with one that cannot be counted, shape (N,)."""
    is_hydrogen = table.z == 1
    bond_owner = torch.repeat_interleave(torch.arange(len(table)), table.num_bonds.long())
    ends = torch.stack([table.first, table.second]).long() + table.ptr[bond_owner]
    counts = torch.zeros(len(table.z), dtype=torch.long)
    num_heavy = torch.zeros(len(table.z), dtype=torch.long)  # heavy neighbours of each hydrogen
    for one, other in (ends, ends.flip(0)):
        to_hydrogen = is_hydrogen[other] & ~is_hydrogen[one]
        counts.index_add_(0, one[to_hydrogen], torch.ones_like(one[to_hydrogen]))
        num_heavy.index_add_(0, other[to_hydrogen], torch.ones_like(one[to_hydrogen]))
    is_uncountable = is_hydrogen & ((num_heavy != 1) | (table.charge != 0))
    has_bonds = table.num_bonds > 0
    bare = (~has_bonds & (table.num_atoms > 1) & (table.num_conformers > 0)).nonzero()[:, 0].tolist()
    for row in bare:
        atoms = slice(int(table.ptr[row]), int(table.ptr[row + 1]))
        start = int(table.position_ptr[row])
        positions = table.pos[start : start + int(table.num_atoms[row])]
        found = count_hydrogens(table.z[atoms], positions, torch.tensor([0, len(positions)]))
        is_uncountable[atoms] = found == UNATTACHED
        counts[atoms] = found.long()
    return counts, table.per_molecule(is_uncountable) > 0
