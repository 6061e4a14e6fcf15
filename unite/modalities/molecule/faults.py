"""Which atoms a molecule is rejected for, and why in words: for pictures and reports, not for metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from rdkit import Chem, rdBase

from unite.modalities.molecule.perception.distances import clashing_pairs, short_pairs
from unite.modalities.molecule.perception.elements import _MAX_DEGREES, ELEMENTS
from unite.modalities.molecule.perception.molecule import Molecule
from unite.modalities.molecule.perception.perceive import perceive
from unite.modalities.molecule.perception.sanitizing import MAX_FUSED_RINGS, has_too_many_rings, sanitize
from unite.modalities.molecule.perception.valences import NEUTRAL_VALENCES

if TYPE_CHECKING:
    from unite.modalities.molecule.graph import MolecularGraph

MAX_MATCHED: Final = 200
"""Most free valences for which a matching is sought: it takes a second, and the cube of their number."""
_ORDERS: Final = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}


@dataclass(frozen=True)
class Fault:
    """What is wrong with a molecule.

    Attributes:
        atoms: The atoms that are to blame, in rising order; empty where it is the molecule as a whole.
        words: What is wrong with them, in a few words.
    """

    atoms: tuple[int, ...]
    words: str


def structure_of_rejected(molecule: Molecule) -> tuple[Chem.Mol, Fault]:
    """Bonds of a molecule that :func:`perceive` rejects, and what is wrong with it.

    Atoms are joined where they are close enough for a bond. Bonds become double or triple as far as that gives atoms
    the valence they lack: as many as possible at once (a maximum matching of free valences), so that the atoms left
    over are few. There may be other choices; this is a picture of the reason, not a perception.

    Args:
        molecule: A rejected molecule with finite positions.

    Returns:
        The structure, atoms in their order with counted hydrogens as counts, not sanitized and without a conformer;
        and the fault.
    """
    pairs = short_pairs(molecule)
    counts = [0] * len(molecule.atomic_numbers) if molecule.num_hydrogens is None else molecule.num_hydrogens.tolist()
    mol = Chem.RWMol()
    for number, count in zip(molecule.atomic_numbers.tolist(), counts, strict=True):
        atom = Chem.Atom(number if 0 < number <= 118 else 0)
        atom.SetNoImplicit(True)
        atom.SetNumExplicitHs(count)
        mol.AddAtom(atom)
    for first, second in pairs:
        mol.AddBond(first, second, Chem.BondType.SINGLE)
    reason = perceive(molecule).reason
    free = _raise_bond_orders(mol)
    if reason in ("no_bond_orders", "iteration_cap", "sanitization", "radical", "implicit_hydrogen"):
        lacking = {atom: number for atom, number in free.items() if number > 0}
        exceeding = {atom: -number for atom, number in free.items() if number < 0}
        atoms = sorted(lacking | exceeding)
        told = [_lacking(mol, lacking)] if lacking else []
        if exceeding:
            told.append(f"{_symbols(mol, sorted(exceeding))} with a bond too many")
        return mol.GetMol(), Fault(tuple(atoms), ", ".join(told) or "no charges and bond orders fit these neighbours")
    return mol.GetMol(), _fault_of_distances(mol, molecule, str(reason))


def _fault_of_distances(mol: Chem.Mol, molecule: Molecule, reason: str) -> Fault:
    """What is wrong where bond orders play no part."""
    numbers = molecule.atomic_numbers
    degrees = np.array([atom.GetDegree() + atom.GetNumExplicitHs() for atom in mol.GetAtoms()])
    if reason == "unknown_element":
        known = ELEMENTS if molecule.num_hydrogens is None else ELEMENTS[1:]
        strange = np.flatnonzero(~np.isin(numbers, known)).tolist()
        return Fault(tuple(strange), f"bonds of {_symbols(mol, strange)} do not follow from distances")
    if reason == "clash":
        near = clashing_pairs(molecule)
        first, second = near[0]
        distance = np.linalg.norm(molecule.positions[first] - molecule.positions[second])
        words = f"{_symbols(mol, [first, second])} {distance:.2f} Å apart"
        return Fault(tuple(sorted({atom for pair in near for atom in pair})), words)
    if reason == "overvalent_atom":
        limits = {number: int(_MAX_DEGREES[index]) for index, number in enumerate(ELEMENTS)}
        atoms = [atom for atom, number in enumerate(numbers.tolist()) if degrees[atom] > limits[number]]
        worst = max(atoms, key=lambda atom: degrees[atom] - limits[int(numbers[atom])])
        return Fault(tuple(atoms), f"{_symbols(mol, [worst])} with {degrees[worst]} neighbours")
    if reason == "isolated_atom":
        alone = np.flatnonzero(degrees == 0).tolist()
        return Fault(tuple(alone), f"{_symbols(mol, alone)} without a bond")
    return _fault_of_pieces(mol) if reason == "disconnected" else Fault((), f"more than {MAX_FUSED_RINGS} fused rings")


def fault_of_graph(graph: MolecularGraph) -> Fault:
    """What is wrong with a graph that :func:`~unite.modalities.molecule.graph.assemble` rejects."""
    from unite.modalities.molecule.graph import as_written, assemble  # takes torch, which other pictures do not need

    reason = assemble(graph).reason
    mol = as_written(graph)
    if reason == "disconnected":
        return _fault_of_pieces(mol)
    if reason == "charged":
        atoms = np.flatnonzero(graph.charges).tolist()
        return Fault(tuple(atoms), f"charges add up to {graph.charges.sum():+d}")
    if reason == "unknown_element":
        atoms = np.flatnonzero((graph.atomic_numbers < 1) | (graph.atomic_numbers > 118)).tolist()
        return Fault(tuple(atoms), "no such element")
    if reason == "empty" or has_too_many_rings(mol):
        return Fault((), "no atoms" if reason == "empty" else f"more than {MAX_FUSED_RINGS} fused rings")
    with rdBase.BlockLogs():
        problems = Chem.DetectChemistryProblems(mol)
        atoms = sorted({atom for problem in problems for atom in _atoms_of(problem)})
        if problems:
            is_valence = problems[0].GetType() == "AtomValenceException"
            told = "with too many bonds" if is_valence else "cannot be aromatic"
            return Fault(tuple(atoms), f"{_symbols(mol, atoms)} {told}")
        sanitize(mol)
    if reason == "radical":
        radicals = {atom.GetIdx(): atom.GetNumRadicalElectrons() for atom in mol.GetAtoms()}
        lacking = {atom: number for atom, number in radicals.items() if number}
        return Fault(tuple(sorted(lacking)), _lacking(mol, lacking))
    counts = [0] * mol.GetNumAtoms() if graph.num_hydrogens is None else graph.num_hydrogens.tolist()
    atoms = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetTotalNumHs() != counts[atom.GetIdx()]]
    return Fault(tuple(atoms), f"{_symbols(mol, atoms)} with wrong hydrogens")


def _atoms_of(problem: Chem.MolSanitizeException) -> Sequence[int]:
    """Atoms that RDKit names in a problem."""
    if hasattr(problem, "GetAtomIndices"):
        return list(problem.GetAtomIndices())
    return [problem.GetAtomIdx()] if hasattr(problem, "GetAtomIdx") else []


def _fault_of_pieces(mol: Chem.Mol) -> Fault:
    pieces = sorted(Chem.GetMolFrags(mol), key=len, reverse=True)
    return Fault(tuple(sorted(atom for piece in pieces[1:] for atom in piece)), f"{len(pieces)} pieces")


def free_valence(atom: Chem.Atom) -> int:
    """Bonds that a neutral atom lacks up to its next valence; negative if it has too many, zero for metals."""
    has = sum(int(bond.GetBondTypeAsDouble()) for bond in atom.GetBonds()) + atom.GetNumExplicitHs()
    valences = NEUTRAL_VALENCES.get(atom.GetAtomicNum(), (has,))
    return next((valence for valence in valences if valence >= has), valences[-1]) - has


def _raise_bond_orders(mol: Chem.RWMol) -> dict[int, int]:
    """Give as many free valences as possible to bonds; what is left of each atom, where that is not zero."""
    import networkx as nx  # slow to import, and only pictures need it

    slots = {
        atom.GetIdx(): [(atom.GetIdx(), slot) for slot in range(min(free_valence(atom), 2))]  # a triple bond at most
        for atom in mol.GetAtoms()
    }
    graph = nx.Graph()
    for bond in mol.GetBonds():
        first, second = slots[bond.GetBeginAtomIdx()], slots[bond.GetEndAtomIdx()]
        graph.add_edges_from((one, other) for one in first for other in second)
    if len(graph) <= MAX_MATCHED:
        for (first, _), (second, _) in nx.max_weight_matching(graph, maxcardinality=True):
            bond = mol.GetBondBetweenAtoms(first, second)
            bond.SetBondType(_ORDERS[int(bond.GetBondTypeAsDouble()) + 1])
    return {atom.GetIdx(): free for atom in mol.GetAtoms() if (free := free_valence(atom))}


def _lacking(mol: Chem.Mol, lacking: dict[int, int]) -> str:
    """For instance ``C lacks a bond``, ``C and N lack 3 bonds``."""
    number = sum(lacking.values())
    count = "a bond" if number == 1 else f"{number} bonds"
    return f"{_symbols(mol, sorted(lacking))} {'lacks' if len(lacking) == 1 else 'lack'} {count}"


def _symbols(mol: Chem.Mol, atoms: Sequence[int]) -> str:
    """Elements of atoms, for instance ``C and N``."""
    names = [mol.GetAtomWithIdx(atom).GetSymbol() for atom in atoms]
    if len(names) > 3:
        return f"{len(names)} atoms"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
