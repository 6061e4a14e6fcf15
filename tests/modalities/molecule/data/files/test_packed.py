"""Data sets that are no text: what PyG saves, and GEOM's msgpack and pickle files."""

import os
import pickle
from pathlib import Path

import msgpack
import pytest
import torch
from rdkit import Chem
from torch_geometric.data import Data, InMemoryDataset

from tests.support.samples.molecule_files import with_shape
from unite.errors import UserError
from unite.modalities.molecule import MoleculeFilesDataModule
from unite.modalities.molecule.data.files.records import ReadSettings, read
from unite.modalities.molecule.data.files.sources import Record, find_sources, read_records

SMILES = ("CO", "c1ccsc1", "CC(=O)N")


def records(path: Path) -> list[Record]:
    return [record for file in find_sources([str(path)]) for record in read_records(file, None)]


def molecules() -> list[Chem.Mol]:
    return [with_shape(smiles) for smiles in SMILES]


def graph(mol: Chem.Mol, place: int) -> Data:
    return Data(
        z=torch.tensor([atom.GetAtomicNum() for atom in mol.GetAtoms()]),
        pos=torch.tensor(mol.GetConformer().GetPositions(), dtype=torch.float32),
        y=torch.tensor([[place + 0.5, -1.0]]),
        gap=torch.tensor([float(place)]),
    )


@pytest.mark.parametrize("form", ["save", "collate"])
def test_a_pyg_data_set(tmp_path: Path, form: str) -> None:
    graphs = [graph(mol, place) for place, mol in enumerate(molecules())]
    path = tmp_path / "processed" / "data.pt"
    path.parent.mkdir()
    if form == "save":
        InMemoryDataset.save(graphs, str(path))
    else:  # as PyG did before 2.4: objects in place of plain values
        torch.save(InMemoryDataset.collate(graphs), path)
    torch.save("none", path.parent / "pre_filter.pt")
    found = [read(record, ReadSettings(num_conformers=1)) for record in records(path.parent)]
    assert [molecule.smiles for molecule in found] == [Chem.CanonSmiles(smiles) for smiles in SMILES]
    assert [molecule.fields for molecule in found] == [{"gap": i, "y0": i + 0.5, "y1": -1.0} for i in range(3)]
    torch.testing.assert_close(torch.from_numpy(found[1].positions[0]), graphs[1].pos, rtol=0, atol=1e-6)


def test_a_data_module_of_a_pyg_data_set(tmp_path: Path) -> None:
    InMemoryDataset.save([graph(mol, place) for place, mol in enumerate(molecules() * 4)], str(tmp_path / "data.pt"))
    data = MoleculeFilesDataModule(str(tmp_path / "data.pt"), cache=str(tmp_path / "cache"), batch_size=2)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))["molecule"]
    assert batch.y.shape == (2, 3)
    assert set(batch.z.tolist()) <= {1, 6, 7, 8, 16}


def geom_item(mol: Chem.Mol) -> dict[str, object]:
    rows = [
        [float(atom.GetAtomicNum()), *position]
        for atom, position in zip(mol.GetAtoms(), mol.GetConformer().GetPositions().tolist(), strict=True)
    ]
    conformers = [{"xyz": rows, "boltzmannweight": 0.75, "geom_id": 3}, {"xyz": rows, "boltzmannweight": 0.25}]
    return {"totalconfs": 2, "conformers": conformers}


def test_geom_in_msgpack(tmp_path: Path) -> None:
    path = tmp_path / "drugs_crude.msgpack"
    mols = molecules()
    items = [{SMILES[0]: geom_item(mols[0]), SMILES[1]: geom_item(mols[1])}, {SMILES[2]: geom_item(mols[2])}]
    path.write_bytes(b"".join(msgpack.packb(item) for item in items))
    found = [read(record, ReadSettings(num_conformers=1)) for record in records(path)]
    assert [molecule.smiles for molecule in found] == [Chem.CanonSmiles(smiles) for smiles in SMILES for _ in range(2)]
    assert [molecule.fields["boltzmannweight"] for molecule in found[:2]] == [0.75, 0.25]


def test_geom_in_pickles(tmp_path: Path) -> None:
    mol = with_shape("c1ccsc1")
    content = {"conformers": [{"rd_mol": mol, "boltzmannweight": 0.75}, {"rd_mol": mol, "boltzmannweight": 0.25}]}
    (tmp_path / "thiophene.pickle").write_bytes(pickle.dumps(content))
    first, second = records(tmp_path)
    found = read(first, ReadSettings(num_conformers=1))
    assert found.smiles == "c1ccsc1"
    assert found.notes == []  # bonds and shape are the file's
    assert found.positions[0] == pytest.approx(mol.GetConformer().GetPositions(), abs=1e-4)
    assert read(second, ReadSettings(num_conformers=1)).fields == {"boltzmannweight": 0.25}


class Hostile:
    """Runs a command where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "a.pickle").write_bytes(pickle.dumps({"conformers": [{"rd_mol": Hostile(trace)}]}))
    torch.save(({"z": Hostile(trace)}, {}), tmp_path / "b.pt")
    with pytest.raises(UserError, match=r"names (posix|nt)\.system, which is no molecule"):
        records(tmp_path / "a.pickle")
    with pytest.raises(UserError, match="without running code of it"):
        records(tmp_path / "b.pt")
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"\x80\x04.", pickle.dumps({"conformers": [{}]})])
@pytest.mark.parametrize("name", ["a.pt", "a.msgpack", "a.pickle"])
def test_other_content_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    if (name, content) == ("a.msgpack", b""):
        assert records(path) == []
        return
    with pytest.raises(UserError, match=rf"{name}") as refusal:
        records(path)
    assert "\n" not in str(refusal.value)


def test_pyg_files_without_positions_or_with_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    InMemoryDataset.save([Data(x=torch.ones(2, 1)), Data(x=torch.ones(3, 1))], str(path))
    with pytest.raises(UserError, match="has no 'z' of its molecules, but x"):
        records(path)
    torch.save(
        ({"z": torch.tensor([6]), "pos": torch.zeros(4, 3)}, {"z": torch.tensor([0, 9]), "pos": torch.tensor([0, 9])}),
        path,
    )
    with pytest.raises(UserError, match="is damaged"):
        records(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="is no data set of PyG"):
        records(path)
