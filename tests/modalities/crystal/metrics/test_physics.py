import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from tests.support.samples.crystals import PEROVSKITE, known_crystals, rewrapped
from unite.errors import UserError
from unite.modalities.crystal.crystal import Crystal, from_ase
from unite.modalities.crystal.metrics import physics
from unite.modalities.crystal.metrics.physics import crystal_physics, relax_crystal, require_reference


@pytest.fixture
def copper(monkeypatch: pytest.MonkeyPatch) -> Crystal:
    """A cubic cell of copper, stretched by 3 %, in the potential of ASE that needs nothing."""
    monkeypatch.setattr(physics, "_calculator", EMT)
    return from_ase(bulk("Cu", cubic=True, a=1.03 * 3.59))


def test_energy_drop_is_that_to_the_minimum(copper: Crystal) -> None:
    found = relax_crystal(copper)
    energies = []
    for cell in [*np.linspace(3.5, 3.7, 21).tolist(), 1.03 * 3.59]:
        atoms = bulk("Cu", cubic=True, a=cell)
        atoms.calc = EMT()
        energies.append(atoms.get_potential_energy() / 4)
    assert found["energy_drop"] == pytest.approx(energies[-1] - min(energies[:-1]), abs=1e-3)
    assert found["volume_change"] == pytest.approx(1 - 1.03**-3, abs=0.01)
    assert found["rmsd"] == pytest.approx(0, abs=1e-3)
    assert found["converged"] == 1


def test_another_origin_and_periodic_images_change_nothing(copper: Crystal) -> None:
    push = np.zeros((4, 3))
    push[0, 0] = 0.05
    moved = Crystal(copper.atomic_numbers, copper.fractional + push, copper.cell)
    first, second = relax_crystal(moved), relax_crystal(rewrapped(moved))
    assert second == {name: pytest.approx(value, abs=1e-3) for name, value in first.items()}
    # One of four atoms goes back by 5 % of 3.7 Å; with the centre held, that is sqrt(3)/4 of it on average.
    assert first["rmsd"] == pytest.approx(np.sqrt(3) / 4 * 0.05 * 1.015 * 3.59, abs=0.01)


def test_a_reference_that_is_nothing_is_refused() -> None:
    require_reference("perov_5_small")
    with pytest.raises(UserError, match=r"--reference nothing\.cif is no file or folder, and none of mater"):
        require_reference("nothing.cif")


@pytest.mark.slow  # CHGNet takes seconds to import
def test_real_crystals_are_relaxed_and_random_ones_are_not() -> None:
    pytest.importorskip("chgnet")  # it has no wheels beyond Python 3.12
    stretched = Crystal(PEROVSKITE.atomic_numbers, PEROVSKITE.fractional, PEROVSKITE.cell * ([1.05] * 3 + [1] * 3))
    assert relax_crystal(stretched)["energy_drop"] > 0.05
    values = crystal_physics(known_crystals("materials_project_small", 8), 2, "perov_5_small", num_workers=1)
    assert values["physics/num"] == values["physics_reference/num"] == values["physics_random/num"] == 2
    assert values["physics/energy_drop_median"] < 0.01
    assert values["physics/energy_drop_below_0.05"] == 1
    assert values["physics_random/energy_drop_median"] > 1
    assert values["physics_random/energy_drop_below_0.1"] == 0
