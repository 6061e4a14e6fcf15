"""Molecules in space as RDKit has them: perceived ones with positions, others as loose atoms. Needs no torch."""

from typing import Final

import numpy as np
from rdkit import Chem

from unite.modalities.molecule.files.reading import MAX_SDF_COORDINATE
from unite.modalities.molecule.perception.molecule import Molecule
from unite.modalities.molecule.perception.sanitizing import sanitize

MAX_DRAWN_RINGS: Final = 8
"""Invalid molecules of more rings are no formulas: RDKit lays them out slowly, and crashes on thousands of bonds."""


def num_rings(mol: Chem.Mol) -> int:
    """Independent rings."""
    return int(mol.GetNumBonds() - mol.GetNumAtoms() + len(Chem.GetMolFrags(mol)))


def fits_sdf(molecule: Molecule) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Which coordinates an SDF can hold, shape (A, 3)."""
    return np.asarray(np.abs(molecule.positions) <= MAX_SDF_COORDINATE)  # NaN compares as False


def _set_positions(mol: Chem.Mol, molecule: Molecule) -> None:
    positions = np.where(fits_sdf(molecule), molecule.positions, 0.0).astype(np.float64)
    conformer = Chem.Conformer(len(positions))
    conformer.Set3D(True)
    if len(positions):
        conformer.SetPositions(positions)
    mol.RemoveAllConformers()
    mol.AddConformer(conformer)


def loose_atoms(molecule: Molecule) -> Chem.RWMol:
    """Atoms with positions and no bonds: what an SDF has of an invalid molecule."""
    mol = Chem.RWMol()
    for atomic_number in molecule.atomic_numbers.tolist():
        atom = Chem.Atom(symbol_of(atomic_number)) if _exists(atomic_number) else Chem.Atom(0)
        atom.SetNoImplicit(True)  # a reader must not fill them up with hydrogens
        mol.AddAtom(atom)
    _set_positions(mol, molecule)
    return mol


def with_positions(mol: Chem.Mol, molecule: Molecule) -> Chem.Mol:
    """The perceived molecule with a conformer; counted hydrogens are placed, the rest is as generated."""
    if molecule.num_hydrogens is None:
        return Chem.Mol(mol)
    heavy = Chem.RWMol(mol)
    for atom in list(heavy.GetAtoms())[: len(molecule.num_hydrogens)]:
        atom.SetNumExplicitHs(int(molecule.num_hydrogens[atom.GetIdx()]))
    for hydrogen in range(mol.GetNumAtoms() - 1, len(molecule.num_hydrogens) - 1, -1):
        heavy.RemoveAtom(hydrogen)
    sanitize(heavy)
    _set_positions(heavy, molecule)
    return Chem.AddHs(heavy, addCoords=True)


def _exists(atomic_number: int) -> bool:
    return 0 < atomic_number <= 118


def symbol_of(atomic_number: int) -> str:
    """Symbol of an element; ``X`` where there is none of that number."""
    return str(Chem.GetPeriodicTable().GetElementSymbol(atomic_number)) if _exists(atomic_number) else "X"
