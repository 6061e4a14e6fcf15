import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rdkit import Chem, rdBase

from tests.support.samples.qm9_rows import tiny_molecules
from unite.modalities.molecule.files import writing as molecule_files
from unite.modalities.molecule.files.drawing import draw_grid
from unite.modalities.molecule.files.writing import write_sdf, write_xyz
from unite.modalities.molecule.perception.distances import unite_hydrogens
from unite.modalities.molecule.perception.molecule import Molecule, molecule_key
from unite.modalities.molecule.perception.perceive import perceive

REALS = [real for real, _ in tiny_molecules()]
METHANE = Molecule(np.array([6]), np.zeros((1, 3)), np.array([4]))
LOOSE = Molecule(np.array([6, 8, 7]), np.array([[0.0, 0, 0], [5, 0, 0], [0, 7.25, 0]]))
LOOSE_UNITED = Molecule(np.array([6, 8]), np.array([[0.0, 0, 0], [5, 0, 0]]), np.array([3, 1]))
NAN = Molecule(np.array([6, 1]), np.array([[0, 0, np.nan], [1, -np.inf, 0]]))
HUGE = Molecule(np.array([6, 1]), np.array([[0, 0, 123456.5], [1, 2, 3]]))
UNKNOWN = Molecule(np.array([0, 26, 400, -3]), np.arange(12.0).reshape(4, 3))
EMPTY = Molecule(np.zeros(0, dtype=np.int64), np.zeros((0, 3)))
INVALID = [LOOSE, LOOSE_UNITED, NAN, HUGE, UNKNOWN, EMPTY]


def key(molecule: Molecule) -> str:
    mol = perceive(molecule).mol
    assert mol is not None
    return molecule_key(mol)


def read_sdf(path: Path) -> list[Any]:
    with rdBase.BlockLogs():
        return list(Chem.SDMolSupplier(str(path), removeHs=False))


def explicit(mol: Any) -> Molecule:
    """What another program sees: elements and coordinates."""
    atomic_numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.int64)
    return Molecule(atomic_numbers, mol.GetConformer().GetPositions())


def test_sdf_gives_back_bonds_positions_and_properties(tmp_path: Path) -> None:
    write_sdf(REALS, tmp_path / "samples.sdf")
    entries = read_sdf(tmp_path / "samples.sdf")
    assert len(entries) == len(REALS)
    for index, (real, mol) in enumerate(zip(REALS, entries, strict=True)):
        assert mol.GetPropsAsDict() == {"valid": "True", "reject_reason": "", "smiles": key(real)}
        assert mol.GetProp("_Name") == f"molecule {index}"
        assert molecule_key(mol) == key(real)
        assert [atom.GetAtomicNum() for atom in mol.GetAtoms()] == real.atomic_numbers.tolist()
        np.testing.assert_allclose(mol.GetConformer().GetPositions(), real.positions, atol=6e-5)


def test_sdf_adds_hydrogens_behind_united_atoms(tmp_path: Path) -> None:
    united = [METHANE, *map(unite_hydrogens, REALS)]
    write_sdf(united, tmp_path / "samples.sdf")
    num_same = 0
    for molecule, mol in zip(united, read_sdf(tmp_path / "samples.sdf"), strict=True):
        num_heavy = len(molecule.atomic_numbers)
        assert molecule.num_hydrogens is not None
        assert mol.GetNumAtoms() == molecule.num_atoms
        positions = mol.GetConformer().GetPositions()
        np.testing.assert_allclose(positions[:num_heavy], molecule.positions, atol=6e-5)
        for hydrogen in list(mol.GetAtoms())[num_heavy:]:
            assert hydrogen.GetAtomicNum() == 1
            (neighbour,) = hydrogen.GetNeighbors()
            length = np.linalg.norm(positions[hydrogen.GetIdx()] - positions[neighbour.GetIdx()])
            assert 0.85 < length < 1.2
        assert mol.GetProp("num_hydrogens").split() == [str(count) for count in molecule.num_hydrogens]
        assert mol.GetProp("smiles") == molecule_key(mol) == key(molecule)
        perceived = perceive(explicit(mol)).mol
        num_same += perceived is not None and molecule_key(perceived) == key(molecule)
    assert num_same >= len(united) - 3  # added hydrogens of different atoms sometimes meet


def test_sdf_keeps_what_is_not_valid(tmp_path: Path) -> None:
    write_sdf([REALS[0], *INVALID, REALS[1]], tmp_path / "samples.sdf")
    entries = read_sdf(tmp_path / "samples.sdf")
    assert [mol.GetProp("valid") for mol in entries] == ["True", *["False"] * len(INVALID), "True"]
    for molecule, mol in zip(INVALID, entries[1:-1], strict=True):
        assert mol.GetProp("reject_reason") == perceive(molecule).reason
        assert mol.GetProp("smiles") == ""
        assert mol.GetNumAtoms() == len(molecule.atomic_numbers)
        assert mol.GetNumBonds() == 0
        assert not any(atom.GetTotalNumHs() for atom in mol.GetAtoms())
        fits = np.abs(molecule.positions) < 1e4
        np.testing.assert_array_equal(explicit(mol).positions, np.where(fits, molecule.positions, 0))
        if mol.HasProp("positions"):
            generated = np.array(mol.GetProp("positions").split(), dtype=float).reshape(-1, 3)
            np.testing.assert_array_equal(generated, molecule.positions)
        assert mol.HasProp("positions") == (not fits.all())
    united = entries[1 + INVALID.index(LOOSE_UNITED)]
    assert united.GetProp("num_hydrogens") == "3 1"
    unknown = entries[1 + INVALID.index(UNKNOWN)]
    assert [atom.GetAtomicNum() for atom in unknown.GetAtoms()] == [0, 26, 0, 0]


def test_xyz_is_exactly_what_was_generated(tmp_path: Path) -> None:
    molecules = [*REALS, METHANE, *map(unite_hydrogens, REALS[:5]), *INVALID]
    write_xyz(molecules, tmp_path / "samples.xyz")
    lines = (tmp_path / "samples.xyz").read_text().splitlines()
    for molecule in molecules:
        num_atoms = int(lines.pop(0))
        comment = lines.pop(0)
        rows = [lines.pop(0).split() for _ in range(num_atoms)]
        assert num_atoms == len(molecule.atomic_numbers)
        positions = np.array([row[1:4] for row in rows], dtype=float).reshape(-1, 3)
        np.testing.assert_allclose(positions, molecule.positions, atol=1e-8)
        symbols = {1: "H", 6: "C", 7: "N", 8: "O", 9: "F", 26: "Fe"}
        assert [row[0] for row in rows] == [symbols.get(number, "X") for number in molecule.atomic_numbers.tolist()]
        found = perceive(molecule)
        if found.mol is None:
            assert comment.endswith(f' valid=F reject_reason="{found.reason}"')
        else:
            assert comment.endswith(f' valid=T smiles="{molecule_key(found.mol)}"')
        columns = re.search(r"Properties=(\S+)", comment)
        assert columns is not None
        if molecule.num_hydrogens is None:
            assert columns[1] == "species:S:1:pos:R:3"
        else:
            assert columns[1] == "species:S:1:pos:R:3:num_hydrogens:I:1"
            assert [int(row[4]) for row in rows] == molecule.num_hydrogens.tolist()
    assert not lines


def test_no_molecules_give_an_empty_file(tmp_path: Path) -> None:
    write_sdf([], tmp_path / "none.sdf")
    write_xyz([], tmp_path / "none.xyz")
    assert (tmp_path / "none.sdf").read_text() == (tmp_path / "none.xyz").read_text() == ""


@pytest.mark.parametrize("write", [write_sdf, write_xyz])
def test_interrupted_writing_leaves_the_old_file(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "samples"
    write(REALS[:2], path)
    before = path.read_text()
    calls = iter([None, None])
    properties = molecule_files._properties

    def fail_at_the_third(found: Any) -> dict[str, str]:
        try:
            next(calls)
        except StopIteration:
            raise KeyboardInterrupt from None
        return properties(found)

    monkeypatch.setattr(molecule_files, "_properties", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        write(REALS, path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_writing_and_drawing_are_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_sdf([*REALS, *map(unite_hydrogens, REALS), *INVALID], tmp_path / "samples.sdf")
    draw_grid([*INVALID, *REALS])
    captured = capfd.readouterr()
    assert captured.err == captured.out == ""
