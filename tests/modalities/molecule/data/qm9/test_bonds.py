"""Bonds of QM9: perceived, kept, resumed, and gathered into batches."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rdkit import Chem
from safetensors.torch import load_file
from torch_geometric.data import Batch, Data

from tests.support.commands import RunCli
from tests.support.paths import TINY_CSV
from tests.support.samples.qm9_rows import tiny_molecules
from tests.support.workers import in_this_process
from unite.errors import UserError
from unite.modalities.molecule.batches import GatheredMolecules
from unite.modalities.molecule.data.base import Hydrogens
from unite.modalities.molecule.data.qm9 import bonds as qm9_bonds
from unite.modalities.molecule.data.qm9 import chunks as perception_chunks
from unite.modalities.molecule.data.qm9.bonds import load_or_perceive, perceive_chunk
from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule
from unite.modalities.molecule.graph import assemble, data_from_graph, graph_from_data, graph_from_mol
from unite.modalities.molecule.perception.molecule import hash_key, molecule_key
from unite.modalities.molecule.perception.perceive import perceive

# Rows of zwitterions in the tiny file whose charges perception places elsewhere than the data set's SMILES does.
OTHER_THAN_SMILES = [50, 55, 58]
MakeDataModule = Callable[..., QM9DataModule]


@pytest.fixture
def tiny(tmp_path: Path) -> MakeDataModule:
    def make(**arguments: Any) -> QM9DataModule:
        defaults: dict[str, Any] = {"root": str(tmp_path), "csv_files": [str(TINY_CSV)], "bonds": True}
        return QM9DataModule(**{**defaults, **arguments})

    return make


def single(datamodule: QM9DataModule, row: int) -> Data:
    """A molecule of the table, made one by one from what perception finds."""
    molecule = tiny_molecules()[row][0]
    mol = perceive(molecule).mol
    assert mol is not None
    data = data_from_graph(graph_from_mol(mol, datamodule.hydrogens))
    is_kept = molecule.atomic_numbers > (1 if datamodule.hydrogens == "counted" else 0)
    data.pos = torch.tensor(molecule.positions[is_kept], dtype=torch.float32)
    data.molecule_id = datamodule.table().molecule_id[row : row + 1]
    del data.num_nodes
    return data


def sorted_edges(data: Data) -> list[tuple[int, int, int]]:
    return sorted(zip(*data.edge_index.tolist(), data.edge_attr.tolist(), strict=True))


@pytest.mark.parametrize("hydrogens", ["explicit", "counted"])
@pytest.mark.parametrize("rows", [[5, 63, 0, 5], [7]])
def test_gathered_batch_equals_collated_batch(tiny: MakeDataModule, hydrogens: Hydrogens, rows: list[int]) -> None:
    datamodule = tiny(hydrogens=hydrogens)
    gathered = GatheredMolecules(datamodule.table(), hydrogens == "counted", datamodule.bond_table())
    batch = gathered[rows]["molecule"]
    molecules = [single(datamodule, row) for row in rows]
    collated = Batch.from_data_list(molecules)
    assert sorted_edges(batch) == sorted_edges(collated)
    pairs = [(batch, collated), *zip(batch.to_data_list(), molecules, strict=True)]
    pairs.append((Batch.from_data_list(batch.to_data_list()), collated))
    for actual, expected in pairs:
        assert sorted(actual.keys()) == sorted(expected.keys())
        assert sorted_edges(actual) == sorted_edges(expected)
        for name in set(expected.keys()) - {"edge_index", "edge_attr"}:
            assert torch.equal(actual[name], expected[name]), name
            assert actual[name].dtype == expected[name].dtype, name


@pytest.mark.parametrize("hydrogens", ["explicit", "counted"])
def test_batches_are_the_molecules_of_the_smiles(tiny: MakeDataModule, hydrogens: Hydrogens) -> None:
    datamodule = tiny(hydrogens=hydrogens, predict_split="train")
    datamodule.setup("fit")
    table = datamodule.table()
    rows = {number: row for row, number in enumerate(table.molecule_id.tolist())}
    for batch in datamodule.predict_dataloader():
        for data in batch["molecule"].to_data_list():
            mol = assemble(graph_from_data(data)).mol
            assert mol is not None
            row = rows[int(data.molecule_id)]
            is_same = molecule_key(mol) == molecule_key(Chem.MolFromSmiles(table.smiles[row]))
            assert is_same == (row not in OTHER_THAN_SMILES)


def test_positions_alone_perceive_nothing(tiny: MakeDataModule, tmp_path: Path) -> None:
    datamodule = tiny(bonds=False)
    datamodule.setup("fit")
    assert not list(tmp_path.glob("bonds-*"))
    assert "edge_index" not in next(iter(datamodule.val_dataloader()))["molecule"]
    with pytest.raises(UserError, match=r"set data.init_args.bonds to true"):
        datamodule.training_graph_keys()


def test_training_keys_are_those_of_the_training_molecules(tiny: MakeDataModule) -> None:
    datamodule = tiny()
    mols = [perceive(tiny_molecules()[row][0]).mol for row in datamodule.rows("train").tolist()]
    expected = {hash_key(molecule_key(mol)) for mol in mols if mol is not None}
    assert datamodule.training_graph_keys().tolist() == sorted(expected)


def test_second_use_reads_the_file_and_a_damaged_one_is_made_again(
    tiny: MakeDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = tiny().bond_table()
    (path,) = tmp_path.glob("bonds-*.safetensors")
    assert not list(tmp_path.glob("*.parts"))
    path.write_bytes(path.read_bytes()[:-1])
    second = tiny().bond_table()
    assert "again" in caplog.text
    monkeypatch.setattr(qm9_bonds, "perceive_all", lambda molecules: pytest.fail("perceived again"))
    third = tiny().bond_table()
    for name in vars(first):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
        assert torch.equal(getattr(first, name), getattr(third, name)), name


def test_interrupted_work_continues_where_it_stopped(
    tiny: MakeDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tiny().table()
    monkeypatch.setattr(perception_chunks, "work_apart", in_this_process)
    calls: list[int] = []

    def interrupted(rows: list[qm9_bonds.Row]) -> Any:
        calls.append(rows[0].number)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return perceive_chunk(rows)

    monkeypatch.setattr(qm9_bonds, "perceive_chunk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_or_perceive(table, tmp_path, molecules_per_chunk=10)
    (parts,) = tmp_path.glob("*.parts")
    assert len(list(parts.iterdir())) == 2
    calls.clear()
    calls.extend([0, 0, 0])
    continued = load_or_perceive(table, tmp_path, molecules_per_chunk=10)
    assert len(calls) - 3 == 7 - 2
    assert not parts.exists()
    monkeypatch.setattr(qm9_bonds, "perceive_chunk", perceive_chunk)
    (tmp_path / "at_once").mkdir()
    at_once = load_or_perceive(table, tmp_path / "at_once")
    for name in vars(at_once):
        assert torch.equal(getattr(continued, name), getattr(at_once, name)), name


def test_two_processes_find_what_one_finds(tiny: MakeDataModule, tmp_path: Path) -> None:
    table = tiny().table()
    for folder, size in (("two", 16), ("one", 64)):
        (tmp_path / folder).mkdir()
        load_or_perceive(table, tmp_path / folder, molecules_per_chunk=size)
    one, two = (load_file(next((tmp_path / folder).glob("*.safetensors"))) for folder in ("one", "two"))
    assert sorted(one) == sorted(two)
    assert all(torch.equal(one[name], two[name]) for name in one)


def with_one_molecule_torn_apart(folder: Path) -> Path:
    """The tiny file with a hydrogen of molecule 2 (ammonia) too far for a bond, and another SMILES for water."""
    text = TINY_CSV.read_text()
    assert text.count("0.0172574639,0.0125452063,-0.0273771593") == 1
    torn = text.replace("0.0172574639,0.0125452063,-0.0273771593", "0.0172574639,-0.42,-0.0273771593")  # 1.45 Å
    assert torn.count('3,"O"') == 1
    path = folder / "torn.csv"
    path.write_text(torn.replace('3,"O"', '3,"OO"'))
    return path


@pytest.mark.parametrize("hydrogens", ["explicit", "counted"])
def test_molecules_without_bonds_are_left_out_counted_and_named(
    tiny: MakeDataModule, tmp_path: Path, hydrogens: Hydrogens, caplog: pytest.LogCaptureFixture
) -> None:
    arguments: dict[str, Any] = {"csv_files": [str(with_one_molecule_torn_apart(tmp_path))], "hydrogens": hydrogens}
    with caplog.at_level("INFO"):
        datamodule = tiny(**arguments)
        datamodule.setup("fit")
    assert "left out for want of bonds" in caplog.text
    assert "numbers 2;" in caplog.text
    kept = torch.cat([datamodule.rows(split) for split in ("train", "val", "test")])
    everything = torch.cat([tiny(bonds=False, **arguments).rows(split) for split in ("train", "val", "test")])
    assert set(everything.tolist()) - set(kept.tolist()) == {1}
    manifest = json.loads(next(tmp_path.glob("bonds-*.json")).read_text())
    assert manifest["num_molecules"] == 64
    assert manifest["num_with_bonds"] == 63
    assert [entry["molecule_id"] for entry in manifest["without_bonds"]] == [2]
    assert manifest["without_bonds"][0]["reason"] in ("isolated_atom", "disconnected", "no_bond_orders")
    assert manifest["other_than_smiles"][0] == {"molecule_id": 3, "smiles": "OO", "perceived": "O"}
    assert len(manifest["other_than_smiles"]) == 1 + len(OTHER_THAN_SMILES)


def test_prepare_command_perceives_bonds_when_asked(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unite.modalities.molecule.data.qm9.table.find_qm9pack", lambda: [TINY_CSV])
    command = ["prepare", "qm9", "--root", tmp_path]
    assert run_cli(*command).code == 0
    assert not list(tmp_path.glob("bonds-*"))
    result = run_cli(*command, "--bonds")
    assert result.code == 0, result.err
    assert "64 have bonds, 61 (95.31%) those of the data set's SMILES" in result.out


def test_prepare_that_fails_leaves_no_folder(run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unite.modalities.molecule.data.qm9.table.find_qm9pack", list)
    result = run_cli("prepare", "qm9", "--root", tmp_path / "data" / "qm9", "--source", "qm9pack")
    assert result.code == 2
    assert "qm9pack, which is not installed" in result.err
    assert not list(tmp_path.iterdir())


def test_bonds_that_cannot_be_kept_are_refused_before_they_are_perceived(tiny: MakeDataModule, tmp_path: Path) -> None:
    table = tiny(bonds=False).table()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write the bonds of QM9 to .*data\.root in a config"):
        load_or_perceive(table, tmp_path / "file" / "qm9")
