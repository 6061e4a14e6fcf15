import numpy as np
import pytest

from tests.support.samples.crystals import PEROVSKITE, ROCK_SALT, crystal, known_crystals, rewrapped
from unite.errors import UserError
from unite.modalities.crystal.crystal import UnusableCrystalError, as_crystal, from_ase, from_pymatgen
from unite.modalities.crystal.elements import SYMBOLS, by_electronegativity, group, period

pymatgen_core = pytest.importorskip("pymatgen.core")
ase = pytest.importorskip("ase")


def test_geometry_is_that_of_pymatgen() -> None:
    for item in known_crystals("materials_project_small", 20):
        structure = item.to_pymatgen()
        assert item.volume == pytest.approx(structure.volume, rel=1e-6)
        assert item.density == pytest.approx(structure.density, rel=1e-3)
        lengths_and_angles = pymatgen_core.Lattice(item.matrix).parameters
        np.testing.assert_allclose(lengths_and_angles, item.cell, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:No Pauling electronegativity")
def test_periodic_table_is_that_of_pymatgen() -> None:
    for number in range(1, len(SYMBOLS)):
        element = pymatgen_core.Element.from_Z(number)
        assert (SYMBOLS[number], group(number)) == (element.symbol, element.group)
        assert period(number) == min(element.row, 7)
    assert period(0) == group(0) == 0


def test_formulas_and_compositions() -> None:
    assert PEROVSKITE.formula == "SrTiO3"
    assert PEROVSKITE.composition == ((8, 3), (22, 1), (38, 1))
    assert crystal([11, 17, 11, 17], [[0, 0, 0]] * 4, 5).composition == ROCK_SALT.composition


def test_there_and_back_through_pymatgen_and_ase() -> None:
    for item in known_crystals("materials_project_small", 5):
        for back in (from_pymatgen(item.to_pymatgen()), from_ase(item.to_ase()), as_crystal(item.to_ase())):
            np.testing.assert_array_equal(back.atomic_numbers, item.atomic_numbers)
            np.testing.assert_allclose(back.fractional, item.fractional, atol=1e-9)
            np.testing.assert_allclose(back.cell, item.cell, rtol=1e-6)


def test_niggli_cell_of_a_conventional_one() -> None:
    conventional = crystal([11] * 4 + [17] * 4, [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]] * 2, 5.64)
    turn = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 1]])
    skewed = from_pymatgen(pymatgen_core.Structure(turn @ ROCK_SALT.matrix, ["Na", "Cl"], [[0, 0, 0], [0, 0, 0.5]]))
    assert max(skewed.cell[:3]) > 9
    reduced = skewed.niggli()
    assert reduced.volume == pytest.approx(skewed.volume, rel=1e-4)
    assert max(reduced.cell[:3]) < 5
    assert conventional.niggli().num_atoms == 8  # reduced, but not made primitive


def test_order_is_by_electronegativity_and_stable() -> None:
    ordered = crystal([8, 38, 8, 22], [[0.1, 0, 0], [0, 0, 0], [1.2, 0, 0], [0.3, 0, 0]], 4).in_order()
    assert ordered.atomic_numbers.tolist() == [38, 22, 8, 8]
    np.testing.assert_allclose(ordered.fractional[:, 0], [0, 0.3, 0.1, 0.2])
    assert by_electronegativity(np.array([2, 9])).tolist() == [1, 0]  # helium has none


def test_rewrapping_moves_no_distance() -> None:
    moved = rewrapped(PEROVSKITE)
    assert moved.volume == PEROVSKITE.volume
    ours, theirs = (np.sort(item.to_pymatgen().distance_matrix.ravel()) for item in (PEROVSKITE, moved))
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: ase.Atoms("NaCl", positions=[[0, 0, 0], [2, 2, 2]]), "no_cell"),
        (lambda: ase.Atoms("NaCl", positions=[[0, 0, 0], [2, 2, 2]], cell=[4, 4, 0], pbc=True), "no_cell"),
        (lambda: ase.Atoms("X", scaled_positions=[[0, 0, 0]], cell=[4, 4, 4], pbc=True), "unknown_element"),
        (lambda: ase.Atoms(cell=[4, 4, 4], pbc=True), "empty"),
        (lambda: ase.Atoms("Na", positions=[[np.nan, 0, 0]], cell=[4, 4, 4], pbc=True), "nonfinite"),
        (lambda: pymatgen_core.Structure(np.eye(3) * 4, [{"Na": 0.5}], [[0, 0, 0]]), "partial_occupancy"),
        (lambda: pymatgen_core.Structure(np.eye(3) * 4, [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]]), "disordered"),
        (lambda: pymatgen_core.Structure(np.diag([4, 4, 1e-3]), ["Na"], [[0, 0, 0]]), "no_volume"),
    ],
)
def test_what_is_no_crystal_is_refused_by_name(make: object, kind: str) -> None:
    assert callable(make)
    with pytest.raises(UnusableCrystalError) as found:
        as_crystal(make())
    assert found.value.kind == kind
    assert "\n" not in str(found.value)


def test_other_objects_are_refused() -> None:
    with pytest.raises(UserError, match="a str is no crystal"):
        as_crystal("NaCl")
