"""Pack what a GPU machine without network needs beside this repository, and check that it is small enough.

    python benchmarks/pack_gpu.py build/gpu --python 3.12

Wheels of the packages that are missing there (by default those that images with PyTorch rarely have), and QM9 with
the keys of its training molecules, by which novelty is judged. There: `python benchmarks/gpu.py --package build/gpu`.
Positions are rounded to 0.0001 Å, which makes QM9 a third as large: what is trained there is trained on those.
"""

import argparse
import io
import lzma
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unite.modalities.molecule.data.qm9 import table as qm9_cache
from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule

REPOSITORY = Path(__file__).parents[1]
PACKAGES = (
    "rdkit",
    "jsonargparse",
    "typeshed-client",
    "docstring-parser",
    "torchdiffeq",
    "webdataset",
    "braceexpand",
    "lazy-loader",
    "filelock",
)
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17)] + ["manylinux2014_x86_64"]
DATA_FILE = "qm9.xz"
CACHE_FILE = "qm9pack.safetensors"
GRID = 1e-4
"""Å; positions are whole multiples of it, which 24 bits hold."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the package; best one that git ignores")
    parser.add_argument("--root", default="data/qm9", help="folder of the QM9 cache (default: %(default)s)")
    parser.add_argument("--python", default="3.12", help="version of Python there (default: %(default)s)")
    parser.add_argument("--packages", nargs="*", default=PACKAGES, help="packages that are missing there, all of them")
    parser.add_argument("--limit_mib", type=float, default=64.0, help="for package and repository (default: 64)")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.packages:
        download_wheels(arguments.packages, arguments.python, arguments.folder / "wheels")
    pack_qm9(QM9DataModule(arguments.root), arguments.folder)
    check_size(arguments.folder, arguments.limit_mib)


def download_wheels(packages: list[str], python: str, folder: Path) -> None:
    """Fetch the wheels of packages, without those that they need in turn: they must be among the packages."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp", "--dest", str(folder)]
    command += [part for platform in PLATFORMS for part in ("--platform", platform)]
    if subprocess.run([*command, *packages], check=False).returncode:
        raise SystemExit("pip found no wheels for all packages: see above; --packages names others")


def pack_qm9(data: QM9DataModule, folder: Path) -> Path:
    """Write QM9 and the keys of its training molecules, compressed; returns the file.

    Keys are those of the rounded molecules, as the datamodule will look for them there.
    """
    tensors = dict(vars(data.table("explicit")))
    whole = torch.round(tensors.pop("pos").double() / GRID).to(torch.int32).numpy()
    if np.abs(whole).max() >= 2**23:
        raise SystemExit(f"a position is beyond {2**23 * GRID:.0f} Å: QM9 has none such")
    arrays: dict[str, Any] = {name: value.numpy() for name, value in tensors.items()}
    # Low, middle and high bytes apart: alike are together, and the fourth says nothing.
    for index in range(3):
        arrays[f"pos{index}"] = np.ascontiguousarray(whole.view(np.uint8).reshape(*whole.shape, 4)[..., index])
    staging = folder / "staging"
    unpack_arrays(arrays, staging)
    rounded = QM9DataModule(str(staging), source="qm9pack", hydrogens="counted")
    for hydrogens in ("counted", "explicit"):
        rounded.training_keys(hydrogens)
    for path in staging.glob("*.safetensors"):
        if path.name != CACHE_FILE:
            arrays[f"file:{path.name}"] = np.frombuffer(path.read_bytes(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    target = folder / DATA_FILE
    target.write_bytes(lzma.compress(buffer.getvalue(), preset=6))
    for path in staging.iterdir():
        path.unlink()
    staging.rmdir()
    return target


def unpack_qm9(packed: Path, root: Path) -> None:
    """Make the cache of QM9 that :func:`pack_qm9` has packed."""
    with np.load(io.BytesIO(lzma.decompress(packed.read_bytes())), allow_pickle=False) as arrays:
        unpack_arrays(dict(arrays), root)


def unpack_arrays(arrays: dict[str, Any], root: Path) -> None:
    """Write the cache and what belongs to it into a folder."""
    root.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, values in arrays.items():
        if name.startswith("file:"):
            (root / name.removeprefix("file:")).write_bytes(values.tobytes())
        elif not name.startswith("pos"):
            tensors[name] = torch.from_numpy(values.copy())
    low, middle, high = (arrays[f"pos{index}"].astype(np.int32) for index in range(3))
    whole = (low | middle << 8 | high << 16) << 8 >> 8  # the last bit of 24 is the sign
    tensors["pos"] = torch.from_numpy(whole.astype(np.float64) * GRID).float()
    qm9_cache.save_tensors(tensors, root / CACHE_FILE)


def check_size(folder: Path, limit_mib: float) -> None:
    """Print how large package and repository are.

    Raises:
        SystemExit: They are larger than allowed.
    """
    package = [path for path in folder.rglob("*") if path.is_file()]
    for path in sorted(package):
        print(f"{path.stat().st_size / 2**20:7.2f} MiB  {path}")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    tracked = {(REPOSITORY / name).resolve() for name in listed.split("\0") if name}
    files = {path for path in tracked if path.is_file()} | {path.resolve() for path in package}
    total = sum(path.stat().st_size for path in files) / 2**20
    print(f"{total:7.2f} MiB  with the repository, of {limit_mib:g} allowed")
    if total > limit_mib:
        raise SystemExit(f"too large by {total - limit_mib:.1f} MiB: leave out packages with --packages")


if __name__ == "__main__":
    main()
