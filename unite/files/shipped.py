"""Configs and models that come with the package, by name. Imports nothing heavy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
REPOSITORY = PACKAGE.parent

#: Models by name, as they lie in the repository; a wheel has them in ``unite/models``.
MODELS = {
    "qm9": "docs/results/qm9_long/model",
    "qm9_graph": "docs/results/qm9_graph/model",
    "joint": "docs/results/joint/model",
}


def shipped_configs() -> dict[str, Path]:
    """Config files by name; those of ablations are ``ablations/NAME``."""
    folders = [folder for folder in (PACKAGE / "configs", REPOSITORY / "configs") if folder.is_dir()]
    if not folders:
        return {}
    files = sorted(folders[0].rglob("*.yaml"))
    return {file.relative_to(folders[0]).with_suffix("").as_posix(): file for file in files}


def small_config(datamodule: str, encoder: Mapping[str, Any]) -> str | None:
    """Name of a config ``*_small`` of the same data, for machines without a GPU, if there is one and it is another.

    Args:
        datamodule: Name of the class of the data, without its package.
        encoder: Settings of the encoder in use.
    """
    import yaml

    for name, file in shipped_configs().items():
        if name.endswith("_small"):
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
            is_same_data = config["data"]["class_path"].rpartition(".")[2] == datamodule
            is_in_use = config["model"]["encoder"]["init_args"].items() <= encoder.items()
            if is_same_data and not is_in_use:
                return name
    return None


def shipped_models() -> dict[str, Path]:
    """Folders of exported models by name."""
    places = {name: (PACKAGE / "models" / name, REPOSITORY / path) for name, path in MODELS.items()}
    found = {name: next((place for place in both if place.is_dir()), None) for name, both in places.items()}
    return {name: place for name, place in found.items() if place is not None}


def shipped_model(name: str | Path) -> Path | None:
    """The folder of a model that comes with the package, unless something of that name lies in the current folder."""
    return None if Path(name).exists() else shipped_models().get(str(name))


def name_of_shipped_model(folder: Path) -> str | None:
    """The name under which a folder comes with the package, if it does."""
    return next((name for name, place in shipped_models().items() if place.resolve() == folder.resolve()), None)
