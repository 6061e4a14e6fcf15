"""QM9: the cache, the split, the batches, and their order, on 64 real molecules and on the full data set."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rdkit import Chem
from torch import Tensor
from torch_geometric.data import Batch, Data

from tests.support.paths import TINY_CSV
from tests.support.workers import in_this_process
from unite.errors import UserError
from unite.modalities.batches import BUCKET_STEPS, SizedBatchSampler
from unite.modalities.molecule.batches import GatheredMolecules, known_largest
from unite.modalities.molecule.data.base import Hydrogens
from unite.modalities.molecule.data.qm9 import chunks as perception_chunks
from unite.modalities.molecule.data.qm9 import keys as qm9_keys
from unite.modalities.molecule.data.qm9 import table as qm9_cache
from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule
from unite.modalities.molecule.data.qm9.table import MIN_MOLECULES, MoleculeTable, RawMolecule, build_table
from unite.modalities.molecule.perception.molecule import Molecule, hash_key

HEADER = "Index,SMILES,Elements,XYZ_Ang\n"
METHANE_LIKE = "\"['C','H']\",\"[[0.,0.,0.],[0.,0.,1.1]]\""

MakeDataModule = Callable[..., QM9DataModule]


@pytest.fixture
def tiny(tmp_path: Path) -> MakeDataModule:
    """Makes datamodules of the tiny file with a cache in a temporary folder."""

    def make(**arguments: Any) -> QM9DataModule:
        defaults: dict[str, Any] = {"root": str(tmp_path), "csv_files": [str(TINY_CSV)], "batch_size": 8}
        return QM9DataModule(**{**defaults, **arguments})

    return make


@pytest.fixture(scope="session")
def qm9_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder with a cache of the full data set, built once per test session."""
    root = str(tmp_path_factory.mktemp("qm9"))
    QM9DataModule(root, source="qm9pack").prepare_data()
    return root


def seen_molecules(batches: Any) -> list[int]:
    return [number for batch in batches for number in batch["molecule"].molecule_id.tolist()]


def padding_share(datamodule: QM9DataModule) -> float:
    sizes = [batch["molecule"].ptr.diff() for batch in datamodule.train_dataloader()]
    return 1 - sum(int(size.sum()) for size in sizes) / sum(int(size.max()) * len(size) for size in sizes)


def cache_file(datamodule: QM9DataModule) -> Path:
    datamodule.prepare_data()
    (file,) = datamodule.root.glob("csv-*.safetensors")
    return file


# Batches


def reference_data(table: MoleculeTable, row: int, with_hydrogen_counts: bool) -> Data:
    atoms = slice(int(table.ptr[row]), int(table.ptr[row + 1]))
    data = Data(z=table.z[atoms].long(), pos=table.pos[atoms], molecule_id=table.molecule_id[row : row + 1])
    if with_hydrogen_counts:
        data.num_hydrogens = table.num_hydrogens[atoms].long()
    return data


def assert_same_attributes(actual: Data, expected: Data) -> None:
    assert sorted(actual.keys()) == sorted(expected.keys())
    for name in expected.keys():  # noqa: SIM118 (not a dict)
        assert actual[name].dtype == expected[name].dtype, name
        assert torch.equal(actual[name], expected[name]), name


@pytest.mark.parametrize("hydrogens", ["explicit", "counted"])
@pytest.mark.parametrize("rows", [[5, 63, 0, 5], [7]])
def test_gathered_batch_equals_collated_batch(tiny: MakeDataModule, hydrogens: Hydrogens, rows: list[int]) -> None:
    table, is_counted = tiny().table(hydrogens), hydrogens == "counted"
    batch = GatheredMolecules(table, is_counted)[rows]["molecule"]
    molecules = [reference_data(table, row, is_counted) for row in rows]
    collated = Batch.from_data_list(molecules)
    assert_same_attributes(batch, collated)
    assert batch.num_graphs == collated.num_graphs == len(rows)
    assert batch.num_nodes == collated.num_nodes
    for i, molecule in enumerate(molecules):
        assert_same_attributes(batch[i], molecule)
    for actual, molecule in zip(batch.to_data_list(), molecules, strict=True):
        assert_same_attributes(actual, molecule)
    assert_same_attributes(Batch.from_data_list(batch.to_data_list()), collated)


def test_batch_survives_moving_and_pinning_like_a_collated_one(tiny: MakeDataModule) -> None:
    batch = next(iter(tiny().val_dataloader()))["molecule"]
    moved = batch.to("cpu", non_blocking=True).clone()
    assert_same_attributes(moved[1], batch[1])


def test_molecules_are_those_of_the_file(tiny: MakeDataModule) -> None:
    table = tiny().table()
    methane = slice(int(table.ptr[0]), int(table.ptr[1]))
    assert table.smiles[0] == "C"
    assert table.molecule_id[0] == 1
    assert table.z[methane].tolist() == [6, 1, 1, 1, 1]
    torch.testing.assert_close(
        table.pos[methane][:2],
        torch.tensor([[-0.0126981359, 1.0858041578, 0.0080009958], [0.002150416, -0.0060313176, 0.0019761204]]),
        atol=1e-6,
        rtol=0,
    )


# United atoms


def test_hydrogens_are_counted_where_the_smiles_has_them(tiny: MakeDataModule) -> None:
    table = tiny().table("counted")
    for row, smiles in enumerate(table.smiles):
        atoms = slice(int(table.ptr[row]), int(table.ptr[row + 1]))
        counted = sorted(zip(table.z[atoms].tolist(), table.num_hydrogens[atoms].tolist(), strict=True))
        written = Chem.MolFromSmiles(smiles).GetAtoms()
        assert counted == sorted((atom.GetAtomicNum(), atom.GetTotalNumHs()) for atom in written)


def test_counted_batches_hold_heavy_atoms_at_their_places(tiny: MakeDataModule) -> None:
    explicit, counted = tiny().table(), tiny().table("counted")
    batch = GatheredMolecules(counted, True)[[40]]["molecule"]
    atoms = slice(int(explicit.ptr[40]), int(explicit.ptr[41]))
    heavy = explicit.z[atoms] > 1
    assert torch.equal(batch.pos, explicit.pos[atoms][heavy])
    assert int(batch.num_hydrogens.sum()) == int((~heavy).sum())


@pytest.mark.parametrize(
    ("elements", "positions"),
    [([1, 1], [0.0, 0.0, 0.0, 0.0, 0.0, 0.7]), ([6, 1], [0.0, 0.0, 0.0, 0.0, 0.0, 1.7])],
    ids=["hydrogen gas", "hydrogen far away"],
)
def test_hydrogen_that_belongs_to_no_atom_is_refused_by_number(elements: list[int], positions: list[float]) -> None:
    good = [RawMolecule(i, "C", [6, 1], [0.0, 0.0, 0.0, 0.0, 0.0, 1.1]) for i in range(MIN_MOLECULES)]
    table = build_table([*good, RawMolecule(4711, "?", elements, positions)])
    with pytest.raises(UserError, match=r"molecule 4711 .*hydrogens to explicit"):
        table.united_atoms()


# The split


@given(num_molecules=st.integers(MIN_MOLECULES, 3000))
@settings(max_examples=30, deadline=None)
def test_splits_are_disjoint_exhaustive_and_not_empty(num_molecules: int) -> None:
    molecule = ("C", [6], [0.0, 0.0, 0.0])
    splits = build_table([RawMolecule(i, *molecule) for i in range(num_molecules)]).splits()
    assert sorted(torch.cat(list(splits.values())).tolist()) == list(range(num_molecules))
    assert all(rows.numel() > 0 for rows in splits.values())


def test_split_is_the_same_on_second_setup_and_for_every_seed(tiny: MakeDataModule) -> None:
    first, second = tiny(), tiny(seed=7, batch_size=3)
    for datamodule in (first, second):
        datamodule.setup("fit")
        datamodule.setup("test")
    assert torch.equal(first.rows("train"), second.rows("train"))
    assert torch.equal(first.rows("test"), second.rows("test"))


def test_split_does_not_depend_on_the_order_of_rows(tiny: MakeDataModule, tmp_path: Path) -> None:
    header, *lines = TINY_CSV.read_text().splitlines(keepends=True)
    turned = tmp_path / "turned.csv"
    turned.write_text(header + "".join(reversed(lines)))
    original, reordered = tiny(), tiny(csv_files=[str(turned)])
    for table in (original.table(), reordered.table()):
        table.splits()
    assert torch.equal(original.table().pos, reordered.table().pos)
    assert torch.equal(original.rows("val"), reordered.rows("val"))


def test_full_split_is_the_published_one(qm9_root: str) -> None:
    datamodule = QM9DataModule(qm9_root)
    table = datamodule.table()
    assert len(table) == 130_831
    assert table.z.numel() == 2_359_210
    sizes = [datamodule.rows(split).numel() for split in ("train", "val", "test")]
    assert sizes == [100_000, 17_748, 13_083]
    # Results are comparable only between runs on one split: change CACHE_VERSION and the changelog with this.
    split = table.molecule_id[table.permutation].numpy().tobytes()
    assert hashlib.sha256(split).hexdigest() == "b304005f8a42dff218082a9fb68687adb81ca0d6ed3d9b3ccfefc3ffb69c3a7e"


def test_limits_take_the_first_molecules_of_a_split(tiny: MakeDataModule) -> None:
    whole, limited = tiny(), tiny(num_train=5, num_val=3, num_test=1)
    assert torch.equal(limited.rows("train"), whole.rows("train")[:5])
    assert len(seen_molecules(limited.val_dataloader())) == 3
    assert len(seen_molecules(limited.test_dataloader())) == 1


# The order of batches


def sampler_of_ranks(num_molecules: int, num_replicas: int, **arguments: Any) -> list[SizedBatchSampler]:
    rows = torch.arange(num_molecules) + 3  # a split is not the whole table
    num_atoms = torch.arange(num_molecules + 3) * 7 % 11 + 3
    return [
        SizedBatchSampler(rows, num_atoms, num_replicas=num_replicas, rank=rank, **arguments)
        for rank in range(num_replicas)
    ]


@given(
    num_molecules=st.integers(1, 400),
    batch_size=st.integers(1, 20),
    num_replicas=st.integers(1, 4),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 5),
    bucket_by_size=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_training_ranks_share_molecules_without_overlap(
    num_molecules: int, batch_size: int, num_replicas: int, seed: int, epoch: int, bucket_by_size: bool
) -> None:
    num_molecules = max(num_molecules, num_replicas)
    ranks = sampler_of_ranks(
        num_molecules, num_replicas, batch_size=batch_size, seed=seed, bucket_by_size=bucket_by_size
    )
    for sampler in ranks:
        sampler.set_epoch(epoch)
    batches = [list(sampler) for sampler in ranks]
    assert {len(own) for own in batches} == {len(ranks[0])}
    rows = [row for own in batches for batch in own for row in batch]
    assert len(rows) == len(set(rows))
    assert set(rows) <= set(range(3, num_molecules + 3))
    expected_size = min(batch_size, num_molecules // num_replicas)
    assert {len(batch) for own in batches for batch in own} == {expected_size}
    assert num_molecules - len(rows) < expected_size * num_replicas


@given(num_molecules=st.integers(1, 400), batch_size=st.integers(1, 20), num_replicas=st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_evaluation_ranks_see_every_molecule_once(num_molecules: int, batch_size: int, num_replicas: int) -> None:
    num_molecules = max(num_molecules, num_replicas)
    ranks = sampler_of_ranks(num_molecules, num_replicas, batch_size=batch_size, shuffle=False)
    batches = [list(sampler) for sampler in ranks]
    assert {len(own) for own in batches} == {len(ranks[0])}
    rows = [row for own in batches for batch in own for row in batch]
    assert sorted(rows) == list(range(3, num_molecules + 3))
    most = batch_size if num_replicas == 1 else max(batch_size, 2)
    assert all(1 <= len(batch) <= most for own in batches for batch in own)
    if num_replicas == 1:
        assert rows == sorted(rows)  # in the order of the split


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        (sampler,) = sampler_of_ranks(100, 1, batch_size=5, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert len({str(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_other_molecules_are_left_over_in_each_epoch() -> None:
    (sampler,) = sampler_of_ranks(19, 1, batch_size=10)
    left_over = set(range(3, 22))
    for epoch in range(30):
        sampler.set_epoch(epoch)
        left_over -= {row for batch in sampler for row in batch}
    assert not left_over


def test_bucketed_batches_do_not_come_in_order_of_size() -> None:
    (sampler,) = sampler_of_ranks(10 * BUCKET_STEPS, 1, batch_size=10)
    sizes = [sampler.num_atoms[batch].float().mean().item() for batch in sampler]
    assert sizes != sorted(sizes)


def test_ranks_get_molecules_of_like_size_in_the_same_step() -> None:
    ranks = sampler_of_ranks(640, 4, batch_size=10)
    spread = [
        sampler_sizes.max() - sampler_sizes.min()
        for step in zip(*ranks, strict=True)
        for sampler_sizes in [ranks[0].num_atoms[torch.tensor(step)]]
    ]
    assert max(spread) <= 2  # of 3 to 13 atoms


@pytest.mark.parametrize(("hydrogens", "bucketed", "random"), [("explicit", 0.03, 0.3), ("counted", 0.006, 0.02)])
def test_bucketing_saves_padding(qm9_root: str, hydrogens: Hydrogens, bucketed: float, random: float) -> None:
    assert padding_share(QM9DataModule(qm9_root, hydrogens=hydrogens, bucket_by_size=True)) < bucketed
    assert padding_share(QM9DataModule(qm9_root, hydrogens=hydrogens, bucket_by_size=False)) > random


def test_bucketing_is_the_default_where_it_pays(tiny: MakeDataModule) -> None:
    assert tiny().bucket_by_size
    assert not tiny(hydrogens="counted").bucket_by_size
    assert tiny(hydrogens="counted", bucket_by_size=True).bucket_by_size


# With Lightning


class Recorder(LightningModule):
    """Notes which molecules it gets."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.folder = folder
        self.seen: list[tuple[str, list[int]]] = []

    def note(self, stage: str, batch: dict[str, Batch]) -> None:
        numbers = batch["molecule"].molecule_id.tolist()
        self.seen.append((stage, numbers))
        if self.folder:
            with (self.folder / f"{stage}-{self.global_rank}").open("a") as file:
                file.write(f"{numbers}\n")

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> Tensor:
        self.note(f"train{self.current_epoch}", batch)
        return self.weight.sum()

    def validation_step(self, batch: dict[str, Batch], batch_idx: int) -> None:
        self.note("val", batch)

    def predict_step(self, batch: dict[str, Batch], batch_idx: int) -> None:
        self.note("predict", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def make_trainer(**arguments: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**{**defaults, **arguments})


def test_trainer_gets_another_order_in_each_epoch_and_all_of_validation(tiny: MakeDataModule) -> None:
    module, datamodule = Recorder(), tiny()
    make_trainer(max_epochs=2).fit(module, datamodule)
    first, second = ([numbers for stage, numbers in module.seen if stage == f"train{i}"] for i in (0, 1))
    assert len(first) == len(second) == datamodule.rows("train").numel() // 8
    assert first != second
    seen = [number for stage, numbers in module.seen if stage == "val" for number in numbers]
    val = datamodule.table().molecule_id[datamodule.rows("val")].tolist()
    assert seen == val * 2


def test_predict_keeps_the_order_of_its_split(tiny: MakeDataModule) -> None:
    module, datamodule = Recorder(), tiny(predict_split="train", eval_batch_size=5)
    make_trainer().predict(module, datamodule, return_predictions=False)
    expected = datamodule.table().molecule_id[datamodule.rows("train")].tolist()
    assert [number for _, numbers in module.seen for number in numbers] == expected


def test_overfit_batches_repeats_the_same_training_molecules(tiny: MakeDataModule) -> None:
    module, datamodule = Recorder(), tiny()
    make_trainer(max_epochs=2, overfit_batches=1).fit(module, datamodule)
    expected = datamodule.table().molecule_id[datamodule.rows("train")[:8]].tolist()
    assert [numbers for stage, numbers in module.seen if stage != "val"] == [expected, expected]


@pytest.mark.parametrize("settings", [{}, {"num_workers": 1}, {"on_device": True}])
@pytest.mark.parametrize("limit", [1.0, 4])
def test_resumed_run_sees_what_the_whole_run_saw(
    tiny: MakeDataModule, tmp_path: Path, settings: dict[str, Any], limit: int | float
) -> None:
    def fit(ckpt_path: Path | None = None) -> list[list[int]]:
        module, datamodule = Recorder(), tiny(**settings)
        keep_all = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
        trainer = make_trainer(
            max_epochs=3,
            limit_train_batches=limit,
            limit_val_batches=0,
            enable_checkpointing=True,
            callbacks=[keep_all],
        )
        trainer.fit(module, datamodule, ckpt_path=ckpt_path)
        return [numbers for _, numbers in module.seen]

    whole = fit()
    steps_per_epoch = len(whole) // 3
    for step in (
        2,
        steps_per_epoch,
        steps_per_epoch + 1,
    ):  # within an epoch, at its end, behind its first step
        assert fit(tmp_path / f"step={step}.ckpt") == whole[step:]


def test_datamodule_deals_out_by_the_rank_of_its_trainer(tiny: MakeDataModule) -> None:
    seen = []
    for rank in range(2):
        datamodule = tiny()
        kwargs = {"num_replicas": 2, "rank": rank}
        datamodule.trainer = SimpleNamespace(distributed_sampler_kwargs=kwargs, overfit_batches=0.0)  # type: ignore[assignment]
        seen.append(seen_molecules(datamodule.train_dataloader()))
    assert len(seen[0]) == len(seen[1]) > 0
    assert not set(seen[0]) & set(seen[1])


@pytest.mark.parametrize("overfit_batches", [0.0, 0.5])
@pytest.mark.parametrize("hydrogens", ["explicit", "counted"])
def test_molecules_on_the_device_give_the_same_batches_there(
    tiny: MakeDataModule, hydrogens: Hydrogens, overfit_batches: float
) -> None:
    def batches(on_device: bool, device: str, stage: str, rank: int) -> list[Batch]:
        datamodule = tiny(hydrogens=hydrogens, on_device=on_device)
        datamodule.trainer = SimpleNamespace(  # type: ignore[assignment]
            distributed_sampler_kwargs={"num_replicas": 2, "rank": rank},
            overfit_batches=overfit_batches,
            strategy=SimpleNamespace(root_device=torch.device(device)),
        )
        return [batch["molecule"] for batch in getattr(datamodule, f"{stage}_dataloader")()]

    for stage, rank in (("train", 0), ("train", 1), ("val", 1)):
        usual, same, there = (batches(*place, stage, rank) for place in ((False, "cpu"), (True, "cpu"), (True, "meta")))
        assert len(usual) == len(same) == len(there) > 0
        for one, other, distant in zip(usual, same, there, strict=True):
            assert_same_attributes(other, one)
            assert known_largest(one) == known_largest(other) == known_largest(distant) == int(one.ptr.diff().max())
            # A tensor on the meta device has no values: nothing was asked for on the way.
            assert all(value.device.type == "meta" for _, value in distant)
            assert {name: value.shape for name, value in distant} == {name: value.shape for name, value in one}


def test_more_processes_than_molecules_are_refused(tiny: MakeDataModule) -> None:
    datamodule = tiny(num_val=1)
    kwargs = {"num_replicas": 2, "rank": 0}
    datamodule.trainer = SimpleNamespace(distributed_sampler_kwargs=kwargs, overfit_batches=0.0)  # type: ignore[assignment]
    with pytest.raises(UserError, match="2 processes cannot share 1 molecules of split val"):
        datamodule.val_dataloader()


@pytest.mark.slow
def test_two_real_processes_get_disjoint_batches(tiny: MakeDataModule, tmp_path: Path) -> None:
    datamodule = tiny()
    make_trainer(max_epochs=2, devices=2, strategy="ddp_spawn").fit(Recorder(tmp_path), datamodule)
    for stage in ("train0", "train1", "val"):
        lines = [(tmp_path / f"{stage}-{rank}").read_text().splitlines() for rank in (0, 1)]
        assert len(lines[0]) == len(lines[1])
        assert not set(lines[0]) & set(lines[1])
    assert (tmp_path / "train0-0").read_text() != (tmp_path / "train1-0").read_text()


# The cache


@pytest.mark.parametrize("change", ["truncated", "one byte", "empty", "other version", "no safetensors"])
def test_unusable_cache_is_rebuilt_with_one_line(
    tiny: MakeDataModule, change: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tiny().table()
    file = cache_file(tiny())
    content = bytearray(file.read_bytes())
    if change == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif change == "one byte":
        content[-100] ^= 1
        file.write_bytes(content)
    elif change == "empty":
        file.write_bytes(b"")
    elif change == "no safetensors":
        file.write_bytes(b"\xff" * 1000)
    else:
        with monkeypatch.context() as context:
            context.setattr(qm9_cache, "CACHE_VERSION", 0)
            qm9_cache.save_tensors(vars(expected), file)
    rebuilt = tiny().table()
    (record,) = caplog.records
    assert record.getMessage().startswith(f"rebuilding {file}: ")
    assert "\n" not in record.getMessage()
    assert torch.equal(rebuilt.pos, expected.pos)
    caplog.clear()
    tiny().setup()
    assert not caplog.records


def test_cache_is_built_once(tiny: MakeDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny().prepare_data()
    monkeypatch.setattr(qm9_cache, "build_table", None)
    datamodule = tiny()
    datamodule.prepare_data()
    datamodule.setup()
    assert len(datamodule.table()) == 64


def test_other_users_can_read_the_cache(tiny: MakeDataModule) -> None:
    file = cache_file(tiny())
    beside = file.with_name("plain")
    beside.touch()
    assert file.stat().st_mode == beside.stat().st_mode


def test_interrupted_build_leaves_nothing_behind(tiny: MakeDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(source: str, target: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("os.replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tiny().prepare_data()
    assert list(tiny().root.iterdir()) == []


def test_changed_file_is_read_again(tiny: MakeDataModule, tmp_path: Path) -> None:
    header, *lines = TINY_CSV.read_text().splitlines(keepends=True)
    file = tmp_path / "own.csv"
    file.write_text(header + "".join(lines[:20]))
    assert len(tiny(csv_files=[str(file)]).table()) == 20
    file.write_text(header + "".join(lines[:30]))
    assert len(tiny(csv_files=[str(file)]).table()) == 30


def test_folder_that_cannot_be_made_is_one_error_before_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qm9_cache, "read_csv_files", None)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write the QM9 cache to .*data\.root in a config, --root of prepare"):
        QM9DataModule(str(tmp_path / "file" / "qm9"), csv_files=[str(TINY_CSV)]).prepare_data()


def test_full_cache_needs_neither_package_nor_network(qm9_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qm9_cache, "find_qm9pack", list)
    assert len(QM9DataModule(qm9_root).table()) == 130_831


# Sources


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(qm9_cache, "find_qm9pack", list)
    monkeypatch.setattr("torch_geometric.datasets.QM9.__init__", refuse)


@pytest.mark.parametrize("source", ["auto", "pyg", "qm9pack"])
@pytest.mark.usefixtures("no_network")
def test_without_package_and_network_the_error_says_what_to_install(tmp_path: Path, source: Any) -> None:
    with pytest.raises(UserError, match="pip install qm9pack") as raised:
        QM9DataModule(str(tmp_path), source=source).setup()
    assert "\n" not in str(raised.value)


def test_pyg_and_qm9pack_give_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    z, pos = torch.tensor([6, 1]), torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.1]])
    dataset = [Data(z=z, pos=pos + i, smiles="C", idx=i) for i in range(MIN_MOLECULES)]

    def pyg_data(root: str, force_reload: bool = False) -> list[Data]:
        assert force_reload, "PyG unpickles the processed files that it finds, which may be a stranger's"
        return dataset

    monkeypatch.setattr("torch_geometric.datasets.QM9", pyg_data)
    table = QM9DataModule(str(tmp_path), source="pyg").table()
    assert table.molecule_id.tolist() == [1, 2, 3, 4, 5, 6, 7]  # PyG counts from 0, QM9 from 1
    assert torch.equal(table.pos[2:4], pos + 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Index,SMILES,Elements\n", "has no column XYZ_Ang"),
        (HEADER + f"1,C,{METHANE_LIKE}\n" * 7, "two molecules have the number 1"),
        (HEADER + f"1,C,{METHANE_LIKE}\n", "1 molecules are too few"),
        (HEADER, "0 molecules are too few"),
        ("", "has no column"),
        (HEADER + f"x,C,{METHANE_LIKE}\n", "line 2: .*'x'"),
        (HEADER + "1,C,['Xx'],\"[[0.,0.,0.]]\"\n", "line 2: unknown element 'Xx'"),
        (HEADER + "1,C,['C'],\"[[0.,0.]]\"\n", "line 2: 1 elements but 2 coordinates in molecule 1"),
        (HEADER + "1,C\n", "line 2"),
        (
            HEADER + "".join(f"{i},C,['C'],\"[[0.,0.,{'nan' if i == 3 else 1}]]\"\n" for i in range(9)),
            "molecule 3 has a position that is not finite",
        ),
    ],
)
def test_wrong_files_are_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "own.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        QM9DataModule(str(tmp_path), csv_files=[str(file)]).setup()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size is 0"),
        ({"eval_batch_size": -1}, r"data\.eval_batch_size is -1"),
        ({"num_train": 0}, r"data\.num_train is 0"),
        ({"num_test": 100}, r"data\.num_test is 100, but that split has 6 molecules"),
        ({"seed": -1}, r"data\.seed is -1"),
        ({"on_device": True, "num_workers": 2}, r"data\.on_device is true, but data\.num_workers is 2; set it to 0"),
        ({"hydrogens": "implicit"}, r"data\.hydrogens is 'implicit'; it must be one of explicit, counted"),
        ({"source": "web"}, r"data\.source is 'web'"),
        ({"csv_files": []}, r"data\.csv_files is empty"),
        ({"csv_files": ["missing.csv"]}, r"missing\.csv is not a file"),
    ],
)
def test_wrong_settings_are_refused_by_name(tiny: MakeDataModule, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(**arguments).setup()


# Statistics of the training split


@pytest.mark.parametrize("hydrogens", ["explicit", "counted"])
def test_size_histogram_counts_training_molecules(tiny: MakeDataModule, hydrogens: Hydrogens) -> None:
    datamodule = tiny(hydrogens=hydrogens, batch_size=1)
    sizes = [batch["molecule"].num_nodes for batch in datamodule.train_dataloader()]
    histogram = datamodule.size_histogram()
    assert histogram.tolist() == [sizes.count(size) for size in range(max(sizes) + 1)]


@pytest.mark.parametrize("hydrogens", ["explicit", "counted"])
def test_training_keys_are_those_of_the_training_molecules(tiny: MakeDataModule, hydrogens: Hydrogens) -> None:
    datamodule = tiny(hydrogens=hydrogens)
    keys = datamodule.training_keys()
    assert keys.dtype == torch.int64
    assert (keys.diff() > 0).all()
    smiles = datamodule.table().smiles
    written = {
        hash_key(Chem.MolToSmiles(Chem.MolFromSmiles(smiles[row]), isomericSmiles=False))
        for row in datamodule.rows("train").tolist()
    }
    # Perception may place charges of a zwitterion otherwise than the data set's SMILES.
    assert len(written & set(keys.tolist())) >= math.ceil(0.9 * len(written))
    held_out = {
        hash_key(Chem.MolToSmiles(Chem.MolFromSmiles(smiles[row]), isomericSmiles=False))
        for row in datamodule.rows("test").tolist()
    }
    assert not held_out & set(keys.tolist())


def test_training_keys_are_made_once_for_each_set_of_molecules(
    tiny: MakeDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    make_keys = qm9_keys.make_keys

    def counting(molecules: dict[str, Tensor], path: Path) -> Tensor:
        calls.append(1)
        return make_keys(molecules, path)

    monkeypatch.setattr(qm9_keys, "make_keys", counting)
    keys = tiny().training_keys()
    assert torch.equal(tiny(seed=3).training_keys(), keys)
    assert len(calls) == 1
    tiny().training_keys("counted")
    tiny(num_train=10).training_keys()
    assert len(calls) == 3
    monkeypatch.setattr("rdkit.__version__", "2099.1")
    tiny().training_keys()
    assert len(calls) == 4
    for file in tiny().root.glob("training-keys-*"):
        file.write_bytes(file.read_bytes()[:-1])
    assert torch.equal(tiny().training_keys(), keys)
    assert len(calls) == 5


def test_interrupted_training_keys_go_on_where_they_stopped(
    tiny: MakeDataModule, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    datamodule = tiny()
    datamodule.prepare_data()
    expected = qm9_keys.training_keys(datamodule.table(), datamodule.rows("train"), False, datamodule.root)
    (whole,) = datamodule.root.glob("training-keys-*")
    whole.unlink()
    num_train = len(datamodule.rows("train"))
    monkeypatch.setattr(qm9_keys, "MOLECULES_PER_CHUNK", 10)
    monkeypatch.setattr(perception_chunks, "work_apart", in_this_process)
    keys_of = qm9_keys.keys_of
    calls: list[int] = []

    def counted(molecules: list[Molecule]) -> list[int]:
        calls.append(len(molecules))
        return keys_of(molecules)

    def interrupted(molecules: list[Molecule]) -> list[int]:
        if len(calls) == 2:
            raise KeyboardInterrupt
        return counted(molecules)

    monkeypatch.setattr(qm9_keys, "keys_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        datamodule.training_keys()
    assert len(list(datamodule.root.glob("training-keys-*.part"))) == 2
    out = capsys.readouterr().out
    assert f"perceiving {num_train} training molecules, by which novelty is judged: about" in out
    calls.clear()
    monkeypatch.setattr(qm9_keys, "keys_of", counted)
    assert torch.equal(datamodule.training_keys(), expected)
    assert sum(calls) == num_train - 20
    assert list(datamodule.root.glob("training-keys-*")) == [whole]


def test_several_processes_find_the_training_keys_that_one_does(
    tiny: MakeDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    datamodule = tiny()
    expected = datamodule.training_keys()
    (whole,) = datamodule.root.glob("training-keys-*")
    whole.unlink()
    monkeypatch.setattr(qm9_keys, "MOLECULES_PER_CHUNK", 10)
    monkeypatch.setattr(qm9_keys, "num_cpus", lambda: 2)
    assert torch.equal(datamodule.training_keys(), expected)


def test_no_valid_training_molecule_gives_no_keys(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    lonely = "\"['C','C']\",\"[[0.,0.,0.],[0.,0.,9.]]\""
    file.write_text(HEADER + "".join(f"{i},C.C,{lonely}\n" for i in range(MIN_MOLECULES)))
    for _ in range(2):
        assert QM9DataModule(str(tmp_path), csv_files=[str(file)]).training_keys().shape == (0,)
