"""Parts of molecules that generation keeps: read, placed in the samples, and put into what a model predicts.

The decoder says where all atoms of a sample lie. Of its prediction, the part's atoms are replaced by the part itself:
rotated and shifted onto where the model has put them, with the likeliest of the types that they may have. The result is
tokenized again, and sampling goes on from there (:meth:`unite.generation.GeneratingModule.sample_latents`).

Hydrogens: the rest of a molecule is bonded to the part, and takes the place of hydrogens there. So an atom of the part
keeps its element, and the model says how many counted hydrogens it has: as many as its bonds within the part leave room
for, or fewer. Hydrogens that are atoms are kept where they are named; all others are the model's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor

from unite.errors import UserError, require
from unite.modalities.atoms import centre, draw_sizes, superposed
from unite.modalities.base import Template
from unite.modalities.conditions import as_ranges
from unite.modalities.molecule.files.reading import find_files, parse, read_records
from unite.modalities.molecule.files.structures import symbol_of
from unite.modalities.molecule.graph import is_one_piece
from unite.modalities.molecule.measured import MeasuredMolecules
from unite.modalities.molecule.perception.distances import short_pairs
from unite.modalities.molecule.perception.elements import FloatArray, IntArray
from unite.modalities.molecule.perception.molecule import Molecule
from unite.modalities.molecule.preparation import MoleculePrediction, PreparedMolecules, max_hydrogens
from unite.modalities.template import FixedPart, Wanted


@dataclass(frozen=True, eq=False)
class Part:
    """Atoms that stay together.

    Attributes:
        atomic_numbers: Atomic numbers, shape (P,).
        positions: Coordinates in Å, shape (P, 3).
        num_bonds: Bonds of each to others of the part, by their distances, shape (P,).
    """

    atomic_numbers: IntArray
    positions: FloatArray
    num_bonds: IntArray


def read_part(source: object, atoms: Sequence[int] | None, are_hydrogens_counted: bool) -> Part:
    """Atoms of a molecule, heavy ones first, and else in its order: models know the order of their data.

    Args:
        source: An SDF, MOL or XYZ file of one molecule; a :class:`Molecule`; or an RDKit molecule with a conformer.
        atoms: Their numbers, from 0; None for all heavy ones.
        are_hydrogens_counted: Whether the model counts hydrogens on heavy atoms, so that none can be a part.

    Raises:
        UserError: It cannot be read, has no such atoms, or they are in several pieces.
    """
    molecule, name = _molecule_of(source)
    numbers = molecule.atomic_numbers
    is_heavy = numbers != 1
    chosen = np.flatnonzero(is_heavy).tolist() if atoms is None else sorted(atoms)
    require(bool(chosen), f"fix_atoms names no atom of {name}" if atoms is not None else f"{name} has no heavy atom")
    for atom in chosen:
        require(0 <= atom < len(numbers), f"fix_atoms has {atom}, but {name} has the atoms 0 .. {len(numbers) - 1}")
        require(chosen.count(atom) == 1, f"fix_atoms names atom {atom} twice")
        if are_hydrogens_counted and not is_heavy[atom]:
            raise UserError(
                f"fix_atoms has {atom}, a hydrogen of {name}, but this model counts hydrogens on heavy atoms: "
                "name heavy atoms alone"
            )
    chosen = [atom for atom in chosen if is_heavy[atom]] + [atom for atom in chosen if not is_heavy[atom]]
    positions: FloatArray = molecule.positions[chosen].astype(np.float64)
    part = Molecule(numbers[chosen], positions)
    require(bool(np.isfinite(part.positions).all()), f"{name} has a position that is not finite")
    bonds = np.zeros((len(chosen), len(chosen)), dtype=np.int64)
    for first, second in short_pairs(part):
        bonds[first, second] = bonds[second, first] = 1
    require(
        is_one_piece(bonds),
        f"the atoms {', '.join(map(str, chosen))} of {name} are in several pieces by their distances: "
        "fix_atoms takes atoms that are bonded to one another",
    )
    return Part(part.atomic_numbers, positions, bonds.sum(axis=1))


def _molecule_of(source: object) -> tuple[Molecule, str]:
    """The molecule, and what to call it in messages."""
    if isinstance(source, Molecule):
        return source, "the molecule"
    if isinstance(source, Chem.Mol):
        is_in_space = source.GetNumConformers() > 0 and source.GetConformer().Is3D()
        require(is_in_space, "fix is an RDKit molecule without a conformer in space: give it one")
        numbers = np.array([atom.GetAtomicNum() for atom in source.GetAtoms()], dtype=np.int64)
        return Molecule(numbers, source.GetConformer().GetPositions()), "the molecule"
    if not isinstance(source, str | Path):
        raise UserError(f"fix is a {type(source).__name__}; it takes a file, a Molecule or an RDKit molecule")
    path = Path(source)
    require(path.is_file(), f"--fix {path}: no such file")
    records = list(read_records(find_files(path)))
    require(len(records) == 1, f"--fix {path} has {len(records)} molecules; it takes a file of one")
    entry = parse(records[0])
    if entry.molecule is None:
        raise UserError(f"--fix {path} cannot be read: {entry.error}")
    require(not entry.is_flat, f"--fix {path} is a drawing in the plane; it takes positions in space")
    return entry.molecule, str(path)


class PartKeepingMolecules(MeasuredMolecules):
    """Keeps a part of a molecule in what is generated: the part of the adapter that knows how."""

    size_counts: Tensor
    """Training molecules by number of atoms."""

    def with_part(self, template: Template, wanted: Wanted, generator: torch.Generator | None) -> Template:
        """Samples with more atoms than the part, whose places are drawn: in a row, anywhere among the atoms.

        Where hydrogens are atoms, they come last, as in the data; the heavy atoms of the part then come first.
        """
        view = "bonds" if self.bonds else "no positions"
        require(self.positions and not self.bonds, f"fix is given, but this model has {view}: it takes positions alone")
        is_counted = self.hydrogens == "counted"
        part = read_part(wanted.fix, wanted.fix_atoms, is_counted)
        size, seen = len(part.atomic_numbers), self.size_counts.nonzero()[:, 0].tolist()
        allowed = self._allowed_types(part)
        counts = self.size_counts.cpu().clone()
        counts[: size + 1] = 0
        left = "nothing is left to generate"
        require(bool(counts.any()), f"the part has {size} atoms, and training data had {as_ranges(seen)}: {left}")
        small = [number for number in wanted.sizes or () if number <= size]
        require(not small, f"sizes has {min(small, default=0)}, but the part has {size} atoms: {left}")
        # Generators of their own: how far the given one has come depends on the number of samples.
        seed = (torch.default_generator if generator is None else generator).initial_seed()
        of_sizes, of_places = (torch.Generator().manual_seed((seed + number) % 2**63) for number in (1, 2))
        sizes = template.sizes
        if wanted.sizes is None:
            sizes = draw_sizes(counts, len(template), of_sizes, "molecules")
        numbers = torch.arange(size)
        if is_counted:
            shares = torch.rand(len(sizes), generator=of_places, dtype=torch.float64)
            numbers = numbers + (shares * (sizes - size + 1)).long()[:, None]
        else:
            is_hydrogen = torch.from_numpy(part.atomic_numbers == 1)
            numbers = numbers + is_hydrogen * (sizes - size)[:, None]
        placed = FixedPart(numbers, torch.from_numpy(part.positions).float(), allowed)
        return replace(template, sizes=sizes, part=placed)

    def _allowed_types(self, part: Part) -> Tensor:
        """Types (P, T) that the atoms of a part may have.

        Raises:
            UserError: The model lacks one of its elements.
        """
        known = list(dict.fromkeys(number for number, _ in self.vocabulary))
        for number in part.atomic_numbers.tolist():
            told = f"the part has {symbol_of(number)}, but this model knows {', '.join(map(symbol_of, known))}"
            require(number in known, told)
        rooms = [
            max(max_hydrogens(number) - bonds, 0)
            for number, bonds in zip(part.atomic_numbers.tolist(), part.num_bonds.tolist(), strict=True)
        ]
        atoms = zip(part.atomic_numbers.tolist(), rooms, strict=True)
        return torch.tensor(
            [[number == of_type and count <= room for of_type, count in self.vocabulary] for number, room in atoms]
        )

    def samples_of(self, prediction: MoleculePrediction) -> PreparedMolecules:
        """What is predicted, to be tokenized again."""
        return PreparedMolecules(prediction.types, prediction.positions, prediction.mask)


def with_part_in_place(prediction: MoleculePrediction, part: FixedPart) -> MoleculePrediction:
    """The prediction with the part where the model has put its atoms.

    Args:
        prediction: What the decoder says, with positions.
        part: Places, positions and types of the atoms.
    """
    rows = torch.arange(len(part.places), device=part.places.device)[:, None]
    logits, positions = prediction.type_logits.clone(), prediction.positions.clone()
    logits[rows, part.places] = logits[rows, part.places].masked_fill(~part.allowed_types, -torch.inf)
    positions[rows, part.places] = superposed(part.positions.to(positions), positions[rows, part.places])
    return replace(prediction, type_logits=logits, positions=centre(positions, prediction.mask))
