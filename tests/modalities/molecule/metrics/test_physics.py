import numpy as np
import pytest
from tblite.interface import Calculator

from tests.support.samples.molecule_files import with_shape
from unite.modalities.molecule.files.reading import Record
from unite.modalities.molecule.metrics.physics import molecule_physics, relax_molecule
from unite.modalities.molecule.perception.distances import unite_hydrogens
from unite.modalities.molecule.perception.molecule import Molecule

ANGSTROM = 1 / 0.529177210903
HARTREE = 27.211386245988


def water(angle: float) -> Molecule:
    """Water of a bond length near GFN2-xTB's own, bent by degrees."""
    half = np.radians(angle / 2)
    sides = 0.959 * np.array([[np.sin(half), np.cos(half), 0], [-np.sin(half), np.cos(half), 0]])
    return Molecule(np.array([8, 1, 1]), np.concatenate([np.zeros((1, 3)), sides]))


def energy(molecule: Molecule) -> float:
    """In eV, by the library itself and not by way of ASE."""
    calculator = Calculator("GFN2-xTB", molecule.atomic_numbers, molecule.positions * ANGSTROM)
    calculator.set("verbosity", 0)
    return float(calculator.singlepoint().get("energy")) * HARTREE


def test_strain_is_the_energy_above_the_minimum() -> None:
    relaxed, bent = relax_molecule(water(107.2)), relax_molecule(water(130))
    assert relaxed is not None
    assert bent is not None
    assert 0 <= relaxed["strain"] < 2e-3
    assert bent["strain"] - relaxed["strain"] == pytest.approx(energy(water(130)) - energy(water(107.2)), abs=3e-3)
    assert bent["strain"] > 0.1
    assert bent["bonds_kept"] == bent["same_bonds"] == bent["converged"] == 1
    assert bent["rmsd"] == 0  # one heavy atom


def test_where_counted_hydrogens_are_put_does_not_matter() -> None:
    mol = with_shape("CO")
    molecule = Molecule(np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()]), mol.GetConformer().GetPositions())
    united = relax_molecule(unite_hydrogens(molecule))
    assert united is not None
    assert 0 <= united["strain"] < 0.1
    assert united["same_bonds"] == 1


def test_a_shape_that_collapses_does_not_keep_its_bonds() -> None:
    corners = 1.3 * np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    corners += 0.05 * np.random.default_rng(2).normal(size=(4, 3))
    found = relax_molecule(Molecule(np.full(4, 7), corners))  # a ring of nitrogen, which folds
    assert found is not None
    assert found["same_bonds"] == 0
    assert found["bonds_kept"] == 1
    assert found["strain"] > 0.5


def test_the_first_valid_records_are_relaxed() -> None:
    lines = ["3", "", "O 0 0 0", "H 0.77 0.57 0", "H -0.77 0.57 0"]
    apart = [*lines[:3], "H 5 0 0", "H -5 0 0"]
    records = [Record("some.xyz", number, "xyz", text) for number, text in enumerate([apart, lines, lines, lines], 1)]
    values = molecule_physics(records, 1, num_workers=1, skip={("some.xyz", 2)})
    assert values["physics/num"] == 1
    assert values["physics/failed"] == 0
    assert values["physics/bonds_kept"] == 1
    assert relax_molecule(Molecule(np.array([8, 1, 1]), 9.0 * np.eye(3))) is None
