"""Versions, extras, and weights that the user may have brought. Imports none of the packages."""

from __future__ import annotations

import hashlib
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from unite.errors import is_installed, on_one_line
from unite.files.weights import INCEPTION, VGG16, Weights

#: What everything here stands on, by the names that pip knows.
PACKAGES = ("torch", "lightning", "torchmetrics", "torch-geometric", "rdkit", "numpy")


class Extra(NamedTuple):
    """An extra of ``unite-lightning``.

    Attributes:
        modules: What it lets Python import.
        purpose: What cannot be done without it.
    """

    modules: tuple[str, ...]
    purpose: str


EXTRAS = {
    "qm9": Extra(("qm9pack",), "molecules of QM9 without a download, novelty of scores"),
    "digits": Extra(("sklearn",), "the handwritten digits"),
    "analysis": Extra(("matplotlib", "sklearn"), "figures and probes: unite align, unite latents"),
    "crystals": Extra(("ase", "pymatgen.core", "smact"), "crystal files and metrics"),
    "fcd": Extra(("fcd", "scipy"), "FCD: unite score molecules --reference"),
    "physics": Extra(("ase", "chgnet", "pymatgen.core", "tblite"), "relaxation: unite score ... --physics"),
    "scores": Extra(("openbabel", "posebusters", "pymatgen.core"), "unite score molecules --routes adit posebusters"),
    "parquet": Extra(("pyarrow",), "molecules in Parquet files"),
    "geom": Extra(("msgpack",), "molecules in GEOM's msgpack files"),
    "hub": Extra(("huggingface_hub",), "upload and download of shared models"),
    "diffusers": Extra(("diffusers",), "loading of what unite export --format diffusers writes"),
    "notebooks": Extra(("ipykernel", "ipywidgets", "jupyterlab"), "the notebooks"),
    "images": Extra(("torchvision",), "nothing of unite needs it"),
}


def versions() -> dict[str, str | None]:
    """Versions of the packages that everything stands on; None for one that is not installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def missing_modules() -> dict[str, list[str]]:
    """For each extra, what of it is not installed."""
    return {name: [module for module in extra.modules if not is_installed(module)] for name, extra in EXTRAS.items()}


class FoundWeights(NamedTuple):
    """What there is of a file of weights.

    Attributes:
        weights: Which.
        path: The file that the environment variable names, None if it names none.
        state: ``missing``, ``no_file``, ``as_published``, or ``other_checksum``.
    """

    weights: Weights
    path: Path | None
    state: str


def found_weights() -> list[FoundWeights]:
    """What there is of each file of weights that a user may bring, read once for its checksum."""
    return [FoundWeights(weights, weights.named(), _state(weights)) for weights in (INCEPTION, VGG16)]


def _state(weights: Weights) -> str:
    path = weights.named()
    if path is None:
        return "missing"
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "no_file"
    return "as_published" if digest.startswith(weights.checksum) else "other_checksum"


def broken_torchvision() -> str | None:
    """Why torchvision cannot be imported beside this torch, if it is installed; Lightning could not be, either."""
    if not is_installed("torchvision"):
        return None
    try:
        import_module("torchvision")
    except Exception as error:  # of any kind: libraries of another build are loaded
        return on_one_line(error)
    return None
