import numpy as np
import pytest

from tests.support.samples.crystals import PEROVSKITE, ROCK_SALT, crystal, known_crystals, rewrapped
from unite.modalities.crystal.crystal import Crystal
from unite.modalities.crystal.metrics.sites import has_sites
from unite.modalities.crystal.metrics.validity import has_close_atoms, is_composition_valid, structure_reason

screening = pytest.importorskip("smact.screening")

SITES = PEROVSKITE.fractional


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (PEROVSKITE, None),
        (ROCK_SALT, None),
        (crystal([], [], 4), "empty"),
        (crystal([8] * 501, [[0, 0, 0]] * 501, 4), "too_large"),
        (crystal([8], [[np.nan, 0, 0]], 4), "nonfinite"),
        (crystal([8], [[0, 0, 0]], np.inf), "nonfinite"),
        (crystal([0], [[0, 0, 0]], 4), "unknown_element"),
        (crystal([8], [[0, 0, 0]], 4, 4, 4, 90, 90, 0), "no_volume"),
        (crystal([8], [[0, 0, 0]], 4, 4, 4, 120, 120, 120), "no_volume"),
        (crystal([8, 8], [[0, 0, 0], [0.99, 0, 0]], 4), "too_close"),  # by way of the next cell
        (crystal([8], [[0, 0, 0]], 9, 9, 0.4, 90, 90, 90), "too_close"),  # its own image
        (crystal([8, 8], [[0.05, 0.05, 0.05], [1.05, 2.05, 0.05]], 4), "too_close"),  # written elsewhere
    ],
)
def test_structures_are_rejected_for_the_right_reason(item: Crystal, reason: str | None) -> None:
    assert structure_reason(item) == reason


def test_distances_are_those_of_pymatgen_in_skewed_cells() -> None:
    random = np.random.default_rng(0)
    found = []
    for _ in range(60):
        cell = (*random.uniform(1.2, 6, 3), *random.uniform(35, 145, 3))
        item = crystal([8, 8, 8], random.random((3, 3)).tolist(), *cell)
        if item.volume < 1:
            continue
        structure = item.to_pymatgen()
        nearest = min(
            (other.nn_distance for around in structure.get_all_neighbors(3.0) for other in around), default=9.0
        )
        for cutoff in (0.5, 1.0, 2.0):
            if abs(nearest - cutoff) > 1e-6 and has_close_atoms(item, cutoff) != (nearest < cutoff):
                found.append((cell, cutoff, nearest))
    assert not found


def test_compositions_are_judged_as_smact_judges_them() -> None:
    random = np.random.default_rng(0)
    items = [*known_crystals("materials_project_small", 60), *known_crystals("perov_5_small", 20)]
    # Real stoichiometries with random elements fail now and then, unlike real ones.
    items += [Crystal(random.integers(1, 84, item.num_atoms), item.fractional, item.cell) for item in items]
    verdicts = []
    for item in items:
        if len(item.composition) > 5:
            continue
        text = item.formula
        verdicts.append(is_composition_valid(item.composition))
        assert verdicts[-1] == screening.smact_validity(text, oxidation_states_set="smact14"), text
        assert is_composition_valid(item.composition, "icsd24") == screening.smact_validity(text), text
    assert 0.3 < np.mean(verdicts) < 1


def test_many_elements_take_no_time() -> None:
    assert is_composition_valid(tuple((number, 1) for number in range(21, 31))) is True  # metals
    many = tuple((number, 1 + number % 3) for number in (1, 6, 7, 8, 15, 16, 17, 26, 34, 35, 44, 53, 74, 75, 77))
    assert is_composition_valid(many) in (True, False)


def test_what_is_no_composition_is_invalid() -> None:
    assert not is_composition_valid(())
    assert not is_composition_valid(((0, 1),))


def test_sites_of_a_perovskite() -> None:
    random = np.random.default_rng(0)
    assert has_sites(PEROVSKITE, SITES)
    assert has_sites(rewrapped(PEROVSKITE), SITES)
    order = [3, 1, 0, 4, 2]
    shuffled = Crystal(PEROVSKITE.atomic_numbers[order], PEROVSKITE.fractional[order] + 0.3, PEROVSKITE.cell)
    assert has_sites(shuffled, SITES)
    moved = PEROVSKITE.fractional.copy()
    moved[2] += 0.2
    assert not has_sites(Crystal(PEROVSKITE.atomic_numbers, moved, PEROVSKITE.cell), SITES)
    assert not has_sites(ROCK_SALT, SITES)
    controls = [Crystal(PEROVSKITE.atomic_numbers, random.random((5, 3)), PEROVSKITE.cell) for _ in range(200)]
    assert not any(has_sites(control, SITES) for control in controls)
    real = known_crystals("perov_5_small", 400)
    assert np.mean([has_sites(item, SITES) for item in real]) == pytest.approx(0.73, abs=0.01)
