"""What molecules can be tuned by, and what of their distribution is to stay."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from unite.errors import require_packages
from unite.modalities.base import Traits
from unite.modalities.molecule.perception.molecule import Molecule, has_charged_carbon, molecule_key
from unite.modalities.molecule.perception.perceive import perceive_all
from unite.modalities.molecule.pictures import MoleculePictures

MOST_STRAIN: Final = 5.0
"""eV that count at most for strain, and for molecules that are invalid or cannot be relaxed."""


class RewardedMolecules(MoleculePictures):
    """Rewards and traits of finished molecules."""

    vocabulary: list[tuple[int, int]]
    """Atomic number and hydrogen count of each type."""

    def rewards(self) -> dict[str, Callable[[Sequence[Any]], Sequence[float]]]:
        """``validity``; ``neutral``, valid without a charge on a carbon; ``strain``, less of it by GFN2-xTB."""
        return {**super().rewards(), "neutral": are_neutral, "strain": less_strain}

    def traits(self, objects: Sequence[Molecule]) -> list[Traits | None]:
        """Atoms, rings, and atoms of each element but hydrogen and carbon, of valid molecules."""
        elements = sorted({number for number, _ in self.vocabulary} - {1, 6})
        found: list[Traits | None] = []
        for molecule, perception in zip(objects, perceive_all(objects), strict=True):
            mol = perception.mol
            if mol is None:
                found.append(None)
                continue
            numbers = molecule.atomic_numbers.tolist()
            counts = (len(numbers), mol.GetRingInfo().NumRings(), *(numbers.count(element) for element in elements))
            found.append(Traits(molecule_key(mol), counts))
        return found


def are_neutral(molecules: Sequence[Molecule]) -> list[float]:
    """1 for molecules that are valid without a charge on a carbon, else 0."""
    found = [perception.mol for perception in perceive_all(molecules)]
    return [float(mol is not None and not has_charged_carbon(mol)) for mol in found]


def less_strain(molecules: Sequence[Molecule]) -> list[float]:
    """Minus the energy in eV that relaxation by GFN2-xTB sets free, at most :data:`MOST_STRAIN`; that, of invalid ones.

    Raises:
        UserError: The packages are not installed.
    """
    from unite.modalities.molecule.metrics.physics import PACKAGES, relax_molecule
    from unite.modalities.physics import relax_first

    require_packages("reward strain", "physics", *PACKAGES)
    places = [place for place, perception in enumerate(perceive_all(molecules)) if perception.mol is not None]
    relaxed = relax_first(relax_molecule, [molecules[place] for place in places], len(places), "strain", "mol")
    rewards = [-MOST_STRAIN] * len(molecules)
    for place, measured in zip(places, relaxed, strict=True):
        if measured is not None:
            rewards[place] = -min(max(measured["strain"], 0.0), MOST_STRAIN)
    return rewards
