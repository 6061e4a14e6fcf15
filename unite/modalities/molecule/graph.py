"""Molecules as graphs: atoms, formal charges and bond types, to and from RDKit and PyG.

A graph is not corrected. :func:`assemble` builds the RDKit molecule exactly as the graph says it, without repairs,
and tells whether that is a molecule: this is what ``validity_bonds`` counts. The way back is :func:`graph_from_mol`.

PyG objects have ``z`` (A,), ``charge`` (A,), ``edge_index`` (2, E) with both directions of every bond, ``edge_attr``
(E,) with indices into :data:`BOND_TYPES`, ``pos`` (A, 3) in Å where there are positions, and ``num_hydrogens`` (A,)
where hydrogens are counted. Letters: A atoms, E directed edges.
"""

from dataclasses import dataclass
from typing import Final, Literal
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from rdkit import Chem, rdBase
from torch_geometric.data import Data

from unite.errors import UserError
from unite.modalities.molecule.perception.sanitizing import TooManyRingsError, sanitize

IntArray = npt.NDArray[np.int64]

BOND_TYPES: Final = ("none", "single", "double", "triple", "aromatic")
"""Types of a pair of atoms; their order is that of ``edge_attr`` and of the decoder's logits."""

GRAPH_REJECT_REASONS: Final = (
    "empty",
    "unknown_element",
    "disconnected",
    "charged",
    "too_slow",
    "valence",
    "kekulization",
    "sanitization",
    "radical",
    "hydrogens",
)
"""Why a graph is no molecule, in the order of the checks: the first one that fails is reported.

``charged`` means that the formal charges do not add up to zero; ``too_slow`` that there are more fused rings than RDKit
can be given; ``kekulization`` that aromatic bonds cannot be told apart into single and double ones; ``radical`` that an
atom has fewer bonds and hydrogens than its valence asks for;
``hydrogens`` that RDKit sees other numbers of hydrogens than the graph counts.
"""

_RDKIT_TYPES: Final = (
    Chem.BondType.ZERO,  # never written: pairs without a bond are left out
    Chem.BondType.SINGLE,
    Chem.BondType.DOUBLE,
    Chem.BondType.TRIPLE,
    Chem.BondType.AROMATIC,
)
_AROMATIC: Final = BOND_TYPES.index("aromatic")
# RDKit's clean-up rewrites groups that are wrong as they stand (a nitro group with five bonds); that would be a repair.
_STEPS: Final = (
    Chem.SanitizeFlags.SANITIZE_ALL
    ^ Chem.SanitizeFlags.SANITIZE_CLEANUP
    ^ Chem.SanitizeFlags.SANITIZE_CLEANUP_ORGANOMETALLICS
)


@dataclass(frozen=True, eq=False)
class MolecularGraph:
    """Atoms and bonds as a model predicts them. Any values are accepted; :func:`assemble` judges them.

    Attributes:
        atomic_numbers: Atomic numbers, shape (A,).
        bonds: Indices into :data:`BOND_TYPES`, symmetric with a zero diagonal, shape (A, A).
        charges: Formal charges, shape (A,).
        num_hydrogens: Hydrogens attached to each atom, shape (A,), for united atoms; None if hydrogens are atoms.

    Raises:
        ValueError: If the shapes do not belong together or ``bonds`` are not symmetric.
    """

    atomic_numbers: IntArray
    bonds: IntArray
    charges: IntArray
    num_hydrogens: IntArray | None = None

    def __post_init__(self) -> None:
        num_atoms = len(self.atomic_numbers)
        if self.bonds.shape != (num_atoms, num_atoms) or self.charges.shape != (num_atoms,):
            raise ValueError(
                f"a graph of {num_atoms} atoms needs bonds of shape ({num_atoms}, {num_atoms}) and charges of shape "
                f"({num_atoms},), got {self.bonds.shape} and {self.charges.shape}"
            )
        if self.num_hydrogens is not None and self.num_hydrogens.shape != (num_atoms,):
            raise ValueError(f"num_hydrogens has shape {self.num_hydrogens.shape}; it must be ({num_atoms},), or None")
        if (self.bonds != self.bonds.T).any() or self.bonds.diagonal().any():
            raise ValueError("bonds must be symmetric with a zero diagonal")

    @property
    def num_atoms(self) -> int:
        """Number of atoms, counted hydrogens included."""
        counted = 0 if self.num_hydrogens is None else int(self.num_hydrogens.sum())
        return len(self.atomic_numbers) + counted

    @property
    def bond_list(self) -> list[tuple[int, int, int]]:
        """First atom, second atom (the larger number) and type of every bond, in order."""
        first, second = np.nonzero(np.triu(self.bonds, 1))
        return list(zip(first.tolist(), second.tolist(), self.bonds[first, second].tolist(), strict=True))


@dataclass(frozen=True)
class Assembly:
    """What :func:`assemble` made of a graph.

    Attributes:
        mol: The sanitized molecule, atoms in the order of the graph, or None if the graph is none. Counted hydrogens
            are counts on their atoms there, too.
        reason: One of :data:`GRAPH_REJECT_REASONS`, or None if valid.
        is_connected: Whether the graph is one piece (and not empty).
    """

    mol: Chem.Mol | None
    reason: str | None
    is_connected: bool


def assemble(graph: MolecularGraph) -> Assembly:
    """Build the molecule exactly as the graph gives it, or give the reason why it is none.

    RDKit sanitizes it without its clean-up and without adding a hydrogen, so nothing is repaired. It must be one piece,
    neutral in sum and without radicals. RDKit's log is silenced. What is found of a graph is kept while it exists.
    """
    if graph not in _assembled:
        _assembled[graph] = _assemble(graph)
    return _assembled[graph]


_assembled: WeakKeyDictionary[MolecularGraph, Assembly] = WeakKeyDictionary()


def _assemble(graph: MolecularGraph) -> Assembly:
    if len(graph.atomic_numbers) == 0:
        return Assembly(None, "empty", False)
    mol = as_written(graph)
    is_connected = is_one_piece(graph.bonds)
    if ((graph.atomic_numbers < 1) | (graph.atomic_numbers > 118)).any():
        return Assembly(None, "unknown_element", is_connected)
    if not is_connected:
        return Assembly(None, "disconnected", False)
    if graph.charges.sum() != 0:
        return Assembly(None, "charged", True)
    with rdBase.BlockLogs():
        try:
            sanitize(mol, _STEPS)
        except TooManyRingsError:
            return Assembly(None, "too_slow", True)
        except Chem.AtomValenceException:
            return Assembly(None, "valence", True)
        except (Chem.KekulizeException, Chem.AtomKekulizeException):
            return Assembly(None, "kekulization", True)
        except (ValueError, RuntimeError):
            return Assembly(None, "sanitization", True)
    if any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms()):
        return Assembly(None, "radical", True)
    # Kekulization forgets the hydrogen of an aromatic NH, and counts it anew.
    counts = [0] * mol.GetNumAtoms() if graph.num_hydrogens is None else graph.num_hydrogens.tolist()
    if [atom.GetTotalNumHs() for atom in mol.GetAtoms()] != counts:
        return Assembly(None, "hydrogens", True)
    return Assembly(mol.GetMol(), None, True)


def as_written(graph: MolecularGraph) -> Chem.RWMol:
    """The graph as an unchecked RDKit molecule; elements that do not exist become dummy atoms."""
    mol = Chem.RWMol()
    counts = np.zeros_like(graph.charges) if graph.num_hydrogens is None else graph.num_hydrogens
    for number, charge, count in zip(
        graph.atomic_numbers.tolist(), graph.charges.tolist(), counts.tolist(), strict=True
    ):
        atom = Chem.Atom(number if 0 < number <= 118 else 0)
        atom.SetFormalCharge(charge)
        atom.SetNumExplicitHs(count)
        atom.SetNoImplicit(True)  # RDKit shall add none
        mol.AddAtom(atom)
    for first, second, kind in graph.bond_list:
        mol.AddBond(first, second, _RDKIT_TYPES[kind])
        if kind == _AROMATIC:
            mol.GetBondBetweenAtoms(first, second).SetIsAromatic(True)
            mol.GetAtomWithIdx(first).SetIsAromatic(True)
            mol.GetAtomWithIdx(second).SetIsAromatic(True)
    return mol


def is_one_piece(bonds: IntArray) -> bool:
    """Whether every atom is reached from the first along bonds (A, A); false for no atoms."""
    reached = np.zeros(len(bonds), dtype=bool)
    frontier = reached.copy()
    frontier[:1] = True
    while frontier.any():
        reached |= frontier
        frontier = (bonds[frontier] > 0).any(0) & ~reached
    return len(bonds) > 0 and bool(reached.all())


def graph_from_mol(mol: Chem.Mol, hydrogens: Literal["explicit", "counted"] = "explicit") -> MolecularGraph:
    """The graph of an RDKit molecule, with the bond types that RDKit's sanitization gives it.

    Stereochemistry and isotopes are not kept.

    Args:
        mol: Molecule, sanitized or not, with or without hydrogens as atoms.
        hydrogens: ``explicit`` makes implicit hydrogens atoms (behind the others); ``counted`` counts hydrogens on
            their heavy atoms.

    Raises:
        UserError: It is no RDKit molecule, is empty, cannot be sanitized, comes in pieces, is charged in sum, has a
            radical, an atom of no element (``*``), a bond of another type than those of :data:`BOND_TYPES`, or a
            hydrogen that cannot be counted.
    """
    mol = _complete(mol, hydrogens)
    atoms = list(mol.GetAtoms())
    bonds = np.zeros((len(atoms), len(atoms)), dtype=np.int64)
    for bond in mol.GetBonds():
        first, second = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        bonds[first, second] = bonds[second, first] = _RDKIT_TYPES.index(bond.GetBondType())
    graph = MolecularGraph(
        atomic_numbers=np.array([atom.GetAtomicNum() for atom in atoms], dtype=np.int64),
        bonds=bonds,
        charges=np.array([atom.GetFormalCharge() for atom in atoms], dtype=np.int64),
    )
    return unite_graph_hydrogens(graph) if hydrogens == "counted" else graph


def _complete(mol: object, hydrogens: str) -> Chem.Mol:
    """A sanitized copy with all hydrogens as atoms, refused if it is nothing that a graph can say."""
    if not isinstance(mol, Chem.Mol):
        hint = {
            "NoneType": "RDKit's readers give None for what they cannot read",
            "str": "read SMILES with rdkit.Chem.MolFromSmiles",
        }.get(type(mol).__name__, "see rdkit.Chem")
        raise UserError(f"{mol!r:.60} is a {type(mol).__name__}, not an RDKit molecule; {hint}")
    with rdBase.BlockLogs():
        mol = Chem.Mol(mol)
        try:
            sanitize(mol)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"a molecule that RDKit cannot sanitize: {str(error).strip()}") from error
        name = Chem.MolToSmiles(mol)
        mol = Chem.AddHs(mol, addCoords=mol.GetNumConformers() > 0)
    if mol.GetNumAtoms() == 0:
        raise UserError("a molecule without atoms has no graph")
    if (num_pieces := len(Chem.GetMolFrags(mol))) > 1:
        raise UserError(f"{name} comes in {num_pieces} pieces; give one molecule at a time")
    if (charge := Chem.GetFormalCharge(mol)) != 0:
        raise UserError(f"{name} has the charge {charge:+d}; only molecules that are neutral in sum have a place here")
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() == 0:
            raise UserError(f"{name} has an atom of no element, {atom.GetSymbol()}, atom {atom.GetIdx()}")
        if atom.GetNumRadicalElectrons():
            raise UserError(f"{name} has an unpaired electron on {atom.GetSymbol()}, atom {atom.GetIdx()}")
    for bond in mol.GetBonds():
        if bond.GetBondType() not in _RDKIT_TYPES[1:]:
            raise UserError(
                f"{name} has a bond of type {str(bond.GetBondType()).lower()}; known are {', '.join(BOND_TYPES[1:])}"
            )
    return mol


def unite_graph_hydrogens(graph: MolecularGraph) -> MolecularGraph:
    """The same molecule with each hydrogen counted on the heavy atom it is bonded to.

    Raises:
        UserError: A hydrogen is not bonded to exactly one heavy atom, or carries a charge.
    """
    is_hydrogen = graph.atomic_numbers == 1
    is_bonded = graph.bonds > 0
    is_countable = (is_bonded.sum(1) == 1) & ~is_bonded[:, is_hydrogen].any(1) & (graph.charges == 0)
    if (bad := np.flatnonzero(is_hydrogen & ~is_countable)).size:
        raise UserError(
            f"hydrogen {bad[0]} cannot be counted on a heavy atom, for it is charged or not bonded to just one: "
            "use hydrogens 'explicit'"
        )
    heavy = ~is_hydrogen
    counts = is_bonded[np.ix_(heavy, is_hydrogen)].sum(1).astype(np.int64)
    return MolecularGraph(graph.atomic_numbers[heavy], graph.bonds[np.ix_(heavy, heavy)], graph.charges[heavy], counts)


def data_from_graph(graph: MolecularGraph, positions: npt.NDArray[np.floating] | None = None) -> Data:
    """A graph as the PyG object that datamodules yield; see the head of this file.

    Args:
        graph: The graph.
        positions: Positions in Å, shape (A, 3), if there are any.
    """
    first, second = np.nonzero(graph.bonds)
    data = Data(
        z=torch.from_numpy(graph.atomic_numbers),
        charge=torch.from_numpy(graph.charges),
        edge_index=torch.from_numpy(np.stack([first, second]).astype(np.int64)),
        edge_attr=torch.from_numpy(graph.bonds[first, second]),
        num_nodes=len(graph.atomic_numbers),  # without positions, PyG would guess it from the edges
    )
    if graph.num_hydrogens is not None:
        data.num_hydrogens = torch.from_numpy(graph.num_hydrogens)
    if positions is not None:
        data.pos = torch.from_numpy(np.asarray(positions, dtype=np.float32))
    return data


def graph_from_data(data: Data) -> MolecularGraph:
    """Inverse of :func:`data_from_graph`.

    Raises:
        UserError: Bonds are missing, unknown, or not the same in both directions.
    """
    for name in ("edge_index", "edge_attr", "charge"):
        if name not in data:
            raise UserError(f"a PyG object without {name} has no graph of bonds; see unite.modalities.molecule.graph")
    num_atoms = len(data.z)
    kinds = data.edge_attr.long()
    check_bond_types(kinds)
    bonds = np.zeros((num_atoms, num_atoms), dtype=np.int64)
    first, second = data.edge_index.cpu().numpy()
    bonds[first, second] = kinds.cpu().numpy()
    if (bonds != bonds.T).any() or bonds.diagonal().any():
        raise UserError("edge_index must hold every bond in both directions, with one type, and no atom with itself")
    counts = data.num_hydrogens.long().cpu().numpy() if "num_hydrogens" in data else None
    return MolecularGraph(data.z.long().cpu().numpy(), bonds, data.charge.long().cpu().numpy(), counts)


def check_bond_types(kinds: torch.Tensor) -> None:
    """Refuse values of ``edge_attr`` that are no bond.

    Raises:
        UserError: A value lies outside 1 .. 4, or there is more than one per edge.
    """
    if kinds.ndim != 1:
        raise UserError(
            f"edge_attr has shape {tuple(kinds.shape)}; it must be (E,), one index into {BOND_TYPES} per edge"
        )
    if bool(((kinds < 1) | (kinds >= len(BOND_TYPES))).any()):
        value = int(kinds[(kinds < 1) | (kinds >= len(BOND_TYPES))][0])
        known = ", ".join(f"{index} {name}" for index, name in enumerate(BOND_TYPES) if index)
        raise UserError(f"edge_attr has the bond type {value}; known are {known}")


def data_from_mol(mol: Chem.Mol, hydrogens: Literal["explicit", "counted"] = "explicit") -> Data:
    """An RDKit molecule as the PyG object that datamodules yield, with ``pos`` if it has a conformer in space.

    Stereochemistry and isotopes are not kept: enantiomers give the same graph, and deuterium becomes hydrogen. With a
    conformer, its positions still hold the configuration.

    Args:
        mol: Molecule, sanitized or not, with or without hydrogens as atoms.
        hydrogens: ``explicit`` makes implicit hydrogens atoms (behind the others); ``counted`` counts hydrogens on
            their heavy atoms, as :class:`~unite.modalities.molecule.MoleculeAdapter` has it.

    Raises:
        UserError: As :func:`graph_from_mol`.
    """
    graph = graph_from_mol(mol, hydrogens)
    if mol.GetNumConformers() == 0 or not mol.GetConformer().Is3D():  # a drawing is no conformer
        return data_from_graph(graph)
    complete = _complete(mol, hydrogens)
    positions = complete.GetConformer().GetPositions()
    if hydrogens == "counted":
        positions = positions[[atom.GetAtomicNum() != 1 for atom in complete.GetAtoms()]]
    return data_from_graph(graph, positions)


def mol_from_data(data: Data) -> Chem.Mol:
    """The RDKit molecule of a PyG object, with a conformer if it has ``pos``.

    It has neither stereochemistry nor isotopes, for the object holds none. With a conformer and hydrogens as atoms,
    RDKit's ``AssignStereochemistryFrom3D`` finds the former again.

    Raises:
        UserError: The graph is no molecule, with the reason.
    """
    assembly = assemble(graph_from_data(data))
    if assembly.mol is None:
        raise UserError(f"these atoms and bonds are no molecule: {str(assembly.reason).replace('_', ' ')}")
    mol = assembly.mol
    if data.get("pos") is not None:
        conformer = Chem.Conformer(mol.GetNumAtoms())
        conformer.SetPositions(data.pos.double().cpu().numpy())
        mol.AddConformer(conformer)
    return mol
