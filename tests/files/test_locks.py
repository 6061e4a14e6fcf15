"""Two processes at one folder or cache: one works, the other says who that is, or waits."""

import os
import re
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.support.commands import PATIENCE, RunCli, until
from tests.support.paths import TESTS
from tests.support.processes import start_forked, wait_for
from unite import files
from unite.errors import UserError
from unite.files import remove_leftovers, replacing
from unite.files.locks import LOCK_FILE, one_after_another, only_one
from unite.modalities.molecule.data.qm9.keys import training_keys
from unite.modalities.molecule.data.qm9.table import load_or_build, read_csv_files

Holder = Callable[..., int]


@pytest.fixture
def holder() -> Iterator[Holder]:
    """Has another process hold a folder until it is killed; with a worker, one that it has forked outlives it."""
    children: list[int] = []

    def hold(folder: Path, with_worker: bool = False) -> int:
        ready, tell = os.pipe()
        child = os.fork()
        if child == 0:
            with only_one(folder, ""):
                worker = os.fork() if with_worker else 0
                if with_worker and worker == 0:
                    time.sleep(PATIENCE)
                    os._exit(0)
                os.write(tell, f"{worker} ".encode())
                time.sleep(PATIENCE)
            os._exit(0)
        worker = int(os.read(ready, 20).decode())
        children.extend(pid for pid in (child, worker) if pid)
        return child

    yield hold
    for pid in children:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_who_has_a_folder_is_said_in_one_line(tmp_path: Path, holder: Holder) -> None:
    pid = holder(tmp_path)
    with pytest.raises(UserError, match="wait for it") as refused, only_one(tmp_path, "wait for it"):
        pass
    assert f"is in use by process {pid} on {socket.gethostname()}, since 20" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("with_worker", [False, True])
def test_the_lock_ends_with_its_owner_even_if_workers_outlive_it(
    tmp_path: Path, holder: Holder, with_worker: bool
) -> None:
    kill(holder(tmp_path, with_worker))
    assert (tmp_path / LOCK_FILE).exists()
    with only_one(tmp_path, ""):
        assert f"process {os.getpid()} on" in (tmp_path / LOCK_FILE).read_text()
    assert not list(tmp_path.iterdir())


def test_a_process_is_not_in_its_own_way(tmp_path: Path, holder: Holder) -> None:
    with only_one(tmp_path, ""), only_one(tmp_path / ".", ""):
        pass
    with pytest.raises(RuntimeError), only_one(tmp_path, ""):
        raise RuntimeError
    holder(tmp_path)  # nothing is left of the above
    with pytest.raises(UserError), only_one(tmp_path, ""):
        pass


def test_of_processes_that_train_together_the_first_has_the_folder(
    tmp_path: Path, holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder(tmp_path)
    monkeypatch.setattr("lightning.fabric.utilities.rank_zero.rank_zero_only.rank", 1)
    with only_one(tmp_path, ""):
        pass


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: object, **kwargs: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("filelock.FileLock.acquire", none)
    with pytest.warns(UserWarning, match=r"cannot lock .*Function not implemented"), only_one(tmp_path, ""):
        (tmp_path / "file").touch()


def test_what_dead_processes_left_half_written_is_removed(tmp_path: Path, holder: Holder) -> None:
    child = os.fork()
    if child == 0:
        with replacing(tmp_path / "best.ckpt") as temporary:
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    alive = tmp_path / f".metrics.json.{os.getpid()}.tmp"
    others = [tmp_path / ".notes.tmp", tmp_path / f"x.{child}.tmp", alive]
    for path in others:
        path.touch()
    assert (tmp_path / f".best.ckpt.{child}.tmp").exists()
    remove_leftovers(tmp_path, "last")
    assert (tmp_path / f".best.ckpt.{child}.tmp").exists()
    with only_one(tmp_path, ""):
        assert {path for path in tmp_path.iterdir() if path.name != LOCK_FILE} == set(others)


def test_asking_for_a_process_on_windows_would_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "kill", None)
    assert files.is_alive(1)


# ---------------------------------------------------------------------- caches


def test_who_comes_second_to_a_cache_waits_and_takes_it(
    tmp_path: Path, tiny_csv: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unite.files.locks.PATIENCE", 0.05)
    path, reading, go_on = tmp_path / "qm9.safetensors", tmp_path / "reading", tmp_path / "go_on"
    child = os.fork()
    if child == 0:

        def slowly() -> Iterator[object]:
            reading.touch()
            until(go_on.exists)
            yield from read_csv_files([tiny_csv])

        load_or_build(path, slowly)  # type: ignore[arg-type]
        os._exit(0)
    until(reading.exists)

    def told(message: str) -> None:
        print(message)
        go_on.touch()

    monkeypatch.setattr("unite.files.locks.info", told)
    table = load_or_build(path, lambda: pytest.fail("made a second time"))
    assert len(table) == 64
    assert f"waiting for process {child} on {socket.gethostname()}" in capsys.readouterr().out
    os.waitpid(child, 0)
    assert not list(tmp_path.glob(".*"))


def test_a_cache_whose_maker_was_killed_is_made_by_the_next(tmp_path: Path, tiny_csv: Path) -> None:
    path = tmp_path / "qm9.safetensors"
    child = os.fork()
    if child == 0:
        (tmp_path / f".{path.name}.{os.getpid()}.tmp").touch()
        load_or_build(path, lambda: [kill(os.getpid())])  # type: ignore[func-returns-value, list-item]
    os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 2  # the lock, and half a file
    assert len(load_or_build(path, lambda: read_csv_files([tiny_csv]))) == 64
    assert list(tmp_path.iterdir()) == [path]


def test_many_processes_make_keys_once(tmp_path: Path, tiny_csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = load_or_build(tmp_path / "qm9.safetensors", lambda: read_csv_files([tiny_csv]))
    made = tmp_path / "made"
    made.mkdir()

    def make_keys(molecules: object, path: Path) -> torch.Tensor:
        (made / str(os.getpid())).touch()
        time.sleep(0.2)
        return torch.arange(3)

    monkeypatch.setattr("unite.modalities.molecule.data.qm9.keys.make_keys", make_keys)
    children = []
    for _ in range(6):
        children.append(os.fork())
        if children[-1] == 0:
            code = 1
            try:
                code = len(training_keys(table, torch.arange(64), False, tmp_path)) - 3
            finally:
                os._exit(code)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6
    assert len(list(made.iterdir())) == 1
    with warnings.catch_warnings(), one_after_another(tmp_path / "qm9.safetensors"):
        warnings.simplefilter("error")


# ---------------------------------------------------------------------- commands

TOY = ("--config", "curves.yaml", "--trainer.max_epochs", "1")


@pytest.fixture
def toy_run(tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(TESTS / "toy_modality")
    assert run_cli("fit", *TOY, "--trainer.default_root_dir", tmp_path / "run").code == 0
    return tmp_path / "run"


def test_two_trainings_in_one_folder(toy_run: Path, run_cli: RunCli, holder: Holder) -> None:
    before = {path: path.read_bytes() for path in toy_run.iterdir() if path.is_file()}
    pid = holder(toy_run)
    for ckpt_path in (toy_run, "last"):
        options = ("--ckpt_path", ckpt_path, "--trust", "--trainer.default_root_dir", toy_run)
        refused = run_cli("fit", *(TOY if ckpt_path == "last" else ()), *options)
        assert refused.code == 2
        (line,) = refused.err.splitlines()
        assert re.search(rf"run is in use by process {pid} on .*; wait until it ends, or stop it", line)
    assert {path: path.read_bytes() for path in before} == before
    new = run_cli("fit", *TOY, "--trainer.default_root_dir", toy_run)  # a new run has a folder of its own
    assert new.code == 0, new.err
    assert (toy_run / "version_1" / "last.ckpt").is_file()
    assert not (toy_run / "version_1" / LOCK_FILE).exists()
    kill(pid)
    assert run_cli("fit", "--ckpt_path", toy_run, "--trust", "--trainer.max_epochs", "2").code == 0
    assert not (toy_run / LOCK_FILE).exists()


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("sample", ("--num_samples", "4")),
        ("reconstruct", ("--num_samples", "4")),
        ("predict", ()),
        ("align", ("--num_samples", "8")),
        ("latents", ("--num_samples", "8")),
        ("export", ()),
        ("ablate", ("--config", "curves.yaml", "--overlays", "curves.yaml")),
    ],
)
def test_two_commands_with_one_output(
    toy_run: Path, tmp_path: Path, run_cli: RunCli, holder: Holder, command: str, options: tuple[str, ...]
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    pid = holder(output)
    typed: tuple[str | Path, ...] = ("--ckpt_path", toy_run, "--trust", "--output", output)
    if command == "export":
        typed = (toy_run, output)
    elif command == "ablate":
        typed = ("--output", output)
    refused = run_cli(command, *typed, *options)
    assert refused.code == 2
    assert f"output is in use by process {pid} on" in refused.err.splitlines()[-1]
    assert [path.name for path in output.iterdir()] == [LOCK_FILE]


def test_two_scores_and_two_writers_of_shards(tmp_path: Path, run_cli: RunCli, holder: Holder) -> None:
    from PIL import Image

    output = tmp_path / "output"
    output.mkdir()
    (tmp_path / "images/train/a").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "images/train/a/0.png")
    (tmp_path / "water.xyz").write_text("3\n\nO 0 0 0\nH 0.76 0.59 0\nH -0.76 0.59 0\n")
    pid = holder(output)
    for typed in (
        ("score", "molecules", tmp_path / "water.xyz", "--output", output),
        ("prepare", "images", tmp_path / "images", output),
    ):
        refused = run_cli(*typed)
        assert refused.code == 2
        assert f"output is in use by process {pid} on" in refused.err


def test_two_samples_begin_at_once(toy_run: Path, tmp_path: Path) -> None:
    """Whichever is first makes them all; the other one is refused, and nothing is written twice."""
    output = tmp_path / "output"
    typed = (
        "sample",
        "--ckpt_path",
        toy_run,
        "--trust",
        "--output",
        output,
        "--num_samples",
        "64",
        "--batch_size",
        "1",
    )
    pairs = [start_forked(*typed, output=tmp_path / f"out{number}") for number in range(2)]
    codes = [code for children in pairs for code in wait_for(children)]
    said = "".join((tmp_path / f"out{number}/out0").read_text() for number in range(2))
    assert sorted(codes) == [0, 2], said
    assert "is in use by process" in said or "has files already" in said
    assert "Traceback" not in said
    assert (output / "metrics.json").is_file() or (output / "grid.png").is_file()
    assert not [path for path in output.iterdir() if path.name.startswith(".") or path.name == "parts"]
