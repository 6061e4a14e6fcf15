"""Single records: what becomes of them, or by what name they are refused; RDKit is the reference."""

import numpy as np
import pytest
from rdkit import Chem

from tests.support.samples.molecule_files import DRUG_LIKE, with_shape
from unite.modalities.molecule.data.files.records import (
    GRAPH_FAULTS,
    REFUSALS,
    Found,
    ReadSettings,
    RefusedError,
    are_conformers,
    read,
)
from unite.modalities.molecule.data.files.selection import REASONS
from unite.modalities.molecule.data.files.sources import Record
from unite.modalities.molecule.graph import BOND_TYPES
from unite.modalities.molecule.perception.molecule import hash_key, molecule_key

ONE = ReadSettings(num_conformers=1)


def found_in(mol: Chem.Mol, settings: ReadSettings = ONE, **fields: str) -> Found:
    items = [line for name, value in fields.items() for line in (f"> <{name}>", value, "")]
    return read(Record("a.sdf", 1, "sdf", [*Chem.MolToMolBlock(mol).split("\n"), *items], {}), settings)


def found_from(smiles: str, settings: ReadSettings = ONE) -> Found:
    return read(Record("a.smi", 1, "smiles", [smiles], {}), settings)


def refused(record: Record, settings: ReadSettings = ONE) -> str:
    with pytest.raises(RefusedError) as error:
        read(record, settings)
    return error.value.reason


@pytest.mark.parametrize("smiles", DRUG_LIKE)
def test_a_shape_and_its_bonds_are_taken_as_they_are(smiles: str) -> None:
    mol = with_shape(smiles)
    found = found_in(mol, logS="-1.5", name="x")
    assert found.atomic_numbers.tolist() == [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    np.testing.assert_allclose(found.positions[0], mol.GetConformer().GetPositions(), atol=1e-4)
    kinds = {(first, second): BOND_TYPES[kind] for first, second, kind in found.bonds.tolist()}
    assert kinds == {
        (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()): str(bond.GetBondType()).lower() for bond in mol.GetBonds()
    }
    assert found.key == hash_key(molecule_key(mol))
    assert (found.fault, found.notes, found.fields) == ("", [], {"logS": -1.5})


def test_hydrogens_that_a_shape_lacks_are_placed() -> None:
    bare = Chem.RemoveHs(with_shape("CCO"))
    found = found_in(bare)
    assert sorted(found.atomic_numbers.tolist()) == [1] * 6 + [6, 6, 8]
    assert found.notes == ["hydrogens_added"]
    distances = np.linalg.norm(found.positions[0, 3:, None] - found.positions[0, None, :3], axis=-1).min(1)
    assert ((distances > 0.8) & (distances < 1.3)).all()


def test_a_drawing_is_given_shapes() -> None:
    flat = Chem.MolFromSmiles("CCO")
    found = found_in(flat, ReadSettings(num_conformers=2))
    assert found.notes == ["conformers_made"]
    assert 1 <= len(found.positions) <= 2
    assert np.ptp(found.positions[0], axis=0).min() > 0.5  # in space
    again = found_in(flat, ReadSettings(num_conformers=2))
    np.testing.assert_array_equal(found.positions, again.positions)


def test_shapes_that_were_forgotten_are_made() -> None:
    mol = with_shape("CCO")
    mol.GetConformer().SetPositions(np.zeros((9, 3)))
    assert found_in(mol).notes == ["conformers_made"]


def test_without_positions_no_shape_is_made() -> None:
    found = found_from("CCO", ReadSettings(num_conformers=0))
    assert found.positions.shape == (0, 9, 3)
    assert len(found.bonds) == 8


def test_scaffolds_are_the_rings_and_what_links_them() -> None:
    phenyls = {found_from(smiles).scaffold for smiles in ("Cc1ccccc1", "OCc1ccccc1", "Clc1ccccc1")}
    assert phenyls == {hash_key("c1ccccc1")}
    assert found_from("CCO").scaffold == found_from("CN").scaffold == hash_key("")


def test_bonds_of_an_xyz_file_are_perceived() -> None:
    mol = with_shape("CC(N)=O")
    lines = Chem.MolToXYZBlock(mol).rstrip().split("\n")
    lines[1] = 'energy=-12.5 name="x" valid=T'
    found = read(Record("a.xyz", 1, "xyz", lines, {}), ONE)
    assert found.key == hash_key(molecule_key(mol))
    assert (found.notes, found.fields) == (["bonds_perceived"], {"energy": -12.5})


def test_loose_atoms_of_an_sdf_are_read_as_those_of_an_xyz_file() -> None:
    loose = Chem.RWMol(with_shape("CCO"))
    for bond in list(loose.GetBonds()):
        loose.RemoveBond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
    assert found_in(loose).key == hash_key("CCO")


def test_atoms_without_bonds_that_make_sense_keep_their_shape() -> None:
    found = read(Record("a.xyz", 1, "xyz", ["2", "", "He 0 0 0", "He 0 0 3"], {}), ONE)
    assert (found.fault, found.key, len(found.positions)) == ("no_bonds", 0, 1)


def test_faults_of_graphs() -> None:
    assert found_from("C[NH3+]").fault == "charged"
    assert found_from("C[CH2]").fault == "radical"
    assert found_from("C[N+](=O)[O-]").fault == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("CCO.Cl", "mixture"),
        ("[Na+].[Cl-]", "mixture"),
        ("C1CC", "unreadable"),
        ("", "unreadable"),
        ("C[*]", "unknown_element"),
        ("C(C)(C)(C)(C)C", "sanitization"),
        ("C" * 400, "too_large_to_read"),
        ("C" * 100, "too_large_for_conformers"),
    ],
)
def test_smiles_that_are_refused(text: str, reason: str) -> None:
    assert refused(Record("a.smi", 1, "smiles", [text], {})) == reason


def test_files_that_are_refused() -> None:
    lines = Chem.MolToMolBlock(with_shape("CO")).split("\n")
    assert refused(Record("a.sdf", 1, "sdf", lines[:6], {})) == "unreadable"
    assert refused(Record("a.sdf", 1, "sdf", Chem.MolToMolBlock(Chem.Mol()).split("\n"), {})) == "empty"
    assert refused(Record("a.xyz", 1, "xyz", ["2", "", "Xx 0 0 0", "C 0 0 1"], {})) == "unknown_element"
    assert refused(Record("a.xyz", 1, "xyz", ["2", "", "O 0 0 nan", "C 0 0 1"], {})) == "nonfinite"
    assert refused(Record("a.xyz", 1, "xyz", ["2", "", "O 0 0"], {})) == "unreadable"
    assert refused(Record("a.xyz", 1, "xyz", ["0", ""], {})) == "empty"


def test_metals_are_atoms_like_others() -> None:
    mol = with_shape("C[Hg]C")
    assert 80 in found_in(mol).atomic_numbers


def test_which_records_are_conformers() -> None:
    first, second = found_in(with_shape("CCO", 1)), found_in(with_shape("CCO", 2))
    assert are_conformers(first, second)
    turned = Chem.RenumberAtoms(with_shape("CCO", 1), [2, 1, 0, 3, 4, 5, 6, 7, 8])
    assert not are_conformers(first, found_in(turned))
    assert not are_conformers(found_from("CCO"), found_from("CCO"))  # made alike, they would be one shape


def test_no_two_reasons_have_one_name() -> None:
    assert not set(REFUSALS) & set(REASONS)
    assert set(GRAPH_FAULTS[1:]) <= set(REASONS)
