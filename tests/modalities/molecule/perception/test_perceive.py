import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds, rdDistGeom

from tests.support.samples.qm9_rows import random_molecules, tiny_molecules
from unite.modalities.molecule.perception import bond_orders, elements
from unite.modalities.molecule.perception.distances import short_pairs, unite_hydrogens
from unite.modalities.molecule.perception.elements import QM9_ELEMENTS
from unite.modalities.molecule.perception.molecule import REJECT_REASONS, Molecule, hash_key, molecule_key
from unite.modalities.molecule.perception.perceive import perceive, perceive_all
from unite.modalities.molecule.perception.stability import edm_stability

EDM_LENGTHS = {  # pm, written out once more so that a typo in the package's table shows
    1: {"HH": 74, "HC": 109, "HN": 101, "HO": 96, "HF": 92, "CC": 154, "CN": 147, "CO": 143, "CF": 135}
    | {"NN": 145, "NO": 140, "NF": 136, "OO": 148, "OF": 142, "FF": 142},
    2: {"CC": 134, "CN": 129, "CO": 120, "NN": 125, "NO": 121, "OO": 121},
    3: {"CC": 120, "CN": 116, "CO": 113, "NN": 110},
}
EDM_MARGINS = {1: 10, 2: 5, 3: 3}
EDM_VALENCES = {1: 1, 6: 4, 7: 3, 8: 2, 9: 1}
SYMBOLS = dict(zip(QM9_ELEMENTS, "HCNOF", strict=True))


def molecule(
    atomic_numbers: Sequence[int], positions: Sequence[Any], num_hydrogens: Sequence[int] | None = None
) -> Molecule:
    return Molecule(
        np.array(atomic_numbers, dtype=np.int64),
        np.array(positions, dtype=np.float64).reshape(-1, 3),
        None if num_hydrogens is None else np.array(num_hydrogens, dtype=np.int64),
    )


def chain(atomic_numbers: Sequence[int], num_hydrogens: Sequence[int] | None = None) -> Molecule:
    steps = np.arange(len(atomic_numbers))
    positions = np.stack([1.2 * steps, 0.5 * (steps % 2), np.zeros(len(steps))], axis=1)
    return molecule(atomic_numbers, list(positions), num_hydrogens)


def key(given_molecule: Molecule) -> str | None:
    found = perceive(given_molecule)
    return None if found.mol is None else molecule_key(found.mol)


def methane(length: float = 1.09) -> Molecule:
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)
    return molecule([6, 1, 1, 1, 1], [[0, 0, 0], *(length * corners)])


def test_tiny_molecules_are_valid_and_have_the_key_of_the_data_set() -> None:
    for given_molecule, smiles in tiny_molecules():
        found = perceive(given_molecule)
        assert found.mol is not None, smiles
        assert found.reason is None
        assert found.is_connected
        if "+" not in smiles:  # where charges go is a matter of taste
            expected = Chem.MolToSmiles(Chem.MolFromSmiles(smiles), isomericSmiles=False)
            assert molecule_key(found.mol) == expected


def test_perceived_molecule_keeps_atoms_and_positions() -> None:
    for given_molecule, _ in tiny_molecules():
        mol = perceive(given_molecule).mol
        assert mol is not None
        assert [atom.GetAtomicNum() for atom in mol.GetAtoms()] == given_molecule.atomic_numbers.tolist()
        np.testing.assert_array_equal(mol.GetConformer().GetPositions(), given_molecule.positions)


@pytest.mark.parametrize("num_molecules", [2000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_united_atoms_get_the_same_keys_on_real_molecules(num_molecules: int) -> None:
    molecules = [given_molecule for given_molecule, _ in random_molecules(10_000)[:num_molecules]]
    explicit = [None if found.mol is None else molecule_key(found.mol) for found in perceive_all(molecules)]
    united = perceive_all([unite_hydrogens(given_molecule) for given_molecule in molecules])
    counted = [None if found.mol is None else molecule_key(found.mol) for found in united]
    assert np.mean([found is not None for found in explicit]) >= 0.999
    assert np.mean([found is not None for found in counted]) >= 0.999
    assert np.mean([first == second for first, second in zip(explicit, counted, strict=True)]) >= 0.999


def test_real_molecules_get_the_smiles_of_the_data_set() -> None:
    rows = random_molecules(10_000)[:2000]
    agree = []
    for (_, smiles), found in zip(rows, perceive_all([row[0] for row in rows]), strict=True):
        expected = Chem.MolToSmiles(Chem.MolFromSmiles(smiles), isomericSmiles=False)
        agree.append(found.mol is not None and molecule_key(found.mol) == expected)
    assert np.mean(agree) >= 0.995  # 99.8 % of all; the rest are zwitterions


@pytest.mark.parametrize(
    ("given_molecule", "reason", "is_connected"),
    [
        (molecule([], []), "empty", False),
        (molecule([], [], []), "empty", False),
        (molecule([6, 1], [[0, 0, 0], [np.nan, 0, 0]]), "nonfinite", False),
        (molecule([6, 1], [[0, 0, 0], [np.inf, 0, 0]]), "nonfinite", False),
        (molecule([1, 11], [[0, 0, 0], [1.9, 0, 0]]), "unknown_element", False),
        (molecule([0, -7, 10**6], [[0, 0, 0], [1, 0, 0], [2, 0, 0]]), "unknown_element", False),
        (molecule([1], [[0, 0, 0]], [1]), "unknown_element", False),
        (molecule([6, 8], [[0, 0, 0], [0.49, 0, 0]]), "clash", False),
        (molecule([9, 9, 9], [[0, 0, 0], [1.1, 0, 0], [2.2, 0, 0]]), "overvalent_atom", True),
        (molecule([6], [[0, 0, 0]], [5]), "overvalent_atom", True),
        (molecule([7], [[0, 0, 0]]), "isolated_atom", False),
        (molecule([7], [[0, 0, 0]], [0]), "isolated_atom", False),
        (molecule([1, 1], [[0, 0, 0], [0.74, 0, 0]]), "isolated_atom", False),
        (molecule([9, 1, 9, 1], [[0, 0, 0], [0.9, 0, 0], [9, 0, 0], [9.9, 0, 0]]), "disconnected", False),
        (molecule([9, 9], [[0, 0, 0], [9, 0, 0]], [1, 1]), "disconnected", False),
        (molecule([6], [[0, 0, 0]], [3]), "no_bond_orders", True),
        (chain([7] * 29), "iteration_cap", True),
        (chain([6, 7, 6, 6], [1, 1, 0, 2]), "sanitization", True),
        (molecule([6], [[0, 0, 0]], [2]), "radical", True),
    ],
)
def test_first_failed_check_is_the_reason(given_molecule: Molecule, reason: str, is_connected: bool) -> None:
    found = perceive(given_molecule)
    assert found.mol is None
    assert found.reason == reason
    assert found.is_connected == is_connected
    assert reason in REJECT_REASONS


@pytest.mark.parametrize(
    ("atomic_number", "num_hydrogens", "smiles"), [(6, 4, "C"), (7, 3, "N"), (8, 2, "O"), (9, 1, "F")]
)
def test_single_heavy_atom_with_its_hydrogens_is_valid(atomic_number: int, num_hydrogens: int, smiles: str) -> None:
    assert key(molecule([atomic_number], [[0, 0, 0]], [num_hydrogens])) == smiles


@pytest.mark.parametrize(
    ("first", "second", "hydrogens"),
    [(6, 6, (3, 3)), (6, 7, (3, 2)), (6, 8, (3, 1)), (6, 9, (3, 0)), (7, 8, (2, 1)), (7, 7, (2, 2))],
)
def test_heavy_bonds_end_at_1_15_times_the_sum_of_radii(first: int, second: int, hydrogens: tuple[int, int]) -> None:
    radii = {6: 0.76, 7: 0.71, 8: 0.66, 9: 0.57}
    cutoff = 1.15 * (radii[first] + radii[second])
    assert key(molecule([first, second], [[0, 0, 0], [cutoff - 1e-6, 0, 0]], hydrogens)) is not None
    assert perceive(molecule([first, second], [[0, 0, 0], [cutoff + 1e-6, 0, 0]], hydrogens)).mol is None


def test_bonds_to_hydrogen_end_at_1_30_times_the_sum_of_radii() -> None:
    cutoff = 1.30 * (0.31 + 0.76)
    assert key(methane(cutoff - 1e-6)) == "C"
    assert perceive(methane(cutoff + 1e-6)).reason == "isolated_atom"


def test_hydrogens_that_come_close_are_not_bonded() -> None:
    # 0.6 Å between the hydrogens
    bent_water = molecule([8, 1, 1], [[0, 0, 0], [0.9, 0.3, 0], [0.9, -0.3, 0]])
    assert short_pairs(bent_water) == [(0, 1), (0, 2)]
    assert key(bent_water) == "O"


@pytest.mark.parametrize(
    "garbage",
    ["collapsed", "box_5", "box_20", "gaussian", "random_types", "noise_05", "nan", "united"],
)
def test_garbage_is_never_valid(garbage: str) -> None:
    generator = np.random.default_rng(0)
    molecules = []
    for real, _ in random_molecules(10_000)[:500]:
        atomic_numbers, positions = real.atomic_numbers, real.positions
        num_hydrogens = None
        if garbage == "collapsed":
            positions = generator.normal(scale=0.05, size=positions.shape)
        elif garbage.startswith("box"):
            positions = generator.uniform(0, float(garbage[4:]), size=positions.shape)
        elif garbage == "gaussian":
            positions = generator.normal(size=positions.shape)
        elif garbage == "random_types":
            atomic_numbers = generator.choice(QM9_ELEMENTS, size=len(atomic_numbers))
        elif garbage == "noise_05":
            positions = positions + generator.normal(scale=0.5, size=positions.shape)
        elif garbage == "nan":
            positions = np.where(generator.random(positions.shape) < 0.2, np.nan, positions)
            positions[0] = np.nan
        elif garbage == "united":
            num_hydrogens = generator.integers(0, 4, size=len(atomic_numbers))
            atomic_numbers = generator.choice(QM9_ELEMENTS[1:], size=len(atomic_numbers))
            positions = generator.normal(scale=1.5, size=positions.shape)
        molecules.append(Molecule(atomic_numbers, positions, num_hydrogens))
    found = perceive_all(molecules)
    assert not any(perception.mol is not None for perception in found)
    assert all(perception.reason in REJECT_REASONS for perception in found)


@pytest.mark.parametrize("elements", [(7,), (8,), (7, 8), (8, 8, 7), (7, 7, 8), (6, 7, 8, 7)])
@pytest.mark.parametrize("length", [28, 29])
@pytest.mark.parametrize("is_united", [False, True])
def test_chains_are_given_up(elements: tuple[int, ...], length: int, is_united: bool) -> None:
    atomic_numbers = list(itertools.islice(itertools.cycle(elements), length))
    found = perceive(chain(atomic_numbers, [0] * length if is_united else None))  # without the cap: hangs
    assert found.mol is None
    assert found.reason in ("iteration_cap", "no_bond_orders")


@pytest.mark.parametrize("scale", [1e5, 1e160, 1e300])
def test_huge_coordinates_are_far_apart_without_a_warning(scale: float) -> None:
    with np.errstate(over="raise", invalid="raise"):
        found = perceive(molecule([6, 1], [[scale, 0, 0], [-scale, 0, 0]]))
    assert found.reason == "isolated_atom"


def test_batch_gives_the_same_as_one_by_one() -> None:
    generator = np.random.default_rng(0)
    molecules = [molecule([], [])]
    for real, _ in tiny_molecules():
        noisy = real.positions + generator.normal(scale=0.1, size=real.positions.shape)
        molecules += [real, Molecule(real.atomic_numbers, noisy), unite_hydrogens(real)]
    molecules.append(chain([6] * 400, [3, *[2] * 398, 3]))  # much larger than the others
    found = perceive_all(molecules)
    assert [perception.reason for perception in found] == [perceive(m).reason for m in molecules]
    assert [perception.mol and molecule_key(perception.mol) for perception in found] == [key(m) for m in molecules]
    assert found[-1].mol is not None
    stability = edm_stability(molecules)
    alone = [edm_stability([given_molecule]) for given_molecule in molecules]
    for name in ("num_atoms", "num_stable_atoms", "is_stable", "is_valid"):
        assert getattr(stability, name).tolist() == [getattr(each, name).item() for each in alone]
    assert perceive_all([]) == []


tiny_indices = st.integers(0, len(tiny_molecules()) - 1)
coordinates = st.floats(-10, 10)


@settings(max_examples=60, deadline=None)
@given(
    index=tiny_indices,
    axis=st.tuples(coordinates, coordinates, coordinates),
    shift=st.tuples(*[coordinates] * 3),
)
def test_rotation_and_shift_change_nothing(
    index: int, axis: tuple[float, float, float], shift: tuple[float, float, float]
) -> None:
    real = tiny_molecules()[index][0]
    x, y, z = axis
    generator = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    # Cayley transform: orthogonal with determinant one for every skew-symmetric matrix
    rotation = np.linalg.solve(np.eye(3) + generator, np.eye(3) - generator)
    moved = Molecule(real.atomic_numbers, real.positions @ rotation.T + np.array(shift))
    assert key(moved) == key(real)
    assert key(unite_hydrogens(moved)) == key(real)
    np.testing.assert_array_equal(edm_stability([moved]).num_stable_atoms, edm_stability([real]).num_stable_atoms)


@settings(max_examples=60, deadline=None)
@given(index=tiny_indices, data=st.data())
def test_order_of_atoms_changes_neither_validity_nor_key(index: int, data: st.DataObject) -> None:
    real, smiles = tiny_molecules()[index]
    order = data.draw(st.permutations(range(len(real.atomic_numbers))))
    shuffled = Molecule(real.atomic_numbers[order], real.positions[order])
    if "+" in smiles:  # RDKit puts the charges here or there
        assert key(shuffled) is not None
    else:
        assert key(shuffled) == key(real)
        assert key(unite_hydrogens(shuffled)) == key(real)


def test_key_ignores_stereochemistry() -> None:
    but_2_enes = [
        [[-1.8, 0.6, 0], [-0.66, -0.3, 0], [0.66, 0.3, 0], [1.8, -0.6, 0]],
        [[-1.8, 0.6, 0], [-0.66, -0.3, 0], [0.66, -0.3, 0], [1.8, 0.6, 0]],
    ]
    assert {key(molecule([6] * 4, positions, [3, 1, 1, 3])) for positions in but_2_enes} == {"CC=CC"}
    for real, _ in tiny_molecules():
        assert key(Molecule(real.atomic_numbers, real.positions * np.array([1, 1, -1]))) == key(real)


def test_key_counts_hydrogens_beside_double_bonds_as_implicit() -> None:
    # RemoveHs keeps hydrogens that define the stereochemistry of a double bond unless that is removed first.
    mol = Chem.AddHs(Chem.MolFromSmiles("[H]/N=C/C"))
    Chem.SetBondStereoFromDirections(mol)
    Chem.AssignStereochemistry(mol)
    assert molecule_key(mol) == "CC=N"


def test_key_leaves_the_molecule_as_it_was() -> None:
    mol = perceive(methane()).mol
    assert mol is not None
    molecule_key(mol)
    assert mol.GetNumAtoms() == 5
    assert mol.GetNumConformers() == 1


def test_hash_is_stable_and_fits_int64() -> None:
    assert hash_key("CCO") == 3931648761289943521  # as in files of training keys
    hashes = [hash_key(str(number)) for number in range(10_000)]
    assert len(set(hashes)) == len(hashes)
    assert min(hashes) >= 0
    assert max(hashes) < 2**63


def reference_edm(given_molecule: Molecule) -> tuple[int, bool]:
    """Stable atoms and validity, pair by pair as in EDM's evaluation."""
    atomic_numbers = given_molecule.atomic_numbers.tolist()
    mol = Chem.RWMol()
    for atomic_number in atomic_numbers:
        mol.AddAtom(Chem.Atom(atomic_number))
    valences = [0] * len(atomic_numbers)
    for first, second in itertools.combinations(range(len(atomic_numbers)), 2):
        pair = sorted((atomic_numbers[first], atomic_numbers[second]))
        name = "".join(SYMBOLS[atomic_number] for atomic_number in pair)
        distance = 100 * np.linalg.norm(given_molecule.positions[first] - given_molecule.positions[second])
        order = 0
        for candidate in (1, 2, 3):
            length = EDM_LENGTHS[candidate].get(name)
            if length is None or distance >= length + EDM_MARGINS[candidate]:
                break
            order = candidate
        if order:
            mol.AddBond(first, second, Chem.BondType.values[order])
            valences[first] += order
            valences[second] += order
    stable = sum(
        valence == EDM_VALENCES[atomic_number] for valence, atomic_number in zip(valences, atomic_numbers, strict=True)
    )
    with rdBase.BlockLogs():
        return stable, Chem.SanitizeMol(mol, catchErrors=True) == Chem.SanitizeFlags.SANITIZE_NONE


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.1, 0.2, 0.4])
def test_edm_agrees_with_a_reference_bond_by_bond(noise: float) -> None:
    generator = np.random.default_rng(0)
    molecules = [real for real, _ in (*tiny_molecules(), *random_molecules(10_000)[:200])]
    molecules = [
        Molecule(real.atomic_numbers, real.positions + generator.normal(scale=noise, size=real.positions.shape))
        for real in molecules
    ]
    # Nitrogen of valence five, which RDKit may turn into nitro groups and azides.
    molecules += [chain([8, 7, 8]), chain([6, 7, 7]), chain([6, 7, 8]), chain([7, 7, 7, 6]), methane()]
    molecules += [
        Molecule(generator.choice([6, 7, 8], size=4), generator.normal(scale=0.9, size=(4, 3))) for _ in range(300)
    ]
    stability = edm_stability(molecules)
    expected = [reference_edm(given_molecule) for given_molecule in molecules]
    assert stability.num_stable_atoms.tolist() == [stable for stable, _ in expected]
    assert stability.is_valid.tolist() == [is_valid for _, is_valid in expected]
    num_atoms = [len(given_molecule.atomic_numbers) for given_molecule in molecules]
    assert stability.num_atoms.tolist() == num_atoms
    assert stability.is_stable.tolist() == [
        stable == number for (stable, _), number in zip(expected, num_atoms, strict=True)
    ]


def test_edm_table_is_free_of_typing_errors() -> None:
    for order, (first, second) in itertools.product((1, 2, 3), itertools.product(range(5), repeat=2)):
        name = "".join(sorted("HCNOF"[element] for element in sorted((first, second))))
        lengths = {"".join(sorted(pair)): length for pair, length in EDM_LENGTHS[order].items()}
        expected = (lengths[name] + EDM_MARGINS[order]) / 100 if name in lengths else 0.0
        assert elements._EDM_CUTOFFS[order - 1, first, second] == pytest.approx(expected)


def test_edm_counts_hydrogens_of_united_atoms() -> None:
    stability = edm_stability(
        [
            molecule([6], [[0, 0, 0]], [4]),
            molecule([6], [[0, 0, 0]], [3]),
            molecule([6], [[0, 0, 0]], [5]),
            molecule([6, 6], [[0, 0, 0], [1.33, 0, 0]], [2, 2]),
            molecule([6, 6], [[0, 0, 0], [1.53, 0, 0]], [2, 3]),
        ]
    )
    assert stability.num_atoms.tolist() == [5, 4, 6, 6, 7]
    assert stability.num_stable_atoms.tolist() == [5, 3, 5, 6, 6]
    assert stability.is_stable.tolist() == [True, False, False, True, False]
    assert stability.is_valid.tolist() == [True, True, False, True, True]


def test_edm_calls_nothing_stable_or_valid_without_finite_positions_and_known_elements() -> None:
    nothing = np.full((5, 3), np.nan)
    stability = edm_stability(
        [
            Molecule(methane().atomic_numbers, nothing),
            molecule([6], [[np.inf, 0, 0]], [4]),
            molecule([], []),
            molecule([17], [[0, 0, 0]]),
        ]
    )
    assert stability.num_atoms.tolist() == [5, 5, 0, 1]
    assert not stability.num_stable_atoms.any()
    assert not stability.is_stable.any()
    assert not stability.is_valid.any()


def test_uniting_hydrogens_counts_them_at_the_nearest_atom() -> None:
    united = unite_hydrogens(methane())
    assert united.num_hydrogens is not None
    assert united.num_hydrogens.tolist() == [4]
    assert united.num_atoms == methane().num_atoms == 5
    with pytest.raises(ValueError, match="at least one heavy atom"):
        unite_hydrogens(united)
    with pytest.raises(ValueError, match="at least one heavy atom"):
        unite_hydrogens(molecule([1, 1], [[0, 0, 0], [0.7, 0, 0]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(2, int), np.zeros((3, 3)), None), r"got \(2,\) and \(3, 3\)"),
        ((np.zeros((2, 1), int), np.zeros((2, 3)), None), r"got \(2, 1\)"),
        ((np.zeros(2, int), np.zeros((2, 3)), np.zeros(3, int)), r"num_hydrogens has shape \(3,\)"),
        ((np.zeros(2, int), np.zeros((2, 3)), np.array([1, -1])), "must not be negative"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments: tuple[Any, Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Molecule(*arguments)


def test_rdkit_without_a_cap_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def uncapped(mol: Chem.Mol, charge: int = 0) -> None:
        """Bond orders without a limit."""

    monkeypatch.setattr(rdDetermineBonds, "DetermineBondOrders", uncapped)
    bond_orders._require_capped_bond_orders.cache_clear()
    with pytest.raises(RuntimeError, match="pip install -U rdkit"):
        perceive(methane())
    monkeypatch.undo()
    bond_orders._require_capped_bond_orders.cache_clear()
    assert key(methane()) == "C"


def test_rdkit_is_silent_and_can_be_heard_again(capfd: pytest.CaptureFixture[str]) -> None:
    perceive(chain([7] * 29))
    perceive(chain([6] * 9))
    perceive(chain([6, 7, 6, 6], [1, 1, 0, 2]))
    edm_stability([chain([6, 7, 7])])
    assert capfd.readouterr().err == ""
    assert Chem.MolFromSmiles("C(") is None
    assert "SMILES" in capfd.readouterr().err


def test_a_molecule_is_perceived_once_however_many_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics, the SDF, the XYZ file and the picture of one command ask for the same molecules."""
    molecules = [molecule for molecule, _ in tiny_molecules()[:4]]
    seen: list[int] = []
    of_rdkit = bond_orders._assign_bond_orders

    def counted(molecule: Molecule, bonds: list[tuple[int, int]]) -> tuple[Chem.Mol | None, str | None]:
        seen.append(id(molecule))
        return of_rdkit(molecule, bonds)

    monkeypatch.setattr("unite.modalities.molecule.perception.perceive._assign_bond_orders", counted)
    fresh = [replace(molecule) for molecule in molecules]
    first = perceive_all([*fresh, fresh[0]])
    assert first[0] is first[-1]
    assert [found.mol is None for found in first] == [False] * 5
    assert perceive_all(fresh[::-1]) == first[3::-1]
    assert sorted(seen) == sorted(map(id, fresh))


IONS = (
    "O=[N+]([O-])c1ccco1",
    "O=[N+]([O-])c1ccccc1",
    "O=[N+]([O-])c1ccc[nH]1",
    "O=[N+]([O-])c1cnc[nH]1",
    "C[N+](=O)[O-]",
    "[O-][n+]1ccccc1",
    "[NH3+]CC(=O)[O-]",
    "[C-]#[N+]C",
    "CC[N-][N+]#N",
)


@functools.cache
def in_space(smiles: str) -> Molecule:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    return Molecule(numbers, mol.GetConformer().GetPositions())


@pytest.mark.parametrize("is_united", [False, True])
@given(smiles=st.sampled_from(IONS), seed=st.integers(0, 10_000))
@settings(max_examples=150, deadline=None)
def test_the_order_of_the_atoms_does_not_matter_to_ions(is_united: bool, smiles: str, seed: int) -> None:
    molecule = in_space(smiles)
    if is_united:
        molecule = unite_hydrogens(molecule)
    order = np.random.default_rng(seed).permutation(len(molecule.atomic_numbers))
    counts = None if molecule.num_hydrogens is None else molecule.num_hydrogens[order]
    found = perceive(Molecule(molecule.atomic_numbers[order], molecule.positions[order], counts))
    assert found.mol is not None, found.reason
    assert molecule_key(found.mol) == smiles
    numbers = [atom.GetAtomicNum() for atom in found.mol.GetAtoms()]
    assert numbers[: len(order)] == molecule.atomic_numbers[order].tolist()
