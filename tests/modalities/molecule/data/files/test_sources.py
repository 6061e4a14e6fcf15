"""Records of every kind of file, folder, pattern and archive."""

import gzip
import zipfile
from pathlib import Path

import pytest

from tests.support.samples.molecule_files import DRUG_LIKE, with_shape, write_sdf, write_text
from unite.errors import UserError
from unite.modalities.molecule.data.files.sources import Record, count_records, find_sources, read_records


def records(*paths: Path, column: str | None = None) -> list[Record]:
    return [record for file in find_sources(list(map(str, paths))) for record in read_records(file, column)]


def smiles_of(path: Path, column: str | None = None) -> list[str]:
    return [record.lines[0] for record in records(path, column=column)]


def test_smiles_of_all_kinds_of_tables(tmp_path: Path) -> None:
    expected = ["CCO", "CN"]
    assert smiles_of(write_text(tmp_path / "a.smi", "CCO ethanol", "", "CN")) == expected
    assert smiles_of(write_text(tmp_path / "b.smi", "SMILES name", "CCO ethanol", "CN x")) == expected
    assert smiles_of(write_text(tmp_path / "c.csv", "name,SMILES", "x,CCO", '"y, z",CN')) == expected
    assert smiles_of(write_text(tmp_path / "d.csv", "name;canonical_smiles", "x;CCO", "y;CN")) == expected
    assert smiles_of(write_text(tmp_path / "e.tsv", "structure\tlogS", "CCO\t1", "CN\t2"), "structure") == expected


def test_other_columns_are_fields(tmp_path: Path) -> None:
    (record,) = records(write_text(tmp_path / "a.csv", "name,smiles,logS", "x,CCO,-1.5"))
    assert record.fields == {"name": "x", "logS": "-1.5"}
    assert (record.number, record.format) == (1, "smiles")


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"logS": [1.5, None], "smiles": ["CCO", "CN"]}), path)
    assert smiles_of(path) == ["CCO", "CN"]
    assert records(path)[0].fields == {"logS": "1.5"}
    with pytest.raises(UserError, match=r"smiles_column is 'x', but .*a\.parquet has logS, smiles"):
        records(path, column="x")
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="cannot read"):
        records(path)


def test_packed_files_hold_the_same_records(tmp_path: Path) -> None:
    plain = write_sdf(tmp_path / "a.sdf", [with_shape(smiles) for smiles in DRUG_LIKE[:3]])
    expected = [record.lines for record in records(plain)]
    packed = tmp_path / "b.sdf.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert [record.lines for record in records(packed)] == expected
    archive = tmp_path / "c.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(plain, "folder/a.sdf")
        file.write(packed, "folder/b.sdf.gz")
        file.writestr("__MACOSX/a.sdf", "not to be read")
        file.writestr("notes.txt", "neither")
    assert [record.lines for record in records(archive)] == [*expected, *expected]
    assert records(archive)[0].file.endswith("c.zip/folder/a.sdf")


def test_folders_and_patterns_are_taken_by_name_each_file_once(tmp_path: Path) -> None:
    for name, smiles in (("part_2.smi", "CN"), ("part_1.smi", "CCO"), ("other.smi", "O"), ("sub/part_3.smi", "N")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_text(tmp_path / name, smiles)
    write_text(tmp_path / ".hidden.smi", "C")
    assert smiles_of(tmp_path / "part_*.smi") == ["CCO", "CN"]
    assert smiles_of(tmp_path) == ["O", "CCO", "CN", "N"]
    assert len(records(tmp_path / "part_1.smi", tmp_path)) == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing.sdf", None, "no such file, folder or pattern"),
        ("a.doc", "x", "no molecule file by its name; known are .sdf"),
        ("a.csv", "name,logS\nx,1\n", "no column called smiles; name one in smiles_column: name, logS"),
        ("a.zip", "not packed", "cannot be unpacked"),
        ("a.sdf.gz", "not packed", "cannot read"),
    ],
)
def test_wrong_input_is_one_line(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        records(tmp_path / name)
    assert "\n" not in str(error.value)


def test_the_total_of_the_progress_bar(tmp_path: Path) -> None:
    sdf = write_sdf(tmp_path / "a.sdf", [with_shape("CCO")] * 3)
    smi = write_text(tmp_path / "b.smi", "C", "CC")
    assert count_records(find_sources([str(sdf), str(smi)])) == 5
    write_text(tmp_path / "c.xyz", "1", "", "He 0 0 0")
    assert count_records(find_sources([str(tmp_path)])) is None
