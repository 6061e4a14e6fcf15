"""Commands as a user types them, in this process or a shell, and tiny data for the configs that ship."""

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.support.paths import REPOSITORY, TESTS, TOY


class CommandResult(NamedTuple):
    """What a command did: its exit code and what it printed."""

    code: int
    out: str
    err: str

    def assert_refused(self, *words: str) -> None:
        """It was refused in one line that has these words."""
        lines = self.err.strip().splitlines()
        assert self.code == 2
        assert len(lines) == 1, self.err
        assert lines[0].startswith("unite: error: ")
        for word in words:
            assert word in lines[0]


RunCli = Callable[..., CommandResult]

PATIENCE: Final = 600
"""Seconds after which a test gives up on another process: far more than that takes, beside other work, too."""


# A shell's `unite`: -P keeps the current folder off the import path, as for an installed script.
UNITE = [sys.executable, "-P", "-c", "import sys; from unite.cli import main; sys.exit(main())"]


TINY_DATA: dict[str, dict[str, Any]] = {
    "unite.modalities.molecule.QM9DataModule": {
        "csv_files": [str(TESTS / "data" / "qm9_tiny.csv")],
        "batch_size": 4,
        "eval_batch_size": 4,
        "num_train": None,
        "num_val": None,
        "num_test": None,
    },
    "unite.modalities.crystal.CrystalDataModule": {
        "source": "perov_5_small",
        "batch_size": 4,
        "eval_batch_size": 4,
        "num_train": 16,
        "num_val": 4,
        "num_test": 4,
    },
    "unite.modalities.molecule.MoleculeFilesDataModule": {
        "path": str(TESTS / "data" / "qm9_tiny.csv"),  # its column of SMILES
        "num_conformers": 1,
        "batch_size": 4,
        "eval_batch_size": 4,
    },
    "unite.modalities.image.DigitsDataModule": {"batch_size": 8, "num_train": 64, "num_val": 16},
    "unite.modalities.image.CIFAR10DataModule": {"batch_size": 2, "num_held_out": 3},
    "unite.modalities.image.ImageFolderDataModule": {"batch_size": 2, "small_images": "enlarge"},
    "unite.modalities.image.WebDatasetDataModule": {
        "batch_size": 2,
        "num_workers": 0,
        "small_images": "enlarge",
    },
}


COMBINED = "unite.modalities.combined.CombinedDataModule"


def tiny(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A datamodule of a config with tiny data in its place."""
    if data["class_path"] == COMBINED:
        parts = {name: tiny(part, folder) for name, part in data["init_args"]["parts"].items()}
        return {"class_path": COMBINED, "init_args": {"parts": parts}}
    assert data["class_path"] in TINY_DATA, f"name tiny data for {data['class_path']} in TINY_DATA"
    place = "cache" if data["class_path"].endswith("MoleculeFilesDataModule") else "root"
    captions = {name: value for name, value in data["init_args"].items() if name == "captions"}
    settings = {**captions, **TINY_DATA[data["class_path"]], place: str(folder)}
    return {"class_path": data["class_path"], "init_args": settings}


def shell(*args: str | Path) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    environment.pop("COVERAGE_PROCESS_START", None)
    return subprocess.Popen(
        [*UNITE, *map(str, args)],
        cwd=TOY,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def until(condition: Callable[[], bool], process: "subprocess.Popen[str] | None" = None) -> None:
    """Wait for something that another process does, which is to be alive meanwhile."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def start_score(file: Path, **settings: Any) -> subprocess.Popen[str]:
    """``unite score`` of a file that keeps two processes busy for a while."""
    return subprocess.Popen(
        [*UNITE, "score", "molecules", str(file), "--no_novelty", "--num_workers", "2"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **settings,
    )


def steps(run_folder: Path) -> list[int]:
    """Steps with a training loss in metrics.csv."""
    with (run_folder / "metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row.get("train/loss")]  # none yet, or half a row


def write_overlay(folder: Path, csv: Path) -> Path:
    """A second config with 64 molecules and few samples, as one would write to try things out."""
    text = f"""
data:
  class_path: unite.modalities.molecule.QM9DataModule
  init_args: {{root: {folder / "data"}, csv_files: [{csv}], batch_size: 8, num_val: 5}}
trainer:
  accelerator: cpu
  callbacks:
    - {{class_path: unite.callbacks.WeightAveraging}}
    - {{class_path: unite.callbacks.GenerationMetrics, init_args: {{num_samples: 6, num_steps: 3}}}}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {{monitor: val/molecule/validity, mode: max, filename: best-validity}}
"""
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path
