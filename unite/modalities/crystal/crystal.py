"""A crystal: elements, fractional coordinates, and a cell; to and from pymatgen and ASE.

Letters: A atoms of the cell.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unite.errors import UserError, require_packages
from unite.modalities.crystal.elements import MASSES, MAX_ELEMENT, NUMBERS, SYMBOLS, by_electronegativity

if TYPE_CHECKING:
    import ase
    from pymatgen.core import Structure

EXTRA = "crystals"
"""The extra of the package with what crystals need."""
_U_PER_A3 = 1.66053906660  # g/cm³


@dataclass(frozen=True, eq=False)
class Crystal:
    """A periodic structure, as a model gives it or a file has it.

    Attributes:
        atomic_numbers: Elements, int64, shape (A,).
        fractional: Coordinates in units of the cell vectors, shape (A, 3); whole numbers added change nothing.
        cell: Lengths a, b, c in Å and angles alpha, beta, gamma in degrees, shape (6,).
        name: What a file or data set calls it.
    """

    atomic_numbers: NDArray[np.int64]
    fractional: NDArray[np.float64]
    cell: NDArray[np.float64]
    name: str = field(default="", compare=False)

    @property
    def num_atoms(self) -> int:
        """Atoms of the cell."""
        return len(self.atomic_numbers)

    @property
    def matrix(self) -> NDArray[np.float64]:
        """Cell vectors in Å as rows, shape (3, 3): a along x, b in the plane of x and y.

        Angles that no cell can have give a matrix without volume.
        """
        return cell_matrix(self.cell)

    @property
    def positions(self) -> NDArray[np.float64]:
        """Cartesian positions within the cell in Å, shape (A, 3)."""
        positions: NDArray[np.float64] = (self.fractional % 1.0) @ self.matrix
        return positions

    @property
    def volume(self) -> float:
        """Of the cell, in Å³; 0 if it is no cell."""
        return float(abs(np.linalg.det(self.matrix)))

    @property
    def density(self) -> float:
        """In g/cm³; infinite without a volume."""
        volume = self.volume
        return float(MASSES[self.atomic_numbers].sum() * _U_PER_A3 / volume) if volume > 0 else float("inf")

    @property
    def composition(self) -> tuple[tuple[int, int], ...]:
        """Pairs of atomic number and how often it is there, divided by what divides them all."""
        numbers, counts = np.unique(self.atomic_numbers, return_counts=True)
        divisor = np.gcd.reduce(counts) if len(counts) else 1
        return tuple(zip(numbers.tolist(), (counts // divisor).tolist(), strict=True))

    @property
    def formula(self) -> str:
        """Such as ``SrTiO3``: elements by electronegativity, all atoms of the cell, not divided."""
        order = by_electronegativity(self.atomic_numbers)
        symbols = [SYMBOLS[number] for number in self.atomic_numbers[order]]
        counts = {symbol: symbols.count(symbol) for symbol in symbols}
        return "".join(symbol + (str(count) if count > 1 else "") for symbol, count in counts.items())

    def __repr__(self) -> str:
        """Its formula and size."""
        return f"<Crystal {self.formula}, {self.num_atoms} atoms, {self.volume:.1f} Å³>"

    def _repr_png_(self) -> bytes:
        """The picture that notebooks show."""
        import io

        from unite.modalities.crystal.files.drawing import draw_cells

        content = io.BytesIO()
        draw_cells([self]).save(content, format="PNG")
        return content.getvalue()

    def in_order(self) -> Crystal:
        """The same crystal as data sets have it: atoms by electronegativity, coordinates within the cell."""
        order = by_electronegativity(self.atomic_numbers)
        return Crystal(self.atomic_numbers[order], self.fractional[order] % 1.0, self.cell, self.name)

    def to_pymatgen(self) -> Structure:
        """The structure for pymatgen.

        Raises:
            UserError: pymatgen is not installed.
        """
        require_packages("Crystal.to_pymatgen", EXTRA, "pymatgen.core")
        from pymatgen.core import Structure

        return Structure(self.matrix, [SYMBOLS[z] for z in self.atomic_numbers], self.fractional)

    def to_ase(self) -> ase.Atoms:
        """The structure for ASE.

        Raises:
            UserError: ASE is not installed.
        """
        require_packages("Crystal.to_ase", EXTRA, "ase")
        import ase

        return ase.Atoms(self.atomic_numbers, scaled_positions=self.fractional, cell=self.cell, pbc=True)

    def niggli(self) -> Crystal:
        """The crystal in its Niggli-reduced cell, as the data sets have theirs; atoms keep their order.

        Raises:
            UserError: pymatgen is not installed.
            ValueError: The cell cannot be reduced.
        """
        return from_pymatgen(self.to_pymatgen().get_reduced_structure("niggli"), self.name)


def as_crystal(item: Any) -> Crystal:
    """A crystal in any of the supported forms: ours, pymatgen's ``Structure`` or ASE's ``Atoms``.

    Raises:
        UserError: It is none of these, or cannot be used; see :func:`from_pymatgen` and :func:`from_ase`.
    """
    if isinstance(item, Crystal):
        return item
    if hasattr(item, "frac_coords"):
        return from_pymatgen(item)
    if hasattr(item, "get_scaled_positions"):
        return from_ase(item)
    raise UserError(
        f"a {type(item).__name__} is no crystal; give unite's Crystal, a pymatgen Structure or ASE Atoms with a cell"
    )


def from_pymatgen(structure: Structure, name: str = "") -> Crystal:
    """A crystal of a pymatgen structure.

    Raises:
        UserError: A site is disordered or holds no element.
    """
    if not structure.is_ordered:
        site = next(site for site in structure if not site.is_ordered)
        occupancy = sum(site.species.values())
        kind = "partial_occupancy" if len(site.species) == 1 and occupancy < 1 else "disordered"
        raise UnusableCrystalError(kind, f"site {site.species_string} at {np.round(site.frac_coords, 3).tolist()}")
    numbers = [NUMBERS.get(getattr(site.specie, "symbol", ""), getattr(site.specie, "Z", 0)) for site in structure]
    if (unknown := next((place for place, z in enumerate(numbers) if not 1 <= z <= MAX_ELEMENT), None)) is not None:
        raise UnusableCrystalError("unknown_element", structure[unknown].species_string)
    return checked(numbers, structure.frac_coords, structure.lattice.parameters, name)


def from_ase(atoms: ase.Atoms, name: str = "") -> Crystal:
    """A crystal of ASE atoms.

    Raises:
        UserError: They have no cell in three dimensions, or an atom is of no element.
    """
    cell = atoms.cell
    if cell.rank < 3:
        raise UnusableCrystalError("no_cell", f"its cell has {cell.rank} of 3 vectors")
    return checked(atoms.numbers, atoms.get_scaled_positions(wrap=False), cell.cellpar(), name)


def checked(numbers: Any, fractional: Any, cell: Any, name: str = "") -> Crystal:
    """A crystal of plain numbers.

    Raises:
        UserError: It has no atoms, an unknown element, a number that is not finite, or no volume.
    """
    crystal = Crystal(
        np.asarray(numbers, dtype=np.int64).reshape(-1),
        np.asarray(fractional, dtype=np.float64).reshape(-1, 3),
        np.asarray(cell, dtype=np.float64),
        name,
    )
    if not crystal.num_atoms:
        raise UnusableCrystalError("empty", "it has no atoms")
    if (unknown := (crystal.atomic_numbers < 1) | (crystal.atomic_numbers > MAX_ELEMENT)).any():
        raise UnusableCrystalError("unknown_element", f"atomic number {int(crystal.atomic_numbers[unknown][0])}")
    if not np.isfinite(crystal.fractional).all() or not np.isfinite(crystal.cell).all():
        raise UnusableCrystalError("nonfinite", "a number of it is not finite")
    if crystal.volume < MIN_VOLUME:
        raise UnusableCrystalError("no_volume", f"its cell has {crystal.volume:.3g} Å³")
    return crystal


MIN_VOLUME = 0.1
"""Å³; a cell of less is none (CDVAE, arXiv:2110.06197)."""


class UnusableCrystalError(UserError):
    """A structure that is no crystal of whole atoms.

    Attributes:
        kind: ``no_cell``, ``no_volume``, ``empty``, ``nonfinite``, ``unknown_element``, ``partial_occupancy``,
            ``disordered``, ``too_large`` or ``unreadable``.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind.replace('_', ' ')}: {detail}")
        self.kind = kind
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its two arguments: it comes out of worker processes."""
        return type(self), (self.kind, self.detail)


def cell_matrix(cell: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cell vectors (3, 3) as rows of lengths in Å and angles in degrees (6,); see :attr:`Crystal.matrix`."""
    a, b, c = cell[:3]
    alpha, beta, gamma = np.radians(cell[3:])
    along_b = (np.cos(alpha) - np.cos(beta) * np.cos(gamma)) / max(np.sin(gamma), 1e-12)
    upwards = 1 - np.cos(beta) ** 2 - along_b**2
    return np.array(
        [
            [a, 0, 0],
            [b * np.cos(gamma), b * np.sin(gamma), 0],
            [c * np.cos(beta), c * along_b, c * np.sqrt(max(upwards, 0.0))],
        ]
    )
