from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem import rdDepictor, rdDistGeom

from tests.support.samples.graphs import perceived
from tests.support.samples.qm9_rows import tiny_molecules
from unite.errors import UserError
from unite.modalities.molecule.files.reading import Entry, Record, find_files, parse, read_records
from unite.modalities.molecule.files.writing import write_sdf, write_xyz
from unite.modalities.molecule.perception.distances import unite_hydrogens
from unite.modalities.molecule.perception.molecule import Molecule
from unite.modalities.molecule.perception.perceive import perceive

REALS = [real for real, _ in tiny_molecules()][:8]
UNITED = [unite_hydrogens(real) for real in REALS]
METHANE_ROWS = ["C 0 0 0", "H 0.6 0.6 0.6", "H -0.6 -0.6 0.6", "H 0.6 -0.6 -0.6", "H -0.6 0.6 -0.6"]


def read(path: Path) -> list[Entry]:
    return [parse(record) for record in read_records([path])]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def assert_same(entries: list[Entry], molecules: list[Molecule]) -> None:
    for entry, molecule in zip(entries, molecules, strict=True):
        assert entry.molecule is not None, entry.error
        assert entry.molecule.atomic_numbers.tolist() == molecule.atomic_numbers.tolist()
        np.testing.assert_allclose(entry.molecule.positions, molecule.positions, atol=6e-5)
        if molecule.num_hydrogens is None:
            assert entry.molecule.num_hydrogens is None
        else:
            assert entry.molecule.num_hydrogens is not None
            assert entry.molecule.num_hydrogens.tolist() == molecule.num_hydrogens.tolist()


@pytest.mark.parametrize("molecules", [REALS, UNITED], ids=["explicit", "united"])
def test_our_own_files_give_back_what_was_written(tmp_path: Path, molecules: list[Molecule]) -> None:
    far = Molecule(np.array([6, 1]), np.array([[0, 0, np.nan], [1e6, 0, 0]]))
    write_sdf([*molecules, far], tmp_path / "m.sdf")
    write_xyz([*molecules, far], tmp_path / "m.xyz")
    assert_same(read(tmp_path / "m.sdf"), [*molecules, far])
    assert_same(read(tmp_path / "m.xyz"), [*molecules, far])


@pytest.mark.parametrize("is_v3000", [False, True])
def test_files_of_rdkit_are_read_in_both_versions(tmp_path: Path, is_v3000: bool) -> None:
    write_sdf(REALS, tmp_path / "ours.sdf")
    with Chem.SDWriter(str(tmp_path / "theirs.sdf")) as writer:
        writer.SetForceV3000(is_v3000)
        for mol in Chem.SDMolSupplier(str(tmp_path / "ours.sdf"), removeHs=False):
            mol.ClearProp("smiles")
            writer.write(mol)
    assert ("V3000" in (tmp_path / "theirs.sdf").read_text()) == is_v3000
    assert_same(read(tmp_path / "theirs.sdf"), REALS)


def test_xyz_columns_are_found_by_their_names(tmp_path: Path) -> None:
    text = '2\nenergy=1 Properties=mass:R:1:pos:R:3:species:S:1 pbc="F F F"\n12 0 0 0 C\n16 1.2 0 0 o\n'
    (entry,) = read(write(tmp_path / "a.extxyz", text))
    assert entry.molecule is not None
    assert entry.molecule.atomic_numbers.tolist() == [6, 8]
    assert entry.molecule.positions.tolist() == [[0, 0, 0], [1.2, 0, 0]]


def test_plain_xyz_may_have_numbers_empty_comments_and_blank_lines(tmp_path: Path) -> None:
    frames = ["1", "", "6 0 0 0", "", "0", "nothing", "2", "12", "C 0 0 0 0.1", "D 1 0 0 0.2", ""]
    entries = read(write(tmp_path / "a.xyz", "\n".join(frames)))
    found = [entry.molecule.atomic_numbers.tolist() for entry in entries if entry.molecule is not None]
    assert found == [[6], [], [6, 1]]


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (["5", "breaks off", *METHANE_ROWS[:3]], "breaks off before its 5 atoms"),
        (["5", "few columns", *METHANE_ROWS[:4], "H 0 0"], "too few columns"),
        (["5", "no number", *METHANE_ROWS[:4], "H 0 0 x"], "no number"),
        (["two", "wrong", "C 0 0 0"], "no number of atoms in 'two'"),
        (["1", "Properties=pos:R:3", "0 0 0"], "no species"),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else None,
)
def test_a_broken_frame_leaves_the_others_alone(tmp_path: Path, broken: list[str], words: str) -> None:
    good = ["5", "good", *METHANE_ROWS]
    entries = read(write(tmp_path / "a.xyz", "\n".join([*good, *broken, *good])))
    assert [entry.molecule is not None for entry in entries] == [True, False, True]
    assert words in entries[1].error


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda block: block[:2], "no counts line"),
        (lambda block: [*block[:3], "many atoms V2000", *block[4:]], "no number of atoms"),
        (lambda block: block[:6], "breaks off"),
        (lambda block: [*block[:4], block[4].replace("0.", "x.", 1), *block[5:]], "no number"),
    ],
)
def test_a_broken_sdf_record_leaves_the_others_alone(tmp_path: Path, damage: object, words: str) -> None:
    write_sdf(REALS[:1], tmp_path / "good.sdf")
    good = (tmp_path / "good.sdf").read_text().splitlines()
    assert callable(damage)
    bad = [*damage(good[:-1]), "$$$$"]
    entries = read(write(tmp_path / "a.sdf", "\n".join([*good, *bad, *good])))
    assert [entry.molecule is not None for entry in entries] == [True, False, True]
    assert words in entries[1].error


def test_elements_that_do_not_exist_are_kept_by_name(tmp_path: Path) -> None:
    (entry,) = read(write(tmp_path / "a.xyz", "3\n\nQq 0 0 0\nCl 1 0 0\n400 2 0 0\n"))
    assert entry.molecule is not None
    assert entry.molecule.atomic_numbers.tolist() == [0, 17, 0]
    assert entry.symbols == ["Qq", "Cl", "400"]


@given(
    st.lists(st.text(alphabet="0123456789² .CHN-+eXnai=:$M V\t", max_size=40), max_size=12),
    st.sampled_from(["sdf", "xyz"]),
)
@example(["²", "", "C 0 0 0"], "xyz")
@example(["9" * 5000, "", "C 0 0 0"], "xyz")
@example(["1", "", f"{10**20} 0 0 0"], "xyz")
@example(["1", "Properties=species:S:1:pos:R:3:num_hydrogens:I:1", f"C 0 0 0 {10**20}"], "xyz")
@example(["", "", "", "  ²"], "sdf")
def test_no_text_makes_the_reader_fail(tmp_path_factory: pytest.TempPathFactory, lines: list[str], suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"any.{suffix}"
    path.write_text("\n".join(lines))
    for entry in read(path):
        assert (entry.molecule is None) == bool(entry.error)


def test_data_items_of_others_that_have_our_names_are_not_ours(tmp_path: Path) -> None:
    with Chem.SDWriter(str(tmp_path / "theirs.sdf")) as writer:
        (mol,) = perceived()[:1]
        mol = Chem.Mol(mol)
        mol.SetProp("num_hydrogens", "4")
        writer.write(mol)
    (entry,) = read(tmp_path / "theirs.sdf")
    assert entry.molecule is not None
    assert entry.molecule.num_hydrogens is None
    assert len(entry.molecule.atomic_numbers) == mol.GetNumAtoms() == 5


def test_only_what_says_so_and_has_no_height_is_a_drawing(tmp_path: Path) -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles("O"))
    rdDepictor.Compute2DCoords(mol)
    flat = Chem.MolToMolBlock(mol)
    for text, is_flat in (
        (flat, True),
        (flat.replace("RDKit          2D", "RDKit          3D"), False),  # water, as its positions are
        (flat.replace("0.0000 O", "0.1000 O"), False),
    ):
        (entry,) = read(write(tmp_path / "a.mol", text))
        assert entry.is_flat == is_flat


def test_records_know_where_they_are_from(tmp_path: Path) -> None:
    write_sdf(REALS[:2], tmp_path / "b.sdf")
    write_sdf(REALS[:1], tmp_path / "a.sdf")
    (tmp_path / "notes.txt").write_text("not a molecule")
    records: list[Record] = list(read_records(find_files(tmp_path)))
    assert [(Path(record.file).name, record.number) for record in records] == [("a.sdf", 1), ("b.sdf", 1), ("b.sdf", 2)]


def test_a_folder_with_both_formats_is_ambiguous(tmp_path: Path) -> None:
    write_sdf(REALS[:1], tmp_path / "samples.sdf")
    write_xyz(REALS[:1], tmp_path / "samples.xyz")
    with pytest.raises(UserError, match="--format sdf or --format xyz"):
        find_files(tmp_path)
    assert [path.name for path in find_files(tmp_path, "xyz")] == ["samples.xyz"]


def test_files_of_qm9_as_they_are_published(tmp_path: Path) -> None:
    rows = [row.replace(" ", "\t") + "\t-0.13" for row in METHANE_ROWS]
    rows[1] = "H\t0.6\t-8.7796*^-6\t0.1D+01\t-0.13"
    frame = ["5", "gdb 1\t157.7", *rows, "1341.307\t1341.3284", "C\tC\t", "InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4"]
    entries = read(write(tmp_path / "a.xyz", "\n".join([*frame, *frame])))
    assert [entry.error for entry in entries] == ["", ""]
    assert entries[1].molecule is not None
    np.testing.assert_array_equal(entries[1].molecule.positions[1], [0.6, -8.7796e-6, 1.0])


def test_utf_16_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_bytes("\n".join(["5", "", *METHANE_ROWS, ""]).encode("utf-16"))
    assert [entry.error for entry in read(tmp_path / "a.xyz")] == [""]


@pytest.mark.parametrize(
    ("items", "error"),
    [
        ({"positions": "2 5 7"}, ""),  # of another program
        ({"positions": " ".join(["0"] * 15), "reject_reason": ""}, "its positions contradict those of its atoms"),
        ({"positions": "0 0", "reject_reason": ""}, "a coordinate"),
    ],
)
def test_positions_apart_never_override_the_atoms(tmp_path: Path, items: dict[str, str], error: str) -> None:
    write_sdf(REALS[:1], tmp_path / "a.sdf")
    block = (tmp_path / "a.sdf").read_text().partition("M  END\n")[0]
    data = "".join(f">  <{name}>\n{value}\n\n" for name, value in items.items())
    (entry,) = read(write(tmp_path / "b.sdf", block + "M  END\n" + data + "$$$$\n"))
    assert entry.error.startswith(error)
    assert bool(entry.error) == bool(error)


def test_text_files_are_of_the_format_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "molecule_000.txt", "\n".join(["5", "", *METHANE_ROWS]))
    with pytest.raises(UserError, match="has no molecule files"):
        find_files(tmp_path)
    with pytest.raises(UserError, match="--format xyz"):
        find_files(tmp_path / "molecule_000.txt")
    files = find_files(tmp_path, "xyz")
    assert files == find_files(files[0], "xyz") == [tmp_path / "molecule_000.txt"]
    assert [parse(record).error for record in read_records(files, "xyz")] == [""]


@pytest.mark.parametrize("form", ["V2000", "V3000", "beside the atom", "xyz"])
@pytest.mark.parametrize(("smiles", "charge"), [("CC(=O)[O-]", -1), ("[NH3+]CC[NH3+]", 2), ("[O-]C(=O)C[NH3+]", 0)])
def test_total_charge_is_taken(tmp_path: Path, form: str, smiles: str, charge: int) -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=0) == 0
    if form == "xyz":
        lines = Chem.MolToXYZBlock(mol).splitlines()
        lines[1] = f'Properties=species:S:1:pos:R:3 charge={charge} energy=-1.5 pbc="F F F"'
        file = write(tmp_path / "a.xyz", "\n".join(lines))
    else:
        lines = Chem.MolToMolBlock(mol, forceV3000=form == "V3000").splitlines()
        if form == "beside the atom":
            lines = [line for line in lines if not line.startswith("M  CHG")]
            for number, atom in enumerate(mol.GetAtoms(), start=4):
                code = {0: 0, 1: 3, -1: 5}[atom.GetFormalCharge()]
                lines[number] = f"{lines[number][:36]}{code:3d}{lines[number][39:]}"
        file = write(tmp_path / "a.sdf", "\n".join([*lines, "$$$$", ""]))
    (entry,) = read(file)
    assert entry.molecule is not None
    assert entry.molecule.charge == charge
    assert perceive(entry.molecule).mol is not None


def test_what_was_generated_is_to_be_neutral_whatever_charges_were_predicted(tmp_path: Path) -> None:
    block = Chem.MolToMolBlock(Chem.AddHs(Chem.MolFromSmiles("C[NH3+]")))
    file = write(tmp_path / "a.sdf", block + ">  <reject_reason>\n\n\n$$$$\n")
    (entry,) = read(file)
    assert entry.molecule is not None
    assert entry.molecule.charge == 0
