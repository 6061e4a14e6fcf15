"""``unite predict`` and ``unite reconstruct`` on the toy modality; tests/test_qm9_commands.py has molecules."""
# ruff: noqa: F811 (fixtures of another file)

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import RunCli
from tests.test_cli import _in_toy_folder, toy_run  # noqa: F401
from tests.toy_modality.curves import CurveDataModule
from unite import UniteModule
from unite.encoding import LatentFiles, Split, encode, limit_batches, split_loader, write_latents
from unite.modalities.qm9 import QM9DataModule
from unite.output_folder import OutputFolder

CURVES = 64  # of a split of CurveDataModule


@pytest.fixture
def model(toy_run: Path) -> UniteModule:
    return UniteModule.load_from_checkpoint(toy_run / "last.ckpt", map_location="cpu")


def no_autocast() -> torch.autocast:
    return torch.autocast("cpu", enabled=False)


def test_latents_are_those_of_the_tokenizer_in_the_order_of_the_split(
    run_cli: RunCli,
    toy_run: Path,
    tmp_path: Path,
    model: UniteModule,
) -> None:
    result = run_cli("predict", "--ckpt_path", toy_run, "--split", "val", "--output", tmp_path, "--seed", "5")
    assert result.code == 0, result.err
    (file,) = tmp_path.iterdir()
    assert file.name == "curve-val-00000.safetensors"
    assert f"wrote {file}" in result.out
    found = load_file(file)
    assert found.keys() == {"latents", "index", "label"}
    batches = [batch["curve"] for batch in CurveDataModule().val_dataloader()]
    expected = torch.cat([encode(model, "curve", batch, 5, number) for number, batch in enumerate(batches)])
    torch.testing.assert_close(found["latents"], expected, rtol=0, atol=0)
    assert found["index"].tolist() == list(range(CURVES))
    assert found["label"].tolist() == torch.cat([batch["labels"] for batch in batches]).tolist()
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"modality": "curve", "split": "val"}


def write(model: UniteModule, folder: Path, loader: Any, part_bytes: int) -> dict[str, Tensor]:
    split: Split = "test"
    files = LatentFiles(OutputFolder(folder, {"split": split}), split, part_bytes)
    write_latents(model, loader, files, no_autocast)
    parts = [load_file(path) for path in sorted(folder.glob("curve-test-*.safetensors"))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def test_files_are_closed_before_they_grow_too_large(model: UniteModule, tmp_path: Path) -> None:
    loader = CurveDataModule().test_dataloader()
    whole = write(model, tmp_path / "whole", loader, 1 << 20)
    batch_bytes = whole["latents"].nbytes // len(loader)
    parts = write(model, tmp_path / "parts", loader, batch_bytes + 1)
    assert len(list((tmp_path / "parts").iterdir())) == -(-len(loader) // 2)
    for name, value in whole.items():
        assert torch.equal(value, parts[name])


def test_interrupted_encoding_continues(model: UniteModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = CurveDataModule().test_dataloader()
    whole = write(model, tmp_path / "whole", loader, 1)
    tokenize = UniteModule.tokenize
    num_encoded = 0

    def interrupted(self: UniteModule, *args: Any) -> Tensor:
        nonlocal num_encoded
        num_encoded += 1
        if num_encoded == 3:
            raise KeyboardInterrupt
        return tokenize(self, *args)

    monkeypatch.setattr(UniteModule, "tokenize", interrupted)
    with pytest.raises(KeyboardInterrupt, match="the same command continues"):
        write(model, tmp_path / "stopped", loader, 1)
    continued = write(model, tmp_path / "stopped", loader, 1)
    assert num_encoded == len(loader) + 1
    for name, value in whole.items():
        assert torch.equal(value, continued[name])


def test_latents_of_samples_that_differ_in_size_are_padded(tmp_path: Path) -> None:
    files = LatentFiles(OutputFolder(tmp_path, {}), "test")
    for number, size in enumerate((2, 3, 1)):
        files.add("molecule", {"latents": torch.ones(2, size, 4), "mask": torch.ones(2, size, dtype=torch.bool)})
        files.end_batch(number)
    (path,) = files.finish(3)
    found = load_file(path)
    assert found["latents"].shape == (6, 3, 4)
    assert found["mask"].sum(dim=1).tolist() == [2, 2, 3, 3, 1, 1]
    assert torch.equal(found["latents"].any(dim=-1), found["mask"])


def test_a_split_is_given_in_order_and_whole(tmp_path: Path, tiny_csv: Path) -> None:
    datamodule = QM9DataModule(str(tmp_path), batch_size=8, csv_files=[str(tiny_csv)])
    splits: tuple[Split, ...] = ("train", "val", "test")
    for split in splits:
        batches = list(split_loader(datamodule, split))
        found = torch.cat([batch["molecule"].molecule_id for batch in batches])
        assert torch.equal(found, datamodule.table().molecule_id[datamodule.rows(split)])


@pytest.mark.parametrize(("num_samples", "size"), [(5, 5), (20, 20), (64, 64), (128, 64), (100, 50)])
def test_batches_are_made_to_hold_the_samples_asked_for(
    tmp_path: Path, tiny_csv: Path, num_samples: int, size: int
) -> None:
    datamodule = QM9DataModule(str(tmp_path), batch_size=64, csv_files=[str(tiny_csv)])
    limit_batches(datamodule, num_samples)
    assert datamodule.eval_batch_size == size


def test_reconstructions_are_written_and_are_reproducible(run_cli: RunCli, toy_run: Path, tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        result = run_cli("reconstruct", "--ckpt_path", toy_run, "--num_samples", "20", "--output", tmp_path / name)
        assert result.code == 0, result.err
        # the toy modality has neither originals nor metrics of reconstruction
        assert {path.name for path in (tmp_path / name).iterdir()} == {"reconstructions", "reconstructions.png"}
        made.append((tmp_path / name / "reconstructions" / "curves.json").read_text())
    assert len(json.loads(made[0])) == 20
    assert made[0] == made[1]
    again = run_cli("reconstruct", "--ckpt_path", toy_run, "--output", tmp_path / "a")
    assert again.code == 2
    assert "has files already" in again.err
