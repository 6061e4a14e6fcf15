"""Fixtures that all tests share."""

import importlib
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything
from safetensors.torch import load_file
from torch import Tensor

from tests.support.commands import CommandResult, RunCli
from tests.support.paths import TESTS, TINY_CSV, TOY
from tests.support.processes import run_forked
from unite.cli import main

# On a shared machine two threads can be a hundred times slower than one on small tensors.
torch.set_num_threads(int(os.environ.get("UNITE_TEST_THREADS", "1")))
# A fork has none of OpenMP's other threads, and would wait for them for ever.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

# A shell ignores Ctrl-C in what it runs in the background, and so would all commands that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seed() -> None:
    seed_everything(0, workers=True, verbose=False)


@pytest.fixture(scope="session")
def reference() -> dict[str, Tensor]:
    """Weights (``state/``) and numbers (``io/``) of the authors' tiny model; see test_generative_encoder.py."""
    tensors = load_file(TESTS / "data" / "parity_tiny.safetensors")
    for name in [name for name in tensors if name.endswith(":left")]:
        tensors[name.removesuffix(":left")] = tensors[name] @ tensors[name.replace(":left", ":right")]
    return tensors


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where tests marked ``gpu`` run: the device that UNITE_TEST_DEVICE names, or the CPU."""
    chosen = torch.device(os.environ.get("UNITE_TEST_DEVICE", "cpu"))
    torch.zeros(1, device=chosen)  # a device that is not there is an error, not a reason to test less
    return chosen


@pytest.fixture
def tiny_csv() -> Path:
    """Some real molecules in the format of QM9's CSV files."""
    return TINY_CSV


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> RunCli:
    """Runs a command in this process: ``run_cli("fit", "--config", path)``."""

    def run(*args: str | Path) -> CommandResult:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return CommandResult(code, captured.out, captured.err)

    return run


@pytest.fixture
def in_toy_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy modality is importable from its own folder, as a user's own file is."""
    monkeypatch.chdir(TOY)


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the toy modality: one python file and one yaml, trained in a process of its own.

    The file is imported, so that commands in this process may use what the run names without ``--trust``.
    """
    sys.path.append(str(TOY))
    try:
        importlib.import_module("curves")
    finally:
        sys.path.remove(str(TOY))
    folder = tmp_path_factory.mktemp("toy") / "run"
    printed = folder.with_name("printed")
    codes = run_forked("fit", "--config", TOY / "curves.yaml", "--trainer.default_root_dir", folder, output=printed)
    assert codes == [0], (printed / "out0").read_text()
    assert "last.ckpt" in (printed / "out0").read_text()
    return folder
