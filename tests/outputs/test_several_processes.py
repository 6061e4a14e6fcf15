"""Commands in two processes do what they do in one, also after one of the two was killed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.commands import PATIENCE, until, write_overlay
from tests.support.paths import REPOSITORY, TINY_CSV, TOY
from tests.support.processes import run_forked
from unite import UniteModule, UserError

pytestmark = pytest.mark.usefixtures("in_toy_folder")

SAMPLE = ("--num_samples", "20", "--batch_size", "3", "--num_steps", "4", "--solver", "ancestral")

ENCODE = ("--data.batch_size", "6")
DECODE = (*ENCODE, "--num_samples", "50")

Command = Callable[..., tuple[list[int], list[str]]]


@pytest.fixture(scope="module")
def command(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Runs ``unite NAME``; gives the exit code of each process, and what each printed."""
    said = tmp_path_factory.mktemp("said")

    def run(name: str, folder: Path, *options: str | Path, world_size: int = 1) -> tuple[list[int], list[str]]:
        args = (name, "--trust", "--ckpt_path", toy_run, "--output", folder, *options)
        codes = run_forked(*args, world_size=world_size, output=said)
        return codes, [(said / f"out{rank}").read_text() for rank in range(world_size)]

    return run


@pytest.fixture(scope="module")
def one(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what a single process makes, for each command."""
    folder = tmp_path_factory.mktemp("one")
    before = Path.cwd()
    os.chdir(TOY)
    for name, options in (("sample", SAMPLE), ("predict", ENCODE), ("reconstruct", DECODE)):
        assert command(name, folder / name, *options)[0] == [0]
    os.chdir(before)
    return folder


def curves(folder: Path) -> np.ndarray:
    return np.array(json.loads((folder / "curves.json").read_text()))


def assert_same_samples(folder: Path, expected: Path) -> None:
    np.testing.assert_allclose(curves(folder), curves(expected), atol=2e-6)
    assert (folder / "labels.json").read_text() == (expected / "labels.json").read_text()
    metrics, of_one = (json.loads((path / "metrics.json").read_text()) for path in (folder, expected))
    assert metrics == pytest.approx(of_one, rel=1e-5)
    assert {path.name for path in folder.iterdir()} == {path.name for path in expected.iterdir()}


@pytest.mark.parametrize("batch_size", ["7", "500"])
def test_two_processes_sample_what_one_samples(command: Command, one: Path, tmp_path: Path, batch_size: str) -> None:
    codes, (first, second) = command("sample", tmp_path, *SAMPLE, "--batch_size", batch_size, world_size=2)
    assert codes == [0, 0], first + second
    assert_same_samples(tmp_path, one / "sample")
    assert first.count(f"wrote {tmp_path / 'curves.json'}") == 1
    assert first.count("checkpoint ") == 1
    assert not second


def test_a_process_may_have_nothing_to_do(command: Command, tmp_path: Path) -> None:
    codes, said = command("sample", tmp_path, *SAMPLE, "--num_samples", "1", world_size=2)
    assert codes == [0, 0], said
    assert len(curves(tmp_path)) == 1


@pytest.mark.parametrize(("name", "options"), [("predict", ENCODE), ("reconstruct", DECODE)])
def test_two_processes_encode_and_decode_what_one_does(
    command: Command, one: Path, tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    codes, (first, second) = command(name, tmp_path, *options, world_size=2)
    assert codes == [0, 0], first + second
    assert not second
    assert_same_files(tmp_path, one / name)


def assert_same_files(folder: Path, expected: Path) -> None:
    files, of_one = (
        sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file()) for root in (folder, expected)
    )
    assert files == of_one
    assert files
    for file in files:
        if file.suffix == ".safetensors":  # the order of their headers is not always the same
            tensors, theirs = load_file(folder / file), load_file(expected / file)
            assert tensors.keys() == theirs.keys()
            assert all(torch.equal(tensors[name], theirs[name]) for name in theirs)
        else:
            assert (folder / file).read_bytes() == (expected / file).read_bytes()


class Misfortune:
    """Strikes one process when it comes to a batch."""

    def __init__(self, rank: int, batch: int, strike: Callable[[], object]) -> None:
        self.rank, self.batch, self.strike = rank, batch, strike
        self.num_begun = 0

    def __call__(self) -> None:
        self.num_begun += 1
        if os.environ.get("RANK", "0") == str(self.rank) and self.num_begun > self.batch:
            self.strike()


def before(method: str, misfortune: Misfortune, patch: pytest.MonkeyPatch) -> None:
    """Have a method of the model begin with a misfortune, in the processes that are forked from this one."""
    original = getattr(UniteModule, method)

    def struck(self: UniteModule, *args: Any, **options: Any) -> Any:
        misfortune()
        return original(self, *args, **options)

    patch.setattr(UniteModule, method, struck)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("killed", "world_size"), [(0, 1), (1, 2)])
def test_killed_sampling_continues_with_any_number_of_processes(
    command: Command, one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: int, world_size: int
) -> None:
    folder = tmp_path / "two"
    with monkeypatch.context() as patch:
        before("sample_latents", Misfortune(killed, 2, kill), patch)
        codes, said = command("sample", folder, *SAMPLE, world_size=2)
    assert codes == ([-signal.SIGKILL, 1] if killed == 0 else [1, -signal.SIGKILL])
    (line,) = (line for line in said[1 - killed].splitlines() if not line.startswith("checkpoint "))
    assert line.startswith("unite: failed: one of the 2 processes of this command was killed or lost")
    if killed == 1:
        assert line.endswith(f"what is done lies in {folder / 'parts'}, and the same command continues")
    assert {path.name for path in folder.iterdir()} - {".unite.lock"} == {"parts"}
    count = Misfortune(0, 0, lambda: (tmp_path / "begun").open("a").write("x"))
    with monkeypatch.context() as patch:
        before("sample_latents", count, patch)
        assert command("sample", folder, *SAMPLE, "--batch_size", "4", world_size=world_size)[0] == [0] * world_size
    assert_same_samples(folder, one / "sample")
    # Of 20 samples, 12 are there: the other 8 are two batches of 4.
    assert len((tmp_path / "begun").read_text()) == 2 // world_size


def test_killed_encoding_continues_to_the_same_files(
    command: Command, one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("unite.outputs.latents.write_latents.__defaults__", (0, None, 1))  # a file for each batch
        before("tokenize", Misfortune(1, 2, kill), patch)
        assert command("predict", tmp_path, *ENCODE, world_size=2)[0] == [1, -signal.SIGKILL]
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) == 4
    assert command("predict", tmp_path, *ENCODE)[0] == [0]
    files = [load_file(file) for file in sorted(tmp_path.glob("curve-test-*.safetensors"))]
    assert len(files) == 5
    (expected,) = (load_file(file) for file in (one / "predict").iterdir())
    for name, value in expected.items():
        assert torch.equal(torch.cat([file[name] for file in files]), value)


def refuse() -> None:
    raise UserError("the printer has no more paper")


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("rank", "strike", "code", "words"),
    [
        (0, refuse, 2, "unite: error: the printer has no more paper"),
        (1, refuse, 2, "unite: error: the printer has no more paper"),
        (1, interrupt, 130, "unite: interrupted; what is done lies in"),
        (1, terminate, 143, "unite: terminated"),
    ],
)
def test_what_ends_one_process_ends_both_and_is_told_once(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
    strike: Callable[[], None],
    code: int,
    words: str,
) -> None:
    before("sample_latents", Misfortune(rank, 1, strike), monkeypatch)
    codes, (first, second) = command("sample", tmp_path, *SAMPLE, world_size=2)
    assert codes[0] == code
    assert codes[1] != 0
    lines = [line for line in first.splitlines() if line and not line.startswith("checkpoint ")]
    assert len(lines) == 1
    assert lines[0].startswith(words)
    assert not second


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--num_samples", "0"), "num_samples is 0"),
        (("--labels", "9"), "label 9 is outside 0 .. 1"),
        (("--trainer.strategy", "ddp_spawn"), "give --trainer.strategy ddp"),
    ],
)
def test_mistakes_are_told_by_one_process(
    command: Command, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    codes, (first, second) = command("sample", tmp_path, *options, world_size=2)
    assert codes[0] == 2
    assert codes[1] != 0
    (line,) = (line for line in first.splitlines() if not line.startswith("checkpoint "))
    assert line.startswith("unite: error: ")
    assert words in line
    assert not second


def test_processes_that_lightning_starts_leave_no_orphan(toy_run: Path, tmp_path: Path) -> None:
    args: list[str | Path] = ["sample", "--trust", "--ckpt_path", toy_run, "--quiet", "--output", tmp_path / "out"]
    args += ["--num_samples", "100000", "--batch_size", "10", "--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "unite", *map(str, args)],
        cwd=TOY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    until(lambda: len(list((tmp_path / "out").glob("parts/guidance_1/*.safetensors"))) >= 3, process)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, err
    (line,) = (out + err).strip().splitlines()
    assert line.startswith("unite: failed: one of the 2 processes of this command was killed or lost")
    assert not Path(f"/proc/{child}").exists()


@pytest.fixture(scope="module")
def molecule_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("molecules")
    configs = ("--config", REPOSITORY / "configs" / "qm9_small.yaml", "--config", write_overlay(folder, TINY_CSV))
    options = ("--trainer.max_steps", "2", "--trainer.default_root_dir", folder / "run")
    assert run_forked("fit", *configs, *options, output=folder / "said") == [0]
    return folder / "run"


def positions(file: Path) -> tuple[list[str], np.ndarray]:
    rows = [line.split() for line in file.read_text().splitlines()]
    atoms = [row for row in rows if len(row) == 4 and "=" not in row[1]]
    return [row[0] for row in atoms], np.array([[float(x) for x in row[1:]] for row in atoms])


@pytest.mark.slow
def test_two_processes_sample_and_evaluate_molecules_as_one(
    molecule_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Evaluations draw noise by process and batch: constant, it shows that their metrics are those of all samples.
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.full(_shape(shape), 0.4))
    monkeypatch.setattr(torch, "randn", lambda *shape, **options: torch.full(_shape(shape), 0.3))
    commands: dict[str, tuple[str, ...]] = {
        "sample": ("--num_samples", "30", "--batch_size", "4", "--num_steps", "3"),
        "reconstruct": ("--num_samples", "10", "--data.eval_batch_size", "3"),
        "test": (),
        "validate": (),
    }
    for name, options in commands.items():
        found = []
        for world_size in (1, 2):
            folder = tmp_path / f"{name}{world_size}"
            args: tuple[str | Path, ...] = ("--ckpt_path", molecule_run, "--output", folder, *options)
            codes = run_forked(name, *args, world_size=world_size, output=tmp_path / "said")
            assert codes == [0] * world_size, (tmp_path / "said" / "out0").read_text()
            metrics = json.loads((folder / "metrics.json").read_text())
            # Losses are means over the atoms of a batch, and so depend on which molecules are in one.
            losses = ("types", "positions", "distances", "flow")
            found.append({key: x for key, x in metrics.items() if x is not None and not key.endswith(losses)})
        assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-6), name
    of_one, of_two = (positions(tmp_path / f"sample{n}" / "samples.xyz") for n in (1, 2))
    assert of_two[0] == of_one[0]
    np.testing.assert_allclose(of_two[1], of_one[1], atol=2e-4)


def _shape(shape: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
