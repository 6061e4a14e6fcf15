"""Files as training data: batches against PyG's own, splits, conformers, what is left out, and caches."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rdkit import Chem
from torch_geometric.data import Batch

from tests.support.samples.molecule_files import DRUG_LIKE, datamodule, with_shape, write_sdf, write_text
from unite.errors import UserError
from unite.modalities.molecule import MoleculeAdapter
from unite.modalities.molecule.data.files import cache as files_cache
from unite.modalities.molecule.data.files.datamodule import MoleculeFilesDataModule
from unite.modalities.molecule.graph import data_from_mol, graph_from_data, graph_from_mol


@pytest.fixture(scope="module")
def own_sdf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mols = [with_shape(smiles, logS=number, rare=1 if number == 3 else "") for number, smiles in enumerate(DRUG_LIKE)]
    return write_sdf(tmp_path_factory.mktemp("own") / "own.sdf", mols)


def all_molecules(data: MoleculeFilesDataModule) -> list[Any]:
    """The molecules of all splits as PyG objects, by their number in the file."""
    found = {}
    for rows in data.splits.values():
        batch = data.molecules()[data.samples_of(rows)]["molecule"]
        found.update({int(item.molecule_id): item for item in batch.to_data_list()})
    return [found[number] for number in sorted(found)]


@pytest.mark.parametrize("hydrogens", ["explicit", "counted"])
def test_molecules_are_those_of_the_file(own_sdf: Path, hydrogens: Any) -> None:
    data = datamodule(own_sdf, hydrogens=hydrogens, bonds=True)
    for item, smiles in zip(all_molecules(data), DRUG_LIKE, strict=True):
        expected = data_from_mol(with_shape(smiles), hydrogens)
        assert torch.equal(item.z, expected.z)
        torch.testing.assert_close(item.pos, expected.pos, atol=1e-4, rtol=0)
        here, there = graph_from_data(item), graph_from_mol(with_shape(smiles), hydrogens)
        assert (here.bonds == there.bonds).all()
        assert (here.charges == there.charges).all()
        if hydrogens == "counted":
            assert torch.equal(item.num_hydrogens, expected.num_hydrogens)


def test_a_batch_equals_the_one_that_pyg_makes(own_sdf: Path) -> None:
    data = datamodule(own_sdf, bonds=True)
    batch = next(iter(data.train_dataloader()))["molecule"]
    again = Batch.from_data_list(batch.to_data_list())
    for name in ("z", "pos", "edge_index", "edge_attr", "charge", "molecule_id", "y", "batch", "ptr"):
        assert torch.equal(batch[name], again[name]), name


@pytest.mark.filterwarnings("error")
def test_molecules_without_a_shape_know_their_number_of_atoms(tmp_path: Path) -> None:
    """An isolated atom has no edge to be guessed from."""
    path = write_text(tmp_path / "a.smi", "CCO", "C", "CN", "O", "CC", "c1ccccc1")
    data = datamodule(path, hydrogens="counted", positions=False, bonds=True, batch_size=6)
    batch = data.molecules()[data.samples_of(data.rows("train"))]["molecule"]
    items = batch.to_data_list()
    assert [item.num_nodes for item in items] == [len(item.z) for item in items]
    again = Batch.from_data_list(items)
    assert again.num_nodes == batch.num_nodes == len(batch.z)
    for name in ("z", "edge_index", "edge_attr", "batch", "ptr"):
        assert torch.equal(batch[name], again[name]), name


def test_settings_of_the_adapter_are_found_in_the_data(own_sdf: Path) -> None:
    explicit = datamodule(own_sdf).adapter_settings()
    assert explicit["elements"] == ["H", "B", "C", "N", "O", "Si", "P", "S", "Cl", "Br", "I"]
    sizes = [with_shape(smiles).GetNumAtoms() for smiles in DRUG_LIKE]
    assert (explicit["max_atoms"], explicit["max_charge"]) == (max(sizes), 0)
    counted = datamodule(own_sdf, hydrogens="counted", bonds=True)
    assert counted.adapter_settings()["max_atoms"] == 13
    adapter = MoleculeAdapter(hydrogens="counted", bonds=True, **counted.adapter_settings())
    adapter.build(32, 4)
    adapter.fit_statistics(counted)  # looks at all training molecules
    assert int(adapter.size_counts.sum()) == len(counted.rows("train"))


def test_what_was_found_is_taken_over_unless_a_setting_or_a_file_has_changed(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.smi", "CC", "CO", "CN", "CCO")
    first = datamodule(path)
    found = first.adapter_settings()
    for settings, is_same in ((found, True), (found | {"max_atoms": 3}, False), (found | {"seed": 7}, True)):
        data = datamodule(path, **settings)
        data.reuse(first)
        assert ("table" in vars(data)) == is_same
        assert data._selection[0].tolist() == ([0, 1, 2, 3] if is_same else [])
    write_text(path, "CC", "CO", "CN")
    data = datamodule(path, **found)
    data.reuse(first)
    assert len(data.table) == 3


def test_what_the_model_has_no_place_for_is_counted_by_name(own_sdf: Path) -> None:
    data = datamodule(own_sdf, elements=["H", "C", "N", "O", "Cl", "Si"], max_atoms=16)
    assert data.left_out == {"too_large": 2, "element_B": 1, "element_P": 1, "element_I": 1}
    kept = [DRUG_LIKE[item.molecule_id - 1] for item in all_molecules(data)]
    assert kept == ["Clc1ccccc1", "C[Si](C)(C)O", "CCO", "c1ccncc1", "CC(N)=O", "C1CC1", "OCCN"]
    assert data.adapter_settings()["elements"] == ["H", "C", "N", "O", "Cl", "Si"]


def test_atoms_that_united_atoms_cannot_be(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.smi", "C[NH3+]", "[NH4+]", "[H][H]", "CC", "CO", "CN", "[BH4-]")
    data = datamodule(path, hydrogens="counted", positions=False)
    assert data.left_out == {"no_heavy_atom": 1, "atom_BH4": 1, "atom_NH4": 1}
    bonds = datamodule(path, hydrogens="counted", positions=False, bonds=True)
    assert bonds.left_out == {"no_heavy_atom": 1, "charged": 3}


def test_splits_are_disjoint_and_the_same_again(own_sdf: Path) -> None:
    splits = datamodule(own_sdf).splits
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 10, "val": 1, "test": 1}
    assert torch.cat(list(splits.values())).sort().values.tolist() == list(range(12))
    again, other = datamodule(own_sdf).splits, datamodule(own_sdf, split_seed=1).splits
    assert all(torch.equal(splits[split], again[split]) for split in splits)
    assert not torch.equal(splits["train"], other["train"])


def test_molecules_with_equal_bonds_are_on_one_side(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.smi", *["CCO", "OCC", "CN", "NC", "CO", "C", "CC", "CCC"] * 3)
    data = datamodule(path, val_fraction=0.3, test_fraction=0.3)
    keys = [set(data.table.key[rows].tolist()) for rows in data.splits.values()]
    assert sum(map(len, keys)) == len(set.union(*keys)) == 6


def test_scaffolds_are_on_one_side_and_rare_ones_are_tested(tmp_path: Path) -> None:
    benzenes = [f"{'C' * length}c1ccccc1" for length in range(1, 9)]
    path = write_text(tmp_path / "a.smi", *benzenes, "C1CC1C", "c1ccncc1C")
    data = datamodule(path, split="scaffold", positions=False)
    assert len(data.rows("train")) == 8
    assert len(data.table.scaffold[data.rows("train")].unique()) == 1


def test_files_of_their_own_for_validation_and_test(own_sdf: Path) -> None:
    other = write_sdf(own_sdf.parent / "other.sdf", [with_shape("CF"), with_shape("CCF")])
    data = datamodule(own_sdf, val_path=str(other))
    assert len(data.rows("val")) == 2
    assert len(data.rows("test")) == 1
    assert set(data.table.origin[data.rows("train")].tolist()) == {0}


def test_one_conformer_of_each_molecule_is_drawn_in_an_epoch(tmp_path: Path) -> None:
    shapes = [with_shape(smiles, seed) for smiles in ("CCO", "CCCO", "CCN", "OCCN", "CCCN") for seed in range(1, 6)]
    data = datamodule(write_sdf(tmp_path / "a.sdf", shapes))
    assert (len(data.table), data.table.num_conformers.tolist()) == (5, [5] * 5)
    rows = data.rows("train")
    sampler = data.sampler(rows, 2, shuffle=False)
    assert [sample for batch in sampler for sample in batch] == data.table.sample_ptr[rows].tolist()

    sampler = data.sampler(rows, 1, shuffle=True)
    drawn = []
    for epoch in range(30):
        sampler.set_epoch(epoch)
        samples = [batch[0] for batch in sampler]
        assert sorted(sample // 5 for sample in samples) == sorted(rows.tolist())
        drawn += samples
    assert len(set(drawn)) == 15  # all conformers of the three molecules
    sampler.set_epoch(7)
    first = [batch[0] for batch in sampler]
    sampler.resume(7, 2)
    assert [batch[0] for batch in sampler] == first[2:]

    positions = data.molecules()[[3]]["molecule"].pos
    torch.testing.assert_close(
        positions, torch.tensor(shapes[3].GetConformer().GetPositions()).float(), atol=1e-4, rtol=0
    )


def test_properties_that_half_of_the_molecules_have_come_unasked(own_sdf: Path) -> None:
    data = datamodule(own_sdf)
    assert data.property_names == ["logS"]
    for item in all_molecules(data):
        assert item.y.tolist() == [[float(item.molecule_id - 1)]]
    asked = datamodule(own_sdf, properties=["rare"])
    assert [bool(item.y.isfinite()) for item in all_molecules(asked)] == [number == 3 for number in range(12)]
    with pytest.raises(UserError, match=r"data\.properties has 'logP'; the files have these numbers: logS, rare"):
        _ = datamodule(own_sdf, properties=["logP"]).property_names


def test_keys_of_training_molecules_are_those_of_their_bonds(own_sdf: Path) -> None:
    data = datamodule(own_sdf)
    assert torch.equal(data.training_keys(), data.table.key[data.rows("train")].sort().values)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"a\.smi has no molecule: it is empty"),
        (["CCO"], r"a\.smi has 1 molecule to learn from, and it takes 3"),
        (["C.C", "CC.C", "CN"], r"1 molecule to learn .* left out: 2 of several pieces: .* \(mixture\)"),
        (["CCO", "OCC", "C(C)O"], r"3 molecules to divide, 1 different molecules: nothing is left for"),
    ],
)
def test_too_little_to_learn_from_is_one_line(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "a.smi"
    path.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(UserError, match=message) as error:
        datamodule(path).adapter_settings()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_conformers": 0}, "num_conformers is 0"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"elements": ["C", "Xx"]}, "'Xx', which is no element"),
        ({"split": "time"}, "split is 'time'"),
        ({"path": []}, "data.path is empty"),
        ({"test_path": "nothing.sdf"}, "data.test_path is nothing.sdf, but there is no such file"),
    ],
)
def test_wrong_settings_are_refused(own_sdf: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MoleculeFilesDataModule(**{"path": str(own_sdf), "cache": str(own_sdf.parent / "cache"), **settings}).setup()


def test_other_records_are_counted_by_name(tmp_path: Path) -> None:
    lines = ["CCO", "CN", "CO", "C1CC", "CC.O", "C[*]", "F" + "C" * 120, "CC(C)(C)(C)C", "nonsense"]
    data = datamodule(write_text(tmp_path / "a.smi", *lines))
    assert data.left_out == {
        "unreadable": 2,
        "mixture": 1,
        "unknown_element": 1,
        "too_large_for_conformers": 1,
        "sanitization": 1,
    }
    listed = json.loads((data.folder / "report.json").read_text())["refused_records"]
    assert [entry["record"] for entry in listed] == [4, 5, 6, 7, 8, 9]
    assert listed[0]["file"].endswith("a.smi")


# ---------------------------------------------------------------- caches


def test_a_cache_that_is_there_is_used_and_a_damaged_one_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_text(tmp_path / "a.smi", "CCO", "CN", "CO")
    first = datamodule(path, hydrogens="counted").table
    table_file = next(tmp_path.glob("cache/*/united.safetensors"))
    with monkeypatch.context() as patched:
        patched.setattr(files_cache, "read_records", None)  # whoever reads the file again fails
        assert torch.equal(datamodule(path, hydrogens="counted").table.pos, first.pos)
    table_file.write_bytes(table_file.read_bytes()[:-1])
    assert torch.equal(datamodule(path, hydrogens="counted").table.pos, first.pos)
    assert "making" in caplog.text


def test_another_file_or_other_settings_have_a_cache_of_their_own(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.smi", "CCO", "CN", "CO")
    folders = {datamodule(path).folder, datamodule(path, num_conformers=2).folder}
    write_text(path, "CCO", "CN", "CCC")
    assert datamodule(path).folder not in folders
    assert len(folders) == 2


def test_an_interrupted_reading_continues_with_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text(tmp_path / "a.smi", *("C" * length + "O" for length in range(1, 13)))
    monkeypatch.setattr(files_cache, "_RECORDS_PER_CHUNK", {"smiles": 8})
    whole = datamodule(path).table
    folder = datamodule(path).folder
    shutil.rmtree(folder)

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files_cache, "_report", stop)  # both chunks are done, the table is not
        with pytest.raises(KeyboardInterrupt):
            _ = datamodule(path).table
    done = sorted((folder / "parts").iterdir())
    assert [file.name for file in done] == ["0.safetensors", "8.safetensors"]
    done[0].write_bytes(b"half a file")
    before = done[1].stat().st_mtime_ns
    with monkeypatch.context() as patched:
        patched.setattr(files_cache, "_report", lambda *args: {"properties": {}, "kept": done[1].stat().st_mtime_ns})
        again = datamodule(path).table
    assert json.loads((folder / "report.json").read_text())["kept"] == before
    assert torch.equal(again.pos, whole.pos)
    assert not (folder / "parts").exists()


def test_the_table_is_read_from_the_file_and_not_into_memory(own_sdf: Path) -> None:
    table = datamodule(own_sdf).table
    path = str(datamodule(own_sdf).folder / "molecules.safetensors")
    assert path.encode() in Path("/proc/self/maps").read_bytes() if Path("/proc/self/maps").exists() else True
    assert [table.smiles(row) for row in (1, 7)] == [Chem.CanonSmiles(DRUG_LIKE[row]) for row in (1, 7)]


def test_captions_are_a_column_or_a_data_item(tmp_path: Path) -> None:
    notes = {"CCO": "an alcohol, of two carbons", "CC#N": "a nitrile", "C1CC1": "", "CCCO": "Ünïcödé", "CC": "ethane"}
    table = write_text(tmp_path / "some.csv", "smiles,note", *(f'{smiles},"{note}"' for smiles, note in notes.items()))
    sdf = write_sdf(tmp_path / "some.sdf", [with_shape(smiles, note=note) for smiles, note in notes.items()])
    expected = {Chem.CanonSmiles(smiles): note or None for smiles, note in notes.items()}
    for path, hydrogens in ((table, "explicit"), (table, "counted"), (sdf, "explicit")):
        data = datamodule(path, hydrogens=hydrogens, captions="note")
        data.setup()
        rows = torch.arange(len(data.table))
        batch = data.molecules()[data.samples_of(rows)]["molecule"]
        assert {data.table.smiles(row): batch.caption[row] for row in rows.tolist()} == expected
        assert Batch.from_data_list([batch[1]]).caption == [batch.caption[1]]
        in_training = data.rows("train").tolist()
        assert list(data.training_captions() or []) == [batch.caption[row] for row in in_training]
    assert datamodule(table).training_captions() is None
    with pytest.raises(UserError, match=r"data\.captions is 'remark', but no molecule has such a data item or column"):
        datamodule(table, captions="remark").training_captions()
