"""Whether generated molecules are distributed as real ones are, which validity and uniqueness do not show.

Every measure is a distance of the valid molecules to a reference, beside its *floor*: the same between two halves of
the reference. All are of heavy atoms, so that molecules with and without explicit hydrogens can be compared. Needs no
torch.
"""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Final, NamedTuple

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem.Scaffolds import MurckoScaffold

from unite.modalities.molecule.metrics.shares import share
from unite.modalities.molecule.perception.molecule import Molecule

GROUPS: Final = {
    "alcohol": "[OX2H][CX4]",
    "ether": "[OX2]([CX4])[CX4]",
    "epoxide": "[OX2]1[CX4][CX4]1",
    "aldehyde": "[CX3H1]=O",
    "ketone": "[#6][CX3](=O)[#6]",
    "ester": "[CX3](=O)[OX2][#6]",
    "amide": "[CX3](=O)[NX3]",
    "primary_amine": "[NX3H2][CX4]",
    "secondary_amine": "[NX3H1]([CX4])[CX4]",
    "tertiary_amine": "[NX3]([CX4])([CX4])[CX4]",
    "aziridine": "[NX3]1[CX4][CX4]1",
    "imine": "[CX3]=[NX2]",
    "nitrile": "[CX2]#[NX1]",
    "alkene": "[CX3]=[CX3]",
    "alkyne": "[CX2]#[CX2]",
    "aromatic": "a",
}
"""Functional groups and their SMARTS."""

RING_SIZES: Final = (3, 4, 5, 6)

SCAFFOLDS_OF: Final = 1000
"""Molecules whose distinct scaffolds are counted: their number grows with that of the molecules."""

_SEED = 0  # of the halves of the reference
_SIGNS = {Chem.BondType.SINGLE: "-", Chem.BondType.DOUBLE: "=", Chem.BondType.TRIPLE: "#", Chem.BondType.AROMATIC: ":"}


class Shape(NamedTuple):
    """The values of a valid molecule that the distributions need.

    Attributes:
        bonds: Lengths in Å of bonds of heavy atoms, by type such as ``C=N``.
        angles: Angles in degrees between such bonds, by type such as ``C-C=O``.
        rings: Size of each ring.
        elements: Number of heavy atoms of each element.
        radius: Radius of gyration of the heavy atoms, unweighted, in Å.
        scaffold: Its generic Bemis-Murcko scaffold as a SMILES; empty without rings.
        groups: Names of its functional groups, of :data:`GROUPS`.
    """

    bonds: list[tuple[str, float]]
    angles: list[tuple[str, float]]
    rings: list[int]
    elements: dict[str, int]
    radius: float
    scaffold: str
    groups: list[str]


def shape_of(molecule: Molecule, mol: Chem.Mol) -> Shape:
    """Describe a valid molecule.

    Args:
        molecule: Its positions; those of its first atoms are asked for.
        mol: What perception made of it, atoms in the same order, counted hydrogens behind them.
    """
    places = molecule.positions.tolist()
    heavy = [atom.GetIdx() for atom in mol.GetAtoms() if atom.GetAtomicNum() > 1]
    symbols = {index: mol.GetAtomWithIdx(index).GetSymbol() for index in heavy}
    neighbours: dict[int, list[tuple[int, str]]] = defaultdict(list)
    bonds = []
    for bond in mol.GetBonds():
        first, second, sign = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), _SIGNS.get(bond.GetBondType(), "~")
        if first in symbols and second in symbols:
            neighbours[first].append((second, sign))
            neighbours[second].append((first, sign))
            ends = sorted((symbols[first], symbols[second]))
            bonds.append((sign.join(ends), math.dist(places[first], places[second])))
    angles = [
        (_angle_type(symbols, one, middle, other), _angle(places, one[0], middle, other[0]))
        for middle, around in neighbours.items()
        for number, one in enumerate(around)
        for other in around[:number]
    ]
    positions = molecule.positions[heavy]
    with rdBase.BlockLogs():
        bare = Chem.RemoveHs(mol)
        groups = [name for name, pattern in _patterns().items() if bare.HasSubstructMatch(pattern)]
        scaffold = _generic_scaffold(bare)
    return Shape(
        bonds,
        angles,
        list(map(len, mol.GetRingInfo().AtomRings())),
        dict(Counter(symbols.values())),
        float(np.sqrt(np.square(positions - positions.mean(axis=0)).sum(axis=1).mean())),
        scaffold,
        groups,
    )


def _angle_type(symbols: Mapping[int, str], one: tuple[int, str], middle: int, other: tuple[int, str]) -> str:
    (first, second) = sorted(((symbols[one[0]], one[1]), (symbols[other[0]], other[1])))
    return f"{first[0]}{first[1]}{symbols[middle]}{second[1]}{second[0]}"


def _angle(places: Sequence[Sequence[float]], first: int, middle: int, second: int) -> float:
    """Angle at the middle one of three atoms, in degrees."""
    a, b = (math.dist(places[middle], places[end]) for end in (first, second))
    opposite = math.dist(places[first], places[second])
    cosine = (a * a + b * b - opposite * opposite) / (2 * a * b)
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


@cache
def _patterns() -> dict[str, Chem.Mol]:
    return {name: Chem.MolFromSmarts(text) for name, text in GROUPS.items()}


def _generic_scaffold(mol: Chem.Mol) -> str:
    try:
        scaffold = MurckoScaffold.GetScaffoldForMol(mol)
        return str(Chem.MolToSmiles(MurckoScaffold.MakeScaffoldGeneric(scaffold)))
    except (ValueError, RuntimeError):  # an atom of more than four bonds is no carbon
        return ""


def compare_shapes(samples: Sequence[Shape], reference: Sequence[Shape]) -> dict[str, float]:
    """Distances of samples to a reference, and what each has, by name.

    - ``distance/bond_lengths`` (Å), ``distance/bond_angles`` (degrees): earth mover's distance (W1) of each type,
      averaged over types by how often the samples have them. ``distance/radius_of_gyration`` (Å): W1.
    - ``distance/bond_lengths_outside``, ``distance/bond_angles_outside``: share of molecules with one that lies outside
      the range of its type in the reference, or of a type that the reference does not have.
    - ``distance/rings``, ``distance/ring_sizes``, ``distance/elements``: total variation of the number of rings, of
      the sizes of all rings, of the elements of all heavy atoms.
    - ``distance/groups``: mean over :data:`GROUPS` of the difference between the shares of molecules that have one.
    - ``floor/...``: the same from one half of the reference to the other.
    - ``samples/...`` and ``reference/...``: means of a molecule, shares of molecules with a group, and distinct generic
      scaffolds among the first :data:`SCAFFOLDS_OF`, or among as many as both have.

    Args:
        samples: Valid molecules, at least one.
        reference: Molecules to compare with, at least two.
    """
    num_scaffolds = min(SCAFFOLDS_OF, len(samples), len(reference))
    shuffled = random.Random(_SEED).sample(list(reference), len(reference))
    middle = len(reference) // 2
    sets = {
        "distance": _distances(samples, reference),
        "floor": _distances(shuffled[:middle], shuffled[middle:]),
        "samples": _means(samples, num_scaffolds),
        "reference": _means(reference, num_scaffolds),
    }
    return {f"{kind}/{name}": value for kind, values in sets.items() for name, value in values.items()}


def _distances(samples: Sequence[Shape], reference: Sequence[Shape]) -> dict[str, float]:
    from scipy.stats import wasserstein_distance

    lengths, angles = _by_type(shape.bonds for shape in samples), _by_type(shape.angles for shape in samples)
    true_lengths, true_angles = _by_type(s.bonds for s in reference), _by_type(s.angles for s in reference)
    return {
        "bond_lengths": _mean_transport(lengths, true_lengths),
        "bond_lengths_outside": _share_outside([shape.bonds for shape in samples], true_lengths),
        "bond_angles": _mean_transport(angles, true_angles),
        "bond_angles_outside": _share_outside([shape.angles for shape in samples], true_angles),
        "radius_of_gyration": float(wasserstein_distance([s.radius for s in samples], [s.radius for s in reference])),
        "rings": _variation(*(Counter(len(shape.rings) for shape in shapes) for shapes in (samples, reference))),
        "ring_sizes": _variation(*(Counter(r for s in shapes for r in s.rings) for shapes in (samples, reference))),
        "elements": _variation(*(_elements(shapes) for shapes in (samples, reference))),
        "groups": float(np.mean([abs(_group_share(samples, g) - _group_share(reference, g)) for g in GROUPS])),
    }


def _means(shapes: Sequence[Shape], num_scaffolds: int) -> dict[str, float]:
    num = len(shapes)
    values = {"rings": sum(len(shape.rings) for shape in shapes) / num}
    for size in RING_SIZES:
        values[f"rings_of_{size}"] = sum(shape.rings.count(size) for shape in shapes) / num
    atoms = _elements(shapes)
    values["hetero_atoms"] = (atoms.total() - atoms["C"]) / num
    values["radius_of_gyration"] = float(np.mean([shape.radius for shape in shapes]))
    values["scaffolds"] = float(len({shape.scaffold for shape in shapes[:num_scaffolds]}))
    return values | {f"group/{name}": _group_share(shapes, name) for name in GROUPS}


def _by_type(measured: Iterable[list[tuple[str, float]]]) -> dict[str, list[float]]:
    values: dict[str, list[float]] = defaultdict(list)
    for found in measured:
        for kind, value in found:
            values[kind].append(value)
    return values


def _mean_transport(samples: Mapping[str, list[float]], reference: Mapping[str, list[float]]) -> float:
    """Mean over types of W1, weighted by the number of samples, of the types that the reference has."""
    from scipy.stats import wasserstein_distance

    known = [kind for kind in samples if kind in reference]
    total = sum(len(samples[kind]) * wasserstein_distance(samples[kind], reference[kind]) for kind in known)
    return float(share(total, sum(len(samples[kind]) for kind in known)))


def _share_outside(molecules: Sequence[list[tuple[str, float]]], reference: Mapping[str, list[float]]) -> float:
    ranges = {kind: (min(values), max(values)) for kind, values in reference.items()}
    nowhere = (math.inf, -math.inf)

    def is_outside(kind: str, value: float) -> bool:
        low, high = ranges.get(kind, nowhere)
        return not low <= value <= high

    return sum(any(is_outside(*each) for each in molecule) for molecule in molecules) / len(molecules)


def _elements(shapes: Iterable[Shape]) -> Counter[str]:
    atoms: Counter[str] = Counter()
    for shape in shapes:
        atoms.update(shape.elements)
    return atoms


def _group_share(shapes: Sequence[Shape], name: str) -> float:
    return sum(name in shape.groups for shape in shapes) / len(shapes)


def _variation(first: Counter, second: Counter) -> float:  # type: ignore[type-arg]
    """Total variation of two counted distributions: half the sum of absolute differences of shares."""
    a, b = max(first.total(), 1), max(second.total(), 1)
    return 0.5 * sum(abs(first[key] / a - second[key] / b) for key in first.keys() | second.keys())
