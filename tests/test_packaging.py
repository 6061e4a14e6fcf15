"""What a wheel carries: configs and the small model, so that it works in an empty folder."""

import importlib.metadata
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY, TINY_CSV
from unite.cli import namesake
from unite.files.shipped import shipped_configs, shipped_models


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as pip would install it, alone in a folder."""
    folder = tmp_path_factory.mktemp("wheel")
    code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    name = subprocess.run(
        [sys.executable, "-c", code, folder], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()[-1]
    with zipfile.ZipFile(folder / name) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def unite(installed: Path, folder: Path, *args: str | Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "unite", *map(str, args)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_carries_what_has_a_name(installed: Path) -> None:
    assert {path.name for path in installed.iterdir()} == {"unite", "unite_lightning-0.1.0.dist-info"}
    for name, config in shipped_configs().items():
        assert (installed / "unite" / "configs" / f"{name}.yaml").read_text() == config.read_text()
    for name, model in shipped_models().items():
        for file in model.iterdir():
            assert (installed / "unite" / "models" / name / file.name).read_bytes() == file.read_bytes()
    assert (installed / "unite" / "py.typed").is_file()


def test_a_wheel_samples_and_trains_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    out = unite(installed, tmp_path, "sample", "qm9", "-n", "2", "--num_steps", "2")
    assert "wrote runs/qm9/samples/samples.sdf" in out
    assert str(installed / "unite" / "models" / "qm9") in unite(installed, tmp_path, "info")
    tiny = ["--data.init_args.csv_files", f"[{TINY_CSV}]", "--data.init_args.num_val=5", "--batch_size", "8"]
    tiny += [f"--data.init_args.num_{split}=null" for split in ("train", "test")]
    unite(installed, tmp_path, "fit", "qm9_small", "--max_steps", "1", *tiny)
    assert (tmp_path / "runs" / "qm9_small" / "last.ckpt").is_file()
    assert not [path for path in (installed / "unite" / "models" / "qm9").iterdir() if path.is_dir()]


def test_a_namesake_beside_this_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"unite-lightning": "0.1.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert namesake() is None
    installed["unite"] = "3.0"
    assert "the package unite 3.0 is installed beside unite-lightning" in str(namesake())
