"""``unite predict`` and ``unite reconstruct`` on the toy modality; tests/commands/test_molecules.py has molecules."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.support.commands import PATIENCE, RunCli, shell
from tests.support.paths import REPOSITORY, TOY
from tests.support.processes import run_forked
from tests.toy_modality.curves import CurveDataModule
from unite import UniteModule, UserError
from unite.modalities.combined import CombinedDataModule
from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule
from unite.outputs import latents
from unite.outputs.folder import OutputFolder
from unite.outputs.job import Job
from unite.outputs.latents import (
    LatentFiles,
    Split,
    encode,
    split_loader,
    write_latents,
)
from unite.outputs.reconstructions import limit_batches, write_reconstructions

pytestmark = pytest.mark.usefixtures("in_toy_folder")

CURVES = 64  # of a split of CurveDataModule


@pytest.fixture
def model(toy_run: Path) -> UniteModule:
    return UniteModule.load_from_checkpoint(toy_run / "last.ckpt", map_location="cpu", trust=True)


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


def write(model: UniteModule, folder: Path, part_bytes: int) -> dict[str, Tensor]:
    split: Split = "test"
    job = Job(OutputFolder(folder, {"split": split}))
    write_latents(model, CurveDataModule(), split, job, part_bytes=part_bytes)
    parts = [load_file(path) for path in sorted(folder.glob("curve-test-*.safetensors"))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def test_files_are_closed_before_they_grow_too_large(model: UniteModule, tmp_path: Path) -> None:
    loader = CurveDataModule().test_dataloader()
    whole = write(model, tmp_path / "whole", 1 << 20)
    batch_bytes = whole["latents"].nbytes // len(loader)
    parts = write(model, tmp_path / "parts", batch_bytes + 1)
    assert len(list((tmp_path / "parts").iterdir())) == -(-len(loader) // 2)
    for name, value in whole.items():
        assert torch.equal(value, parts[name])


class InterruptedAfter:
    """A tokenizer that Ctrl-C ends at its n-th batch."""

    def __init__(self, num_batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_batches = num_batches
        self.num_encoded = 0
        tokenize = UniteModule.tokenize

        def interrupted(module: UniteModule, *args: Any) -> Tensor:
            self.num_encoded += 1
            if self.num_encoded == self.num_batches:
                raise KeyboardInterrupt
            return tokenize(module, *args)

        monkeypatch.setattr(UniteModule, "tokenize", interrupted)


@pytest.mark.parametrize("part_bytes", [1, 1 << 20], ids=["a file per batch", "one large file"])
def test_interrupted_encoding_keeps_what_is_done_and_continues(
    model: UniteModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    whole = write(model, tmp_path / "whole", part_bytes)
    tokenizer = InterruptedAfter(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt, match="the same command continues"):
        write(model, tmp_path / "stopped", part_bytes)
    continued = write(model, tmp_path / "stopped", part_bytes)
    assert tokenizer.num_encoded == CURVES // 16 + 1
    for name, value in whole.items():
        assert torch.equal(value, continued[name])


def test_an_interruption_before_anything_is_done_leaves_nothing_and_says_so(
    model: UniteModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    InterruptedAfter(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt, match="the same command starts over"):
        write(model, tmp_path, 1)
    assert not list(tmp_path.iterdir())


def test_batches_of_another_size_are_not_continued(
    model: UniteModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    InterruptedAfter(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        write(model, tmp_path, 1)
    monkeypatch.setattr(CurveDataModule.__init__, "__defaults__", (CURVES, 8, 32))
    found = write(model, tmp_path, 1)
    assert found["index"].tolist() == list(range(CURVES))
    assert found["label"].tolist() == [index % 2 for index in range(CURVES)]


def test_files_of_an_earlier_and_longer_split_do_not_stay(model: UniteModule, tmp_path: Path) -> None:
    write(model, tmp_path, 1)
    num_files = len(list(tmp_path.iterdir()))
    (tmp_path / "curve-val-00000.safetensors").touch()
    write_latents(model, CurveDataModule(), "test", Job(OutputFolder(tmp_path, {}, overwrite=True)))
    assert num_files > 1
    assert {path.name for path in tmp_path.iterdir()} == {
        "curve-test-00000.safetensors",
        "curve-val-00000.safetensors",
    }


def test_latents_of_samples_that_differ_in_size_are_padded(tmp_path: Path) -> None:
    files = LatentFiles(OutputFolder(tmp_path, {}), "test")
    for size in (2, 3, 1):
        files.add("molecule", {"latents": torch.ones(2, size, 4), "mask": torch.ones(2, size, dtype=torch.bool)})
        files.end_batch()
    (path,) = files.finish()
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


def test_fewer_samples_than_asked_for_are_told(run_cli: RunCli, toy_run: Path, tmp_path: Path) -> None:
    result = run_cli("reconstruct", "--ckpt_path", toy_run, "--num_samples", "1000", "--output", tmp_path)
    assert result.code == 0, result.err
    assert f"test has {CURVES} samples, fewer than the 1,000 asked for" in result.out


def test_a_modality_that_ends_before_the_others_is_reconstructed_as_far_as_it_goes(
    model: UniteModule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = CombinedDataModule({"more": CurveDataModule(num_curves=CURVES), "curve": CurveDataModule(num_curves=20)})
    write_reconstructions(model, data, "test", "curve", 30, Job(OutputFolder(tmp_path, {})))
    assert len(json.loads((tmp_path / "reconstructions" / "curves.json").read_text())) == 20
    assert "test has 20 samples, fewer than the 30 asked for" in capsys.readouterr().out


def test_a_modality_that_the_data_does_not_have_is_refused(model: UniteModule, tmp_path: Path) -> None:
    data = CombinedDataModule({"image": CurveDataModule()})
    with pytest.raises(UserError, match="the data has no curve; it has image"):
        write_reconstructions(model, data, "test", "curve", 3, Job(OutputFolder(tmp_path / "a", {})))
    with pytest.raises(UserError, match="test of the data has no curve"):
        write_latents(model, data, "test", Job(OutputFolder(tmp_path / "b", {})), modality="curve")
    assert not [*(tmp_path / "a").iterdir(), *(tmp_path / "b").iterdir()]


def test_a_folder_half_written_is_written_again_by_the_same_command(
    run_cli: RunCli, toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    command = ("reconstruct", "--ckpt_path", toy_run, "--num_samples", "4", "--output", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("unite.modalities.base.ModalityAdapter.draw_reconstructions", interrupted)
        stopped = run_cli(*command)
    assert stopped.code == 130
    assert "interrupted; the same command starts over" in stopped.err
    assert (tmp_path / "reconstructions" / "curves.json").is_file()
    other = run_cli(*command, "--split", "val")
    assert other.code == 2
    assert "has files already" in other.err
    assert run_cli(*command).code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"reconstructions", "reconstructions.png"}


# ---------------------------------------------------------------------- as typed, in processes of their own


def limited(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """A command that may write no file larger than 2000 bytes, as on a full disk."""
    code = "import resource, sys; from unite.cli import main; "
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *map(str, args)], cwd=TOY, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("command", ["predict", "reconstruct"])
def test_commands_succeed_as_typed_and_refuse_to_do_it_twice(toy_run: Path, tmp_path: Path, command: str) -> None:
    typed = (command, "--ckpt_path", toy_run, "--trust", "--output", tmp_path / "out", "--quiet")
    process = shell(*typed)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    written = [Path(TOY, line.removeprefix("wrote ")) for line in out.splitlines() if line.startswith("wrote ")]
    assert written
    assert all(path.is_file() for path in written)
    assert "encode" not in err
    assert "reconstruct:" not in err
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert run_forked(*typed, output=tmp_path / "again") == [2]
    (line,) = (tmp_path / "again" / "out0").read_text().splitlines()
    assert line.startswith(f"unite: error: {tmp_path / 'out'} has files already")
    assert line.endswith("choose another --output, or replace them with --overwrite")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize("command", ["predict", "reconstruct"])
@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (("--seed", "1"), "needs --ckpt_path"),
        (("--ckpt_path", "{tmp}/none"), "none: no such checkpoint"),
        (("--ckpt_path", "{tmp}/cut.ckpt"), "cut.ckpt is not a unite checkpoint, or is damaged"),
        (("--ckpt_path", "{run}", "--output", "{tmp}/cut.ckpt/x"), "cannot write to {tmp}/cut.ckpt/x"),
        (("--ckpt_path", "{run}", "--split", "train"), "CurveDataModule has no predict_split"),
        (("--ckpt_path", "{run}", "--modality", "image"), "image"),
    ],
    ids=["no checkpoint", "missing", "truncated", "unwritable", "unordered split", "unknown modality"],
)
def test_mistakes_are_told_in_one_line_and_leave_nothing(
    toy_run: Path, tmp_path: Path, command: str, mistake: tuple[str, ...], words: str
) -> None:
    (tmp_path / "cut.ckpt").write_bytes((toy_run / "last.ckpt").read_bytes()[:5000])
    before = sorted(toy_run.rglob("*"))
    options = [option.format(tmp=tmp_path, run=toy_run) for option in mistake]
    configs = ("--config", "curves.yaml") if mistake[0] == "--seed" else ()
    assert run_forked(command, *configs, *options, "--quiet", output=tmp_path / "said") == [2]
    (line,) = (tmp_path / "said" / "out0").read_text().splitlines()
    assert line.startswith("unite: error: ")
    assert words.format(tmp=tmp_path) in line
    assert sorted(toy_run.rglob("*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.ckpt", "said"]


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
@pytest.mark.parametrize("command", ["predict", "reconstruct"])
def test_a_full_disk_is_told_in_one_line(toy_run: Path, tmp_path: Path, command: str) -> None:
    result = limited(command, "--ckpt_path", toy_run, "--trust", "--output", tmp_path / "out", "--quiet")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("unite: failed: [Errno 27] File too large")
    assert not (tmp_path / "out" / "parts").exists()


@pytest.mark.parametrize(
    ("command", "words"), [("predict", "the same command continues"), ("reconstruct", "the same command starts over")]
)
def test_ctrl_c_in_a_shell_says_what_comes_of_it(toy_run: Path, tmp_path: Path, command: str, words: str) -> None:
    number = "1000000"
    options = ("--num_samples", number) if command == "reconstruct" else ()
    typed = ("--ckpt_path", toy_run, "--trust", "--output", tmp_path / "out", "--data.init_args.num_curves", number)
    process = shell(command, *typed, *options, "--trainer.enable_progress_bar", "true")
    assert process.stderr is not None
    said = ""
    while not re.search(r"\| [1-9][0-9]*/", said):  # the bar has moved on
        letter = process.stderr.read(1)
        assert letter, said
        said += letter
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert f"unite: interrupted; {'' if command == 'reconstruct' else 'what is done lies in'}" in err
    assert err.rstrip().endswith(words)
    assert "Traceback" not in err
    assert (tmp_path / "out" / "parts").exists() == (command == "predict")


@pytest.mark.parametrize("moment", range(12))
def test_an_interruption_at_any_moment_neither_loses_nor_repeats_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    moments = iter(range(100))

    def interrupted(write: Callable[..., Any], after: bool) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            if not after and next(moments) == moment:
                raise KeyboardInterrupt
            result = write(*arguments)
            if after and next(moments) == moment:
                raise KeyboardInterrupt
            return result

        return run

    for name in ("write_whole", "write_checked_json"):
        for after in (False, True):
            monkeypatch.setattr(latents, name, interrupted(getattr(latents, name), after))
    rows = torch.arange(12.0).view(6, 2, 1, 1)

    def go_on() -> list[Path]:
        files = LatentFiles(OutputFolder(tmp_path, {}), "test", 6, part_bytes=12)  # two batches in a file
        try:
            for number in range(files.num_batches, 6):
                files.add("a", {"latents": rows[number]})
                files.add("b", {"latents": rows[number]})
                files.end_batch()
        except KeyboardInterrupt:
            files.keep()
            return go_on()
        return files.finish()

    try:
        go_on()
    except KeyboardInterrupt:  # while the last files were closed
        go_on()
    for modality in ("a", "b"):
        files = [load_file(path) for path in sorted(tmp_path.glob(f"{modality}-*.safetensors"))]
        assert torch.cat([file["latents"] for file in files]).flatten().tolist() == list(range(12))
        assert torch.cat([file["index"] for file in files]).tolist() == list(range(12))
