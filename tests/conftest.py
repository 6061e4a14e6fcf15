"""Fixtures that all tests share."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from lightning.pytorch import seed_everything
from safetensors.torch import load_file
from torch import Tensor

from unite.cli import main

TESTS = Path(__file__).parent

# On a shared machine two threads can be a hundred times slower than one on small tensors.
torch.set_num_threads(1)


class CommandResult(NamedTuple):
    """What a command did: its exit code and what it printed."""

    code: int
    out: str
    err: str


RunCli = Callable[..., CommandResult]


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


@pytest.fixture
def tiny_csv() -> Path:
    """Some real molecules in the format of QM9's CSV files."""
    return TESTS / "data" / "qm9_tiny.csv"


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> RunCli:
    """Runs a command in this process: ``run_cli("fit", "--config", path)``."""

    def run(*args: str | Path) -> CommandResult:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return CommandResult(code, captured.out, captured.err)

    return run
