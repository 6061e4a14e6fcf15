"""From atoms and coordinates to chemistry: bonds, validity and keys of generated molecules.

A generated molecule is a list of elements with coordinates; whether it *is* a molecule has to be perceived.
Two perceptions live here:

- :func:`perceive`, the strict one behind ``validity``: pair-specific bond cutoffs, RDKit's bond-order search
  with a cap on its work, and no unconnected pieces, radicals or hydrogens that nobody generated. On QM9 it
  accepts 99.99 %.
- :func:`edm_stability`, the distance table of EDM (Hoogeboom et al. 2022, arXiv:2203.17003), for comparison
  with the literature. On QM9 it calls 95.2 % of the molecules stable.

Both run on many molecules at once: everything that can be decided from distances is decided in numpy for a
padded batch, so that RDKit sees only molecules that may be valid.

Dimension letters: M molecules, B molecules of one padded batch, A atoms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import rdkit
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds

if TYPE_CHECKING:  # judging molecules needs no torch
    from unite.modalities.molecule_graph import MolecularGraph

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

REJECT_REASONS: Final = (
    "empty",
    "nonfinite",
    "unknown_element",
    "clash",
    "overvalent_atom",
    "isolated_atom",
    "disconnected",
    "no_bond_orders",
    "iteration_cap",
    "sanitization",
    "radical",
    "implicit_hydrogen",
)
"""Why a molecule can be rejected, in the order of the checks: the first one that fails is reported.

``unknown_element`` is anything but H, C, N, O, F (for united atoms, anything but C, N, O, F);
``iteration_cap`` means that RDKit was stopped while searching bond orders, which no molecule of QM9 needs;
``sanitization`` that RDKit found bond orders and then refused them.
"""

_REASONS_WITHOUT_GRAPH: Final = REJECT_REASONS[:4]  # found before looking for bonds

ELEMENTS: Final = (1, 6, 7, 8, 9)
"""Atomic numbers in the order of the tables below; index ``len(ELEMENTS)`` stands for all others."""

MIN_DISTANCE: Final = 0.5
"""Å; atoms closer than this clash."""

MAX_BOND_ORDER_ITERATIONS: Final = 2000
"""Work allowed to RDKit's bond-order search. Uncapped, chains of 29 N or O run longer than anyone waits."""

# Rows and columns of every table: H, C, N, O, F, other. "Other" never bonds.
_OTHER = len(ELEMENTS)
_COVALENT_RADII = np.array([0.31, 0.76, 0.71, 0.66, 0.57])  # Å
_HEAVY_FACTOR, _HYDROGEN_FACTOR = 1.15, 1.30
_MAX_DEGREES = np.array([1, 4, 4, 2, 1, 0])  # four for nitrogen: zwitterions
_EDM_VALENCES = np.array([1, 4, 3, 2, 1, -1])  # -1 is never reached: other elements are not stable

_ELEMENT_INDICES = np.full(119, _OTHER)
_ELEMENT_INDICES[list(ELEMENTS)] = np.arange(len(ELEMENTS))

_MAX_BATCH_PAIRS = 2**19  # atom pairs of a padded batch: 4 MB per float64 array, which stays in cache


def _bond_cutoffs() -> FloatArray:
    """Largest bond length in Å by pair of elements, shape (6, 6); zero where no bond is possible."""
    factors = np.full((len(ELEMENTS), len(ELEMENTS)), _HEAVY_FACTOR)
    factors[0, :] = factors[:, 0] = _HYDROGEN_FACTOR  # looser, for nothing else lies near a hydrogen
    factors[0, 0] = 0.0  # H2 is not in QM9, and geminal hydrogens come close
    cutoffs = np.zeros((_OTHER + 1, _OTHER + 1))
    cutoffs[:_OTHER, :_OTHER] = factors * (_COVALENT_RADII[:, None] + _COVALENT_RADII[None, :])
    return cutoffs


def _edm_cutoffs() -> FloatArray:
    """Largest length in Å of single, double and triple bonds by pair of elements, shape (3, 6, 6).

    Typical bond lengths in pm and margins as EDM lists them (``qm9/bond_analyze.py`` of its code).
    """
    nan = np.nan  # no such bond
    lengths = np.array(
        [
            # H    C    N    O    F
            [
                [74, 109, 101, 96, 92],
                [109, 154, 147, 143, 135],
                [101, 147, 145, 140, 136],
                [96, 143, 140, 148, 142],
                [92, 135, 136, 142, 142],
            ],
            [
                [nan, nan, nan, nan, nan],
                [nan, 134, 129, 120, nan],
                [nan, 129, 125, 121, nan],
                [nan, 120, 121, 121, nan],
                [nan, nan, nan, nan, nan],
            ],
            [
                [nan, nan, nan, nan, nan],
                [nan, 120, 116, 113, nan],
                [nan, 116, 110, nan, nan],
                [nan, 113, nan, nan, nan],
                [nan, nan, nan, nan, nan],
            ],
        ]
    )
    margins = np.array([10.0, 5.0, 3.0])
    cutoffs = np.zeros((3, _OTHER + 1, _OTHER + 1))
    cutoffs[:, :_OTHER, :_OTHER] = np.nan_to_num((lengths + margins[:, None, None]) / 100)
    return cutoffs


_BOND_CUTOFFS = _bond_cutoffs()
_EDM_CUTOFFS = _edm_cutoffs()


@dataclass(frozen=True, eq=False)
class Molecule:
    """A finished molecule as generated, without padding. Any values are accepted; judging them comes later.

    Attributes:
        atomic_numbers: Atomic numbers, shape (A,).
        positions: Coordinates in Å, shape (A, 3).
        num_hydrogens: Hydrogens attached to each atom, shape (A,), for united atoms; None if hydrogens are
            atoms.
        graph: Bonds and charges that came with the atoms, where a model predicts both; perception ignores them.

    Raises:
        ValueError: If the shapes do not belong together or a number of hydrogens is negative.
    """

    atomic_numbers: IntArray
    positions: npt.NDArray[np.floating]
    num_hydrogens: IntArray | None = None
    graph: MolecularGraph | None = None

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


@dataclass(frozen=True, eq=False)
class EdmStability:
    """What EDM's bond distance table says about M molecules, each array of shape (M,).

    Attributes:
        num_atoms: Atoms, counted hydrogens included.
        num_stable_atoms: Atoms whose bond orders add up to their valence.
        is_stable: Whether all atoms are stable (and there are any).
        is_valid: Whether RDKit would sanitize the bonds of the table. This is EDM's validity; it does not ask
            for one connected piece and fills up missing hydrogens, so atoms flying apart are valid.
    """

    num_atoms: IntArray
    num_stable_atoms: IntArray
    is_stable: BoolArray
    is_valid: BoolArray


def perceive(molecule: Molecule) -> Perception:
    """Bonds of a molecule, or why it has none that make sense.

    1. At least two atoms, all coordinates finite, elements known, no two atoms closer than 0.5 Å.
    2. A bond where the distance is below ``f * (r_i + r_j)`` with covalent radii r; f is 1.15 between heavy
       atoms, 1.30 to a hydrogen; never between hydrogens.
    3. No atom with more than 1 (H, F), 4 (C, N) or 2 (O) neighbours or with none, and one connected piece.
    4. RDKit's bond orders for total charge zero (formal charges allowed), then RDKit's sanitization.
    5. No radical electron and no implicit hydrogen.

    For united atoms, the counted hydrogens take part from step 3 on as neighbours without a position. A
    single atom with hydrogens, such as methane, is then a molecule.

    Never hangs: see :data:`MAX_BOND_ORDER_ITERATIONS`. RDKit's log is silenced while it runs.

    Args:
        molecule: Molecule to look at.

    Returns:
        The RDKit molecule or the reason of rejection. Rotating and shifting the positions changes nothing.
        The order of the atoms matters to RDKit where several placements of charges are possible: of 10,000
        shuffled QM9 molecules 4 (nitro groups on rings) were no longer valid and 7 zwitterions got another
        key.

    Raises:
        RuntimeError: If the installed RDKit cannot limit its bond-order search.
    """
    return perceive_all([molecule])[0]


def perceive_all(molecules: Sequence[Molecule]) -> list[Perception]:
    """What :func:`perceive` gives for each of the molecules, faster than one by one."""
    _require_capped_bond_orders()
    perceptions: list[Perception | None] = [None] * len(molecules)
    with rdBase.BlockLogs():
        for batch in _batches(molecules):
            is_bond = _is_bond(batch)
            is_connected = _is_one_piece(is_bond, batch.num_sites)
            reasons = _reasons_without_rdkit(batch, is_bond, is_connected)
            is_connected &= batch.num_atoms >= 2
            is_open = np.array([reason is None for reason in reasons])
            bonds = _bond_lists(is_bond & is_open[:, None, None])
            for row, index in enumerate(batch.indices):
                mol, reason = None, reasons[row]
                if reason is None:
                    mol, reason = _assign_bond_orders(molecules[index], bonds[row])
                has_meaning = reason not in _REASONS_WITHOUT_GRAPH
                perceptions[index] = Perception(mol, reason, has_meaning and bool(is_connected[row]))
    return [perception for perception in perceptions if perception is not None]


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


def edm_stability(molecules: Sequence[Molecule]) -> EdmStability:
    """Stability and validity by EDM's table of bond lengths.

    An atom is stable when its bond orders add up to its valence: H 1, C 4, N 3, O 2, F 1. Non-finite
    coordinates make all atoms of a molecule unstable and the molecule invalid (in the original, NaN compares
    as "no bond").

    United atoms have only bonds between heavy atoms to look up; each counted hydrogen adds one to the order
    of its atom and is stable itself. Lengths of bonds to hydrogen then cannot fail, so the figures come out
    higher than for the same molecules with explicit hydrogens: compare them only with other united atoms.

    Args:
        molecules: M molecules.

    Returns:
        Arrays of shape (M,).
    """
    num_atoms = np.zeros(len(molecules), dtype=np.int64)
    num_stable_atoms = np.zeros(len(molecules), dtype=np.int64)
    is_valid = np.zeros(len(molecules), dtype=np.bool_)
    for batch in _batches(molecules):
        pairs = batch.elements[:, :, None], batch.elements[:, None, :]
        orders = np.zeros(batch.distances.shape, dtype=np.int64)
        for cutoffs in _EDM_CUTOFFS:  # a triple bond is shorter than the double and single ones, so they add up
            orders += batch.distances < cutoffs[pairs]
        valences = orders.sum(-1) + batch.num_hydrogens  # (B, A)
        allowed = _EDM_VALENCES[batch.elements]  # (B, A)
        is_stable = batch.is_site & (valences == allowed) & batch.is_finite[:, None]
        stable_hydrogens = batch.num_hydrogens.sum(-1) * batch.is_finite
        num_atoms[batch.indices] = batch.num_atoms
        num_stable_atoms[batch.indices] = is_stable.sum(-1) + stable_hydrogens
        is_valid[batch.indices] = _sanitizes(batch, orders, valences, allowed)
    is_stable_molecule = (num_atoms > 0) & (num_stable_atoms == num_atoms)
    return EdmStability(num_atoms, num_stable_atoms, is_stable_molecule, is_valid)


def unite_hydrogens(molecule: Molecule) -> Molecule:
    """The same molecule with united atoms: each hydrogen is counted at the heavy atom nearest to it.

    Args:
        molecule: Molecule with hydrogens as atoms and at least one heavy atom.

    Returns:
        The heavy atoms in their order, with numbers of hydrogens.

    Raises:
        ValueError: If the hydrogens are counted already, or there is no heavy atom to count them at.
    """
    is_heavy = molecule.atomic_numbers != 1
    if molecule.num_hydrogens is not None or not is_heavy.any():
        raise ValueError("needs a molecule with hydrogens as atoms and at least one heavy atom")
    heavy, hydrogens = molecule.positions[is_heavy], molecule.positions[~is_heavy]
    nearest = np.linalg.norm(hydrogens[:, None] - heavy[None, :], axis=-1).argmin(1)
    num_hydrogens = np.bincount(nearest, minlength=len(heavy)).astype(np.int64)
    return Molecule(molecule.atomic_numbers[is_heavy], heavy, num_hydrogens)


def short_pairs(molecule: Molecule) -> list[tuple[int, int]]:
    """Pairs of atoms (first < second) within the bond cutoffs of :func:`perceive`, whether valid or not."""
    batch = next(_batches([molecule]))
    return _bond_lists(_is_bond(batch))[0]


@dataclass(frozen=True, eq=False)
class _Batch:
    """Molecules of similar size, padded. A *site* is an atom with a position, a counted hydrogen is none."""

    indices: IntArray  # (B,) of the molecules in the sequence given
    elements: IntArray  # (B, A) into the tables
    num_hydrogens: IntArray  # (B, A) counted hydrogens, zero where hydrogens are sites
    is_site: BoolArray  # (B, A)
    is_united: BoolArray  # (B,)
    is_finite: BoolArray  # (B,)
    distances: FloatArray  # (B, A, A) in Å; infinite on the diagonal and for padding

    @property
    def num_sites(self) -> IntArray:
        return np.asarray(self.is_site.sum(-1))

    @property
    def num_atoms(self) -> IntArray:
        return np.asarray(self.num_sites + self.num_hydrogens.sum(-1))


def _batches(molecules: Sequence[Molecule]) -> Iterator[_Batch]:
    """All molecules in padded batches of at most ``_MAX_BATCH_PAIRS`` atom pairs (or one larger molecule)."""
    sizes = np.array([len(molecule.atomic_numbers) for molecule in molecules], dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")  # of similar size, so that little is padding
    start = 0
    while start < len(order):
        largest = max(int(sizes[order[start]]), 1)
        stop = start + max(_MAX_BATCH_PAIRS // largest**2, 1)
        yield _pad(molecules, order[start:stop], largest)
        start = stop


def _pad(molecules: Sequence[Molecule], indices: IntArray, size: int) -> _Batch:
    atomic_numbers = np.zeros((len(indices), size), dtype=np.int64)
    positions = np.zeros((len(indices), size, 3))
    num_hydrogens = np.zeros((len(indices), size), dtype=np.int64)
    is_site = np.zeros((len(indices), size), dtype=np.bool_)
    is_united = np.zeros(len(indices), dtype=np.bool_)
    for row, index in enumerate(indices):
        molecule = molecules[index]
        num_sites = len(molecule.atomic_numbers)
        atomic_numbers[row, :num_sites] = molecule.atomic_numbers
        positions[row, :num_sites] = molecule.positions
        is_site[row, :num_sites] = True
        if molecule.num_hydrogens is not None:
            num_hydrogens[row, :num_sites] = molecule.num_hydrogens
            is_united[row] = True
    is_finite = np.asarray(np.isfinite(positions).all((1, 2)))
    positions[~is_finite] = 0.0
    distances = np.zeros((len(indices), size, size))
    with np.errstate(over="ignore"):  # coordinates of 1e200 are garbage, not a warning
        for axis in range(3):
            distances += (positions[:, :, None, axis] - positions[:, None, :, axis]) ** 2
    np.sqrt(distances, out=distances)
    distances[~(is_site[:, :, None] & is_site[:, None, :])] = np.inf
    distances[:, np.arange(size), np.arange(size)] = np.inf
    elements = _ELEMENT_INDICES[
        np.where((atomic_numbers > 0) & (atomic_numbers < len(_ELEMENT_INDICES)), atomic_numbers, 0)
    ]
    return _Batch(indices, elements, num_hydrogens, is_site, is_united, is_finite, distances)


def _is_bond(batch: _Batch) -> BoolArray:
    """Pairs within the bond cutoffs, shape (B, A, A)."""
    cutoffs = _BOND_CUTOFFS[batch.elements[:, :, None], batch.elements[:, None, :]]
    return np.asarray(batch.distances < cutoffs)


def _is_one_piece(is_bond: BoolArray, num_sites: IntArray) -> BoolArray:
    """Whether the sites of each graph are connected, shape (B,).

    Every site takes the smallest label among its neighbours, then the label of the site that its label names.
    The second step doubles the reach each time, so a chain of 29 needs a handful of rounds.
    """
    num_graphs, size, _ = is_bond.shape
    labels = np.broadcast_to(np.arange(size), (num_graphs, size)).copy()
    while True:
        neighbours = np.where(is_bond, labels[:, None, :], size).min(-1)  # (B, A)
        updated = np.minimum(labels, neighbours)
        updated = np.take_along_axis(updated, updated, axis=1)
        if np.array_equal(updated, labels):
            break
        labels = updated
    is_site = np.arange(size) < num_sites[:, None]
    return np.asarray((labels * is_site == 0).all(-1))


def _reasons_without_rdkit(batch: _Batch, is_bond: BoolArray, is_connected: BoolArray) -> list[str | None]:
    """First reason to reject each of the B molecules that needs no bond orders; None for those left."""
    max_degrees = _MAX_DEGREES[batch.elements]  # (B, A)
    degrees = is_bond.sum(-1) + batch.num_hydrogens  # (B, A)
    is_unknown = (batch.elements == _OTHER) | (batch.is_united[:, None] & (batch.elements == ELEMENTS.index(1)))
    checks: dict[str, BoolArray] = {
        "empty": batch.num_sites == 0,
        "nonfinite": ~batch.is_finite,
        "unknown_element": (batch.is_site & is_unknown).any(-1),
        "clash": np.asarray((batch.distances < MIN_DISTANCE).any((1, 2))),
        "overvalent_atom": (batch.is_site & (degrees > max_degrees)).any(-1),
        "isolated_atom": (batch.is_site & (degrees == 0)).any(-1),
        "disconnected": ~is_connected,
    }
    reasons: list[str | None] = [None] * len(batch.indices)
    for reason, fails in reversed(checks.items()):  # so that the first one is written last
        for row in np.flatnonzero(fails):
            reasons[row] = reason
    return reasons


def _bond_lists(is_bond: BoolArray) -> list[list[tuple[int, int]]]:
    """Bonded pairs (first < second) of each graph."""
    graphs, first, second = np.nonzero(np.triu(is_bond, 1))
    bounds = np.searchsorted(graphs, np.arange(len(is_bond) + 1)).tolist()
    pairs = list(zip(first.tolist(), second.tolist(), strict=True))
    return [pairs[start:stop] for start, stop in pairwise(bounds)]


def _assign_bond_orders(molecule: Molecule, bonds: list[tuple[int, int]]) -> tuple[Chem.Mol | None, str | None]:
    """Steps 4 and 5 of :func:`perceive`: the molecule or the reason."""
    mol = _graph(molecule, bonds)
    try:
        rdDetermineBonds.DetermineBondOrders(mol, charge=0, embedChiral=False, maxIterations=MAX_BOND_ORDER_ITERATIONS)
    except (ValueError, RuntimeError) as error:
        return None, "iteration_cap" if "Max Iterations" in str(error) else "no_bond_orders"
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


def _sanitizes(batch: _Batch, orders: IntArray, valences: IntArray, allowed: IntArray) -> BoolArray:
    """Whether RDKit sanitizes neutral atoms with these bond orders, shape (B,).

    With H, C, N, O, F, no charges and no aromatic bonds given, sanitizing comes down to comparing valences,
    which needs no RDKit. The exception is nitrogen of valence five, from which RDKit makes charged groups
    (nitro, azide): there it is asked.
    """
    is_known = (~batch.is_site | (batch.elements != _OTHER)).all(-1)
    is_candidate = batch.is_finite & is_known & (batch.num_sites > 0)
    excess = np.where(batch.is_site, valences - allowed, 0)  # (B, A)
    is_pentavalent_nitrogen = (batch.elements == ELEMENTS.index(7)) & (excess == 2)
    is_valid: BoolArray = is_candidate & (excess <= 0).all(-1)
    is_open = is_candidate & ~is_valid & ((excess <= 0) | is_pentavalent_nitrogen).all(-1)
    with rdBase.BlockLogs():
        for row in np.flatnonzero(is_open):
            is_valid[row] = _rdkit_sanitizes(
                [ELEMENTS[element] for element in batch.elements[row, batch.is_site[row]]],
                orders[row],
                batch.num_hydrogens[row],
            )
    return is_valid


def _rdkit_sanitizes(atomic_numbers: list[int], orders: IntArray, num_hydrogens: IntArray) -> bool:
    mol = Chem.RWMol()
    for atomic_number in atomic_numbers:
        mol.AddAtom(Chem.Atom(atomic_number))
    for first, second in np.argwhere(np.triu(orders)).tolist():
        mol.AddBond(first, second, Chem.BondType.values[int(orders[first, second])])
    for atom, count in enumerate(num_hydrogens.tolist()):
        for _ in range(count):
            mol.AddBond(atom, mol.AddAtom(Chem.Atom(1)), Chem.BondType.SINGLE)
    try:
        Chem.SanitizeMol(mol)
    except (ValueError, RuntimeError):
        return False
    return True


@cache
def _require_capped_bond_orders() -> None:
    if "maxIterations" not in (rdDetermineBonds.DetermineBondOrders.__doc__ or ""):
        raise RuntimeError(
            f"RDKit {rdkit.__version__} cannot limit its search for bond orders (DetermineBondOrders has no "
            "maxIterations), and one bad molecule would run for hours; 2025.3.6 can: pip install -U rdkit"
        )
