"""Bond orders and charges by valence rules: exact, capped, and right on molecules of many elements."""

import itertools
import random

import numpy as np
import pytest
from rdkit import Chem

from tests.support.samples.conformers import MANY_ELEMENTS, embedded
from unite.modalities.molecule.perception import bond_orders, valences
from unite.modalities.molecule.perception.distances import unite_hydrogens
from unite.modalities.molecule.perception.elements import ELEMENTS
from unite.modalities.molecule.perception.molecule import REJECT_REASONS, Molecule, molecule_key
from unite.modalities.molecule.perception.perceive import perceive, perceive_all
from unite.modalities.molecule.perception.valences import OutOfWorkError, assign_orders


def key(molecule: Molecule) -> str | None:
    found = perceive(molecule)
    return None if found.mol is None else molecule_key(found.mol)


# ---------------------------------------------------------------------- real molecules


@pytest.mark.parametrize("smiles", MANY_ELEMENTS)
def test_molecules_of_many_elements_get_their_bonds(smiles: str) -> None:
    molecule, expected = embedded(smiles)
    assert key(molecule) == expected
    assert key(unite_hydrogens(molecule)) == expected


def test_every_known_element_is_in_a_test() -> None:
    found = {int(number) for smiles in MANY_ELEMENTS for number in embedded(smiles)[0].atomic_numbers}
    assert found == set(ELEMENTS)


@pytest.mark.parametrize("smiles", MANY_ELEMENTS)
def test_order_of_atoms_changes_nothing(smiles: str) -> None:
    molecule, expected = embedded(smiles)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(molecule.atomic_numbers))
        assert key(Molecule(molecule.atomic_numbers[order], molecule.positions[order])) == expected


def test_our_assignment_agrees_with_the_search_of_rdkit_where_that_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    smiles = [
        "c1ccc2ccccc2c1",
        "CC(=O)NC1CC1",
        "N#CC=CC#C",
        "O=c1cc[nH]c(=O)[nH]1",
        "C=C1C=CC(=C)C=C1",
    ]
    expected = [embedded(each)[1] for each in smiles]
    monkeypatch.setattr(bond_orders, "_QM9_ELEMENTS", frozenset())
    molecules = [embedded(each)[0] for each in smiles]
    assert [key(Molecule(each.atomic_numbers, each.positions)) for each in molecules] == expected


@pytest.mark.parametrize(
    ("smiles", "wrong"),
    [
        ("CC(=O)[O-]", (0, 1, -2)),
        ("C[NH3+]", (0, -1, 2)),
        ("C[N+](C)(C)CC(=O)[O-]", (1, -1)),
        ("Cn1cc[n+](C)c1", (0, 2)),
        ("C[S+](C)C", (0, -1)),
        ("[O-]c1ccc([N+](=O)[O-])cc1", (0, -2)),
        ("[O-]P([O-])(=O)OC", (0, -1)),
        ("F[B-](F)(F)F", (0, 1)),
        ("C[P+](C)(C)C", (0, -1)),
    ],
)
def test_total_charge_is_obeyed(smiles: str, wrong: tuple[int, ...]) -> None:
    molecule, expected = embedded(smiles)
    assert key(molecule) == expected
    for charge in wrong:
        found = perceive(Molecule(molecule.atomic_numbers, molecule.positions, charge=charge))
        assert found.mol is None
        assert found.reason in ("no_bond_orders", "radical")


@pytest.mark.parametrize(
    "smiles", ["[CH3]", "C[CH2]", "[NH2]", "[SiH3]", "C[S]", "[PH2]", "[O]N=O", "[N]=O", "C[Si]", "CS[CH2]", "Cl[O]"]
)
def test_radicals_are_refused(smiles: str) -> None:
    molecule, _ = embedded(smiles)
    assert perceive(molecule).reason in ("no_bond_orders", "radical")


def test_short_bonds_of_equal_valence_rules_are_the_double_ones() -> None:
    # A chain of six carbons with one hydrogen each is hexatriene or nothing; in a ring of eight there are two ways.
    ring = [(atom, (atom + 1) % 8) for atom in range(8)]
    for shift in (0, 1):
        lengths = [0.87 if bond % 2 == shift else 0.96 for bond in range(8)]
        found = assign_orders([6] * 8, [3] * 8, ring, lengths)
        assert found is not None
        assert found.orders == [2 if bond % 2 == shift else 1 for bond in range(8)]


# ---------------------------------------------------------------------- exactness


def brute_force(numbers: list[int], degrees: list[int], bonds: list[tuple[int, int]], charge: int) -> float | None:
    """Least cost over all bond orders and all states of all atoms."""
    problem = valences._Problem(numbers, degrees, bonds, [1.0] * len(bonds), charge)
    best: float | None = None
    for orders in itertools.product((0, 1, 2), repeat=len(bonds)):
        extra = [0] * len(numbers)
        for order, bond in zip(orders, bonds, strict=True):
            for atom in bond:
                extra[atom] += order
        fitting = [
            [state for state in states if state.extra == more]
            for states, more in zip(problem.states, extra, strict=True)
        ]
        for states in itertools.product(*fitting):
            if sum(state.charge for state in states) == charge:
                cost = sum(state.cost for state in states)
                best = cost if best is None else min(best, cost)
    return best


@pytest.mark.parametrize("seed", range(120))
def test_least_cost_is_found_as_by_trying_everything(seed: int) -> None:
    chooser = random.Random(seed)
    size = chooser.randint(2, 6)
    bonds = [(chooser.randrange(atom), atom) for atom in range(1, size)]
    bonds += [pair for pair in itertools.combinations(range(size), 2) if pair not in bonds and chooser.random() < 0.1]
    numbers = [chooser.choice([5, 6, 6, 6, 7, 7, 8, 15, 16, 16, 17]) for _ in range(size)]
    heavy = [sum(atom in bond for bond in bonds) for atom in range(size)]
    degrees = [count + chooser.choice([0, 0, 1]) for count in heavy]
    charge = chooser.choice([0, 0, 0, -1, 1])
    expected = brute_force(numbers, degrees, bonds, charge)
    problem = valences._Problem(numbers, degrees, bonds, [1.0] * len(bonds), charge)
    found = problem._total(problem.states) if all(problem.states) else None
    if expected is None:
        assert found is None
        assert assign_orders(numbers, degrees, bonds, [1.0] * len(bonds), charge) is None
        return
    assert found is not None
    assert found.cost == pytest.approx(expected, abs=0.1)  # lengths weigh less
    orders, charges = assign_orders(numbers, degrees, bonds, [1.0] * len(bonds), charge) or ([], [])
    assert sum(charges) == charge
    assert all(1 <= order <= 3 for order in orders)


# ---------------------------------------------------------------------- garbage and work


def test_garbage_of_twelve_elements_is_never_valid() -> None:
    generator = np.random.default_rng(0)
    elements = np.array([1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53])
    molecules = []
    for smiles in [smiles for smiles in MANY_ELEMENTS if len(smiles) > 12] * 8:
        real, _ = embedded(smiles)
        shape = real.positions.shape
        numbers = generator.choice(elements, size=len(real.atomic_numbers))
        heavy = generator.choice(elements[1:], size=len(real.atomic_numbers))
        molecules += [
            Molecule(numbers, real.positions),
            Molecule(numbers, generator.uniform(0, 5, shape)),
            Molecule(numbers, generator.uniform(0, 8, shape)),
            Molecule(numbers, generator.uniform(0, 20, shape)),
            Molecule(numbers, generator.normal(size=shape)),
            Molecule(numbers, generator.normal(scale=0.05, size=shape)),
            Molecule(real.atomic_numbers, real.positions + generator.normal(scale=0.5, size=shape)),
            Molecule(numbers, np.full(shape, np.nan)),
            Molecule(heavy, generator.normal(scale=1.5, size=shape), generator.integers(0, 4, len(heavy))),
        ]
    found = perceive_all(molecules)
    assert [perception.mol and molecule_key(perception.mol) for perception in found] == [None] * len(molecules)
    assert {perception.reason for perception in found} <= set(REJECT_REASONS)


@pytest.mark.parametrize("elements", [(16, 6), (15, 7), (5, 7), (14, 8), (16, 7), (34, 6)])
def test_chains_and_ladders_end(elements: tuple[int, int]) -> None:
    steps = np.arange(60)
    numbers = np.array([elements[step % 2] for step in steps], dtype=np.int64)
    chain = np.stack([1.7 * steps, 0.5 * (steps % 2), np.zeros(60)], axis=1)
    ladder = np.stack([1.7 * (steps // 2), 1.7 * (steps % 2), np.zeros(60)], axis=1)
    for positions in (chain, ladder):
        assert perceive(Molecule(numbers, positions)).reason in (*REJECT_REASONS, None)


def test_work_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valences, "MAX_STATES", 10)
    with pytest.raises(OutOfWorkError):
        assign_orders([6] * 40, [3] * 40, [(atom, (atom + 1) % 40) for atom in range(40)], [1.0] * 40)
    molecule, _ = embedded("c1ccc2c(c1)sc1ccccc12")
    assert perceive(Molecule(molecule.atomic_numbers, molecule.positions)).reason == "iteration_cap"


@pytest.mark.parametrize(("first", "second", "ratio"), [(17, 6, 0.69), (16, 1, 0.69), (53, 53, 0.69)])
def test_heavier_atoms_clash_at_a_share_of_their_radii(first: int, second: int, ratio: float) -> None:
    radii = [Chem.GetPeriodicTable().GetRcovalent(number) for number in (first, second)]
    numbers = np.array([first, second], dtype=np.int64)
    for share, is_clash in ((ratio, True), (ratio + 0.02, False)):
        positions = np.array([[0, 0, 0], [share * sum(radii), 0, 0]])
        assert (perceive(Molecule(numbers, positions)).reason == "clash") == is_clash


def test_aromatic_bonds_stay_those_of_rdkit() -> None:
    molecule, _ = embedded("c1ccc2c(c1)sc1ccccc12")
    mol = perceive(molecule).mol
    assert mol is not None
    assert sum(bond.GetIsAromatic() for bond in mol.GetBonds()) == 15
