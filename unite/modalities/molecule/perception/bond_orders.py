"""Bond orders and charges of atoms that are joined: RDKit's search, capped."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
import rdkit
from rdkit import Chem
from rdkit.Chem import rdDetermineBonds

if TYPE_CHECKING:  # judging molecules needs no torch
    pass
from unite.modalities.molecule.perception.molecule import Molecule
from unite.modalities.molecule.perception.sanitizing import has_too_many_rings

MAX_BOND_ORDER_ITERATIONS: Final = 2000
"""Work allowed to RDKit's bond-order search. Uncapped, chains of 29 N or O run longer than anyone waits."""


def _assign_bond_orders(molecule: Molecule, bonds: list[tuple[int, int]]) -> tuple[Chem.Mol | None, str | None]:
    """Steps 4 and 5 of :func:`perceive`: the molecule or the reason."""
    mol = _graph(molecule, bonds)
    if has_too_many_rings(mol):
        return None, "too_slow"
    order = _canonical_order(mol)
    mol = Chem.RWMol(Chem.RenumberAtoms(mol, order))
    try:
        rdDetermineBonds.DetermineBondOrders(mol, charge=0, embedChiral=False, maxIterations=MAX_BOND_ORDER_ITERATIONS)
    except (ValueError, RuntimeError) as error:
        return None, "iteration_cap" if "Max Iterations" in str(error) else "no_bond_orders"
    mol = Chem.RenumberAtoms(mol, np.argsort(order).tolist())
    try:
        Chem.SanitizeMol(mol)
    except (ValueError, RuntimeError):
        return None, "sanitization"
    atoms = list(mol.GetAtoms())
    if any(atom.GetNumRadicalElectrons() for atom in atoms):
        return None, "radical"
    if any(atom.GetTotalNumHs() for atom in atoms):
        return None, "implicit_hydrogen"
    return mol, None


def _canonical_order(mol: Chem.RWMol) -> list[int]:
    """The atoms in an order that follows from elements and bonds alone.

    RDKit's search takes the first of several ways to place charges that it meets, and may miss one that is there: in
    some orders of its atoms it finds no bond orders for 2-nitrofuran. By falling ranks it would accept bare chains of
    28 O.
    """
    mol.UpdatePropertyCache(strict=False)
    order: list[int] = np.argsort(np.array(Chem.CanonicalRankAtoms(mol, breakTies=True))).tolist()
    return order


def _graph(molecule: Molecule, bonds: list[tuple[int, int]]) -> Chem.RWMol:
    """Single bonds between atoms; counted hydrogens are appended, otherwise positions are set."""
    mol = Chem.RWMol()
    for atomic_number in molecule.atomic_numbers.tolist():
        mol.AddAtom(_bare_atom(atomic_number))
    for first, second in bonds:
        mol.AddBond(first, second, Chem.BondType.SINGLE)
    if molecule.num_hydrogens is None:
        conformer = Chem.Conformer(len(molecule.atomic_numbers))
        conformer.SetPositions(np.asarray(molecule.positions, dtype=np.float64))
        mol.AddConformer(conformer)
        return mol
    for atom, count in enumerate(molecule.num_hydrogens.tolist()):
        for _ in range(count):
            mol.AddBond(atom, mol.AddAtom(_bare_atom(1)), Chem.BondType.SINGLE)
    return mol


@cache
def _bare_atom(atomic_number: int) -> Chem.Atom:
    """Atom to copy from, to which RDKit adds no hydrogens by itself."""
    atom = Chem.Atom(atomic_number)
    atom.SetNoImplicit(True)
    return atom


@cache
def _require_capped_bond_orders() -> None:
    if "maxIterations" not in (rdDetermineBonds.DetermineBondOrders.__doc__ or ""):
        raise RuntimeError(
            f"RDKit {rdkit.__version__} cannot limit its search for bond orders (DetermineBondOrders has no "
            "maxIterations), and one bad molecule would run for hours; 2025.3.6 can: pip install -U rdkit"
        )
