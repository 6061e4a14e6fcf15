"""Bond orders and charges of atoms that are joined.

Neutral molecules of QM9's elements go through RDKit's search, capped, so that figures on QM9 stay what they are. All
others go through :mod:`~unite.modalities.molecule.perception.valences`: RDKit's prefers a pair S+ and O- to sulfur with
four or six bonds. So do those that are larger than QM9's where RDKit's search finds nothing, as for some with several
nitro groups.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Final

import numpy as np
import rdkit
from rdkit import Chem
from rdkit.Chem import rdDetermineBonds

from unite.modalities.molecule.perception.elements import QM9_ELEMENTS
from unite.modalities.molecule.perception.molecule import Molecule
from unite.modalities.molecule.perception.sanitizing import has_too_many_rings
from unite.modalities.molecule.perception.valences import OutOfWorkError, assign_orders

_QM9_ELEMENTS: Final = frozenset(QM9_ELEMENTS)

MAX_BOND_ORDER_ITERATIONS: Final = 2000
"""Work allowed to RDKit's bond-order search. Uncapped, chains of 29 N or O run longer than anyone waits."""

MAX_QM9_HEAVY_ATOMS: Final = 9
"""Heavy atoms of the largest molecules of QM9."""


def _assign_bond_orders(molecule: Molecule, bonds: list[tuple[int, int]]) -> tuple[Chem.Mol | None, str | None]:
    """Steps 4 and 5 of :func:`perceive`: the molecule or the reason."""
    mol = _graph(molecule, bonds)
    if has_too_many_rings(mol):
        return None, "too_slow"
    order = _canonical_order(mol)
    bare = Chem.RenumberAtoms(mol, order)
    mol = Chem.RWMol(bare)
    is_of_qm9 = molecule.charge == 0 and set(molecule.atomic_numbers.tolist()) <= _QM9_ELEMENTS
    reason = _search(mol) if is_of_qm9 else _assign(mol, molecule, bonds, order)
    if reason == "no_bond_orders" and is_of_qm9 and mol.GetNumHeavyAtoms() > MAX_QM9_HEAVY_ATOMS:
        mol = Chem.RWMol(bare)  # the search may have left something
        reason = _assign(mol, molecule, bonds, order)
    if reason:
        return None, reason
    mol = Chem.RenumberAtoms(mol, np.argsort(order).tolist())
    try:
        Chem.SanitizeMol(mol)
    except (ValueError, RuntimeError):
        return None, "sanitization"
    num_atoms = mol.GetNumAtoms()
    # Not over mol.GetAtoms(), whose iterator is written in Python and takes longer than the rest.
    if any(mol.GetAtomWithIdx(index).GetNumRadicalElectrons() for index in range(num_atoms)):
        return None, "radical"
    if mol.GetNumAtoms(onlyExplicit=False) > num_atoms:
        return None, "implicit_hydrogen"
    return mol, None


def _search(mol: Chem.RWMol) -> str | None:
    """RDKit's search, in place; the reason if it finds nothing."""
    try:
        rdDetermineBonds.DetermineBondOrders(mol, charge=0, embedChiral=False, maxIterations=MAX_BOND_ORDER_ITERATIONS)
    except (ValueError, RuntimeError) as error:
        return "iteration_cap" if "Max Iterations" in str(error) else "no_bond_orders"
    return None


def _assign(mol: Chem.RWMol, molecule: Molecule, bonds: list[tuple[int, int]], order: list[int]) -> str | None:
    """Our own assignment, in place; the reason if there is none.

    Args:
        mol: Single bonds, atoms in a canonical order.
        molecule: What it was made from.
        bonds: Pairs of its atoms.
        order: Which atom of the molecule each atom is; counted hydrogens come behind those it has.
    """
    numbers, positions = molecule.atomic_numbers.tolist(), molecule.positions.tolist()
    degrees = [0] * len(numbers) if molecule.num_hydrogens is None else molecule.num_hydrogens.tolist()
    for first, second in bonds:
        degrees[first] += 1
        degrees[second] += 1
    places = {atom: place for place, atom in enumerate(order)}  # in the canonical order
    heavy = [atom for atom in order if atom < len(numbers) and numbers[atom] != 1]
    ranks = {atom: rank for rank, atom in enumerate(heavy)}
    pairs = sorted(sorted((ranks[one], ranks[two])) for one, two in bonds if one in ranks and two in ranks)
    lengths = [
        math.dist(positions[one], positions[two]) / (_radius(numbers[one]) + _radius(numbers[two]))
        for one, two in ((heavy[first], heavy[second]) for first, second in pairs)
    ]
    try:
        found = assign_orders(
            [numbers[atom] for atom in heavy], [degrees[atom] for atom in heavy], pairs, lengths, molecule.charge
        )
    except OutOfWorkError:
        return "iteration_cap"
    if found is None:
        return "no_bond_orders"
    for (first, second), bond_order in zip(pairs, found.orders, strict=True):
        if bond_order > 1:
            bond = mol.GetBondBetweenAtoms(places[heavy[first]], places[heavy[second]])
            bond.SetBondType(Chem.BondType.DOUBLE if bond_order == 2 else Chem.BondType.TRIPLE)
    for atom, charge in zip(heavy, found.charges, strict=True):
        if charge:
            mol.GetAtomWithIdx(places[atom]).SetFormalCharge(charge)
    return None


@cache
def _radius(atomic_number: int) -> float:
    return float(Chem.GetPeriodicTable().GetRcovalent(atomic_number))


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
