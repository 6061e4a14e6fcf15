import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.commands import RunCli
from tests.support.samples.crystals import known_crystals
from unite.errors import UserError
from unite.modalities.crystal import CrystalDataModule
from unite.modalities.crystal.data.csv_files import CACHE
from unite.modalities.crystal.files.writing import cif_lines
from unite.modalities.crystal.metrics.matching import match


@pytest.mark.parametrize(
    ("source", "sizes", "num_elements"),
    [("materials_project_small", (4857, 400, 400), 87), ("perov_5_small", (6772, 400, 400), 55)],
)
def test_sets_that_travel_with_the_package(source: str, sizes: tuple[int, ...], num_elements: int) -> None:
    data = CrystalDataModule(source)  # type: ignore[arg-type]
    data.setup()
    rows = [data.rows(split) for split in ("train", "val", "test")]
    assert tuple(map(len, rows)) == sizes
    assert len(torch.cat(rows).unique()) == sum(sizes)
    table = data.table()
    assert len(table.atomic_numbers.unique()) - 1 == num_elements
    is_real = torch.arange(table.atomic_numbers.shape[1]) < table.num_atoms[:, None]
    assert torch.equal(is_real, table.atomic_numbers > 0)
    assert len(set(table.names)) > 0.99 * len(table)
    assert table.properties.shape == (len(table), len(table.property_names))
    assert int(data.size_histogram().sum()) == sizes[0]


def test_batches_hold_every_crystal_once_and_no_padding_beyond_the_largest() -> None:
    data = CrystalDataModule(batch_size=50, eval_batch_size=30, num_train=200, num_val=70)
    data.setup()
    seen: Counter[int] = Counter()
    for batch in data.val_dataloader():
        crystals = batch["crystal"]
        assert crystals["atomic_numbers"].shape[1] == crystals["num_atoms"].max()
        seen.update(crystals["crystal_id"].tolist())
    assert seen == Counter(data.rows("val").tolist())
    batches = [batch["crystal"] for batch in data.train_dataloader()]
    assert [len(batch["cell"]) for batch in batches] == [50] * 4
    spread = [int(batch["num_atoms"].max() - batch["num_atoms"].min()) for batch in batches]
    assert min(spread) < 10  # bucketed by size


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 0}, "data.batch_size is 0; it must be at least 1"),
        ({"source": "mp21"}, "data.source is 'mp21'; it must be one of materials_project_small"),
        ({"num_train": 10_000}, "data.num_train is 10000, but that split has 4857 crystals"),
        ({"source": "csv", "root": "nowhere"}, "nowhere/train.csv is not a file; set data.root"),
    ],
)
def test_wrong_settings_are_one_line(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        CrystalDataModule(**settings).setup()  # type: ignore[arg-type]


def write_csv(folder: Path, broken: bool = False) -> None:
    """Files in the form of MP20, with columns as CDVAE's have them."""
    items = known_crystals("materials_project_small", 9)
    for number, split in enumerate(("train", "val", "test")):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(
                file, ["", "material_id", "formation_energy_per_atom", "pretty_formula", "spacegroup.number", "cif"]
            )
            writer.writeheader()
            for row, item in enumerate(items[number::3]):
                text = "\n".join(cif_lines([item]))
                if broken and row == 1:
                    text = text.replace(" 1.0", " 0.5")
                values = {"": row, "material_id": f"mp-{number}{row}", "formation_energy_per_atom": -row / 2}
                writer.writerow({**values, "pretty_formula": item.formula, "spacegroup.number": 1, "cif": text})


def test_csv_files_are_read_once(tmp_path: Path, run_cli: RunCli) -> None:
    pytest.importorskip("pymatgen")
    write_csv(tmp_path)
    result = run_cli("prepare", "crystals", "--root", str(tmp_path), "--num_workers", "1")
    assert result.code == 0, result.err
    assert "train: 3 crystals" in result.out
    assert "properties: formation_energy_per_atom" in result.out
    written = (tmp_path / CACHE).stat().st_mtime_ns
    data = CrystalDataModule("csv", str(tmp_path))
    data.prepare_data()
    data.setup()
    assert (tmp_path / CACHE).stat().st_mtime_ns == written
    table = data.table()
    assert table.names == [f"mp-{split}{row}" for split in range(3) for row in range(3)]
    assert table.properties[:3, 0].tolist() == [0, -0.5, -1]
    items = known_crystals("materials_project_small", 9)
    for row, item in enumerate([*items[0::3], *items[1::3], *items[2::3]]):
        assert match(table.crystal(row), item).strict is not None
        assert table.crystal(row).volume == pytest.approx(item.volume, rel=1e-3)


def test_crystals_that_cannot_be_used_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pymatgen")
    write_csv(tmp_path, broken=True)
    data = CrystalDataModule("csv", str(tmp_path), num_workers=1)
    assert len(data.table()) == 6
    assert "left out of 9 structures: 3 partial occupancy" in capsys.readouterr().out


def test_a_file_without_cifs_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("pymatgen")
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.csv").write_text("id,energy\n1,2\n")
    with pytest.raises(UserError, match=r"train.csv has no column cif; it has id, energy"):
        CrystalDataModule("csv", str(tmp_path)).table()


def test_a_damaged_cache_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pymatgen")
    write_csv(tmp_path)
    before = CrystalDataModule("csv", str(tmp_path), num_workers=1).table()
    content = bytearray((tmp_path / CACHE).read_bytes())
    content[-3] ^= 1
    (tmp_path / CACHE).write_bytes(content)
    after = CrystalDataModule("csv", str(tmp_path), num_workers=1).table()
    assert "is damaged" in capsys.readouterr().out
    np.testing.assert_array_equal(before.fractional, after.fractional)


def test_data_of_any_config_is_prepared(run_cli: RunCli) -> None:
    result = run_cli("prepare", "data", "--config", "perov")
    assert result.code == 0, result.err
    assert "CrystalDataModule is prepared" in result.out
