"""Molecules as generated and as perceived, the reasons to reject them, and the keys that count them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from rdkit import Chem

if TYPE_CHECKING:  # judging molecules needs no torch
    from unite.modalities.molecule.graph import MolecularGraph
from unite.modalities.molecule.perception.elements import IntArray

REJECT_REASONS: Final = (
    "empty",
    "nonfinite",
    "unknown_element",
    "clash",
    "overvalent_atom",
    "isolated_atom",
    "disconnected",
    "too_slow",
    "no_bond_orders",
    "iteration_cap",
    "sanitization",
    "radical",
    "implicit_hydrogen",
)
"""Why a molecule can be rejected, in the order of the checks: the first one that fails is reported.

``unknown_element`` is anything but :data:`~unite.modalities.molecule.perception.elements.ELEMENTS` (for united atoms,
hydrogen as well);
``too_slow`` means more fused rings than RDKit can be given, see
:data:`~unite.modalities.molecule.perception.sanitizing.MAX_FUSED_RINGS`, or, where molecules are judged in processes
of their own, more time than they have there;
``iteration_cap`` means that the search for bond orders was stopped, which no molecule of QM9 needs;
``sanitization`` that RDKit refused the bond orders that were found.
"""

_REASONS_WITHOUT_GRAPH: Final = REJECT_REASONS[:4]  # found before looking for bonds


@dataclass(frozen=True, eq=False)
class Molecule:
    """A finished molecule as generated, without padding. Any values are accepted; judging them comes later.

    Attributes:
        atomic_numbers: Atomic numbers, shape (A,).
        positions: Coordinates in Å, shape (A, 3).
        num_hydrogens: Hydrogens attached to each atom, shape (A,), for united atoms; None if hydrogens are
            atoms.
        graph: Bonds and charges that came with the atoms, where a model predicts both; perception ignores them.
        charge: Total charge, which bond orders must agree with.

    Raises:
        ValueError: If the shapes do not belong together or a number of hydrogens is negative.
    """

    atomic_numbers: IntArray
    positions: npt.NDArray[np.floating]
    num_hydrogens: IntArray | None = None
    graph: MolecularGraph | None = None
    charge: int = 0

    def __post_init__(self) -> None:
        num_atoms = len(self.atomic_numbers)
        if self.atomic_numbers.shape != (num_atoms,) or self.positions.shape != (num_atoms, 3):
            raise ValueError(
                f"a molecule needs atomic_numbers of shape (A,) and positions of shape (A, 3), got "
                f"{self.atomic_numbers.shape} and {self.positions.shape}"
            )
        if self.num_hydrogens is None:
            return
        if self.num_hydrogens.shape != (num_atoms,):
            raise ValueError(
                f"num_hydrogens has shape {self.num_hydrogens.shape}; with {num_atoms} atoms it must be "
                f"({num_atoms},), or None if hydrogens are among the atoms"
            )
        if num_atoms and self.num_hydrogens.min() < 0:
            raise ValueError(f"num_hydrogens must not be negative, got {self.num_hydrogens.tolist()}")

    @property
    def num_atoms(self) -> int:
        """Number of atoms, counted hydrogens included."""
        counted = 0 if self.num_hydrogens is None else int(self.num_hydrogens.sum())
        return len(self.atomic_numbers) + counted


@dataclass(frozen=True)
class Perception:
    """What :func:`perceive` found.

    Attributes:
        mol: The sanitized molecule with all hydrogens as atoms, or None if rejected. Atoms come in the order
            given and carry the given positions; counted hydrogens follow behind them, in the order of the
            atoms they are attached to, and then there is no conformer, since hydrogens have no positions.
        reason: One of :data:`REJECT_REASONS`, or None if valid.
        is_connected: Whether the graph of bonds is one piece, whatever its degrees. False for molecules in
            which bonds make no sense: empty, non-finite, unknown elements, clashing atoms.
    """

    mol: Chem.Mol | None
    reason: str | None
    is_connected: bool


def molecule_key(mol: Chem.Mol) -> str:
    """Canonical SMILES without stereochemistry: equal for molecules with the same bonds.

    Args:
        mol: A perceived molecule, hydrogens as atoms.

    Returns:
        The key by which uniqueness and novelty count molecules.
    """
    flat = Chem.Mol(mol)
    for atom in flat.GetAtoms():
        atom.SetAtomMapNum(0)  # a label of somebody's, which RDKit would write into the SMILES
    Chem.RemoveStereochemistry(flat)  # first: RemoveHs keeps hydrogens that mark the sides of a double bond
    return str(Chem.MolToSmiles(Chem.RemoveHs(flat), isomericSmiles=False))


def hash_key(key: str) -> int:
    """63-bit hash of a key (it fits an int64 tensor), the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def has_charged_carbon(mol: Chem.Mol) -> bool:
    """Whether some carbon carries a charge, which the protocol accepts and real molecules hardly have."""
    return any(atom.GetAtomicNum() == 6 and atom.GetFormalCharge() != 0 for atom in mol.GetAtoms())
