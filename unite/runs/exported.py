"""Exported folders: read from this machine or the Hugging Face Hub, and sent there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import LightningModule

from unite.console import one_line
from unite.errors import UserError, require_packages
from unite.files import file_checksum, read_json
from unite.files.moved import moved
from unite.files.shipped import shipped_model
from unite.files.version import __version__
from unite.runs.known_classes import require_few_settings, require_known_classes
from unite.runs.sizes import no_larger_than

Module = TypeVar("Module", bound=LightningModule)


def require_same_model(model: LightningModule, checkpoint: dict[str, Any], path: Path | None) -> None:
    """Refuse a checkpoint whose weights do not fit the configured model.

    Raises:
        UserError: A parameter or buffer is missing on either side, or of another shape.
    """
    here, there = model.state_dict(), checkpoint["state_dict"]
    for name in {**here, **there}:
        if name not in here or name not in there or here[name].shape != there[name].shape:
            shapes = [f"of shape {tuple(side[name].shape)}" if name in side else "missing" for side in (there, here)]
            raise UserError(
                f"{path} is a checkpoint of another model: {name} is {shapes[0]} there, and {shapes[1]} "
                "in these settings; leave out --config to use the checkpoint's own"
            )


FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
SETTINGS_FILE = "config.json"
CARD_FILE = "README.md"
FILES = (WEIGHTS_FILE, SETTINGS_FILE, CARD_FILE)

_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_exported(checkpoint: Path) -> bool:
    """Whether a file is the weights of an exported folder."""
    return checkpoint.name == WEIGHTS_FILE


def load_pretrained(module_class: type[Module], source: str | Path, revision: str | None = None) -> Module:
    """The model of an exported folder, in evaluation mode on the CPU.

    Args:
        module_class: :class:`~unite.module.UniteModule` or a subclass.
        source: The folder, the name of a model that comes with the package (``qm9``), or the id ``owner/name`` of one
            on the Hugging Face Hub (needs the extra ``hub``).
        revision: Branch, tag or commit on the Hub.

    Raises:
        UserError: It is not there, damaged, or made by other versions or classes.
    """
    from lightning.pytorch.cli import instantiate_module

    folder = Path(source) if Path(source).is_dir() else shipped_model(source) or downloaded(str(source), revision)
    content = read_exported(folder)
    require_known_classes(content["hyper_parameters"], folder / SETTINGS_FILE, module_class)
    try:
        with no_larger_than(content["state_dict"], content["hyper_parameters"], folder / SETTINGS_FILE):
            module = instantiate_module(module_class, content["hyper_parameters"])
    except UserError:
        raise
    except Exception as error:  # jsonargparse, a constructor: whatever the file holds is its maker's mistake
        raise UserError(f"{folder / SETTINGS_FILE} makes no model: {one_line(error)}") from error
    require_same_model(module, content, folder / WEIGHTS_FILE)
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"])
    return module.eval()


def read_exported(folder: Path) -> dict[str, Any]:
    """An exported folder in the form of a checkpoint: ``hyper_parameters``, ``state_dict``, ``class_names``, step.

    Raises:
        UserError: A file is missing, damaged, or of a format that this version does not know.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from unite.files.checked import require_finite
    from unite.files.checked_json import json_checksum

    path, weights = folder / SETTINGS_FILE, folder / WEIGHTS_FILE
    for file in (path, weights):
        if not file.is_file():
            raise UserError(f"{folder} is no exported model: it has no {file.name}; make one with unite export")
    try:
        config = read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {one_line(error)}") from error
    if not isinstance(config, dict) or config.get("format") != "unite":
        raise UserError(f"{path} is not of a unite model; those are written by unite export")
    if config.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has format_version {config.get('format_version')!r}; unite {__version__} reads "
            f"{FORMAT_VERSION}: it was written by unite {config.get('unite_version')}"
        )
    written = config.pop("config_sha256", None)  # files of older versions have none
    if written is not None and written != json_checksum(config):
        raise UserError(
            f"{path} is damaged, or was edited: its SHA-256 differs; copy it again, or take out config_sha256 if the "
            "change is yours"
        )
    settings, class_names = config.get("model"), config.get("class_names", {})
    if not isinstance(settings, dict) or not {"encoder", "adapters"} <= settings.keys():
        raise UserError(f"{path} is damaged: its 'model' must hold the settings of encoder and adapters")
    require_few_settings(settings, path)
    sampling = config.get("sampling", {})
    if not isinstance(class_names, dict) or not isinstance(sampling, dict):
        raise UserError(f"{path} is damaged: its 'class_names' and 'sampling' must be by modality")
    if config.get("weights_sha256") != file_checksum(weights):
        raise UserError(
            f"{weights} is damaged, or not the file that {SETTINGS_FILE} was written with: its SHA-256 differs"
        )
    try:
        state_dict = load_file(weights)
    except SafetensorError as error:
        raise UserError(f"{weights} is damaged: {one_line(error)}") from error
    require_finite(state_dict, weights)
    return {
        "hyper_parameters": moved(settings),
        "state_dict": state_dict,
        "class_names": class_names,
        "sampling": sampling,
        "global_step": config.get("global_step", 0),
    }


def push_to_hub(folder: str | Path, repo_id: str, private: bool = False, api: Any = None) -> str:
    """Upload an exported folder to the Hugging Face Hub; the account is the one of ``hf auth login``.

    Args:
        folder: An exported folder.
        repo_id: ``owner/name``; made if it does not exist.
        private: Make it private.
        api: A ``huggingface_hub.HfApi``; None makes one.

    Returns:
        Where it is.

    Raises:
        UserError: The folder is no exported model, ``huggingface_hub`` is missing, or the Hub refuses.
    """
    require_repo_id(repo_id)
    read_exported(Path(folder))
    if api is None:
        api = hub_library(repo_id).HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=str(folder), allow_patterns=list(FILES))
    except Exception as error:  # no network, no token, no right: the library has its own classes for each
        raise UserError(f"cannot upload to {repo_id}: {one_line(error)}") from error
    return str(url)


def is_on_the_hub(source: str) -> bool:
    """Whether a source can only be ``owner/name`` on the Hub: there is no such path here, nor a folder ``owner``."""
    return bool(_REPO_ID.fullmatch(source)) and not Path(source).exists() and not Path(source).parent.is_dir()


def downloaded(repo_id: str, revision: str | None = None) -> Path:
    """The folder of a model on the Hub, downloaded unless it has been before.

    Raises:
        UserError: It is no ``owner/name``, there is none, ``huggingface_hub`` is missing, or the Hub refuses.
    """
    if not _REPO_ID.fullmatch(repo_id):
        raise UserError(
            f"{repo_id} is no folder; give one that unite export wrote, or OWNER/NAME on the Hugging Face Hub"
        )
    hub = hub_library(repo_id)
    try:
        return Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=[WEIGHTS_FILE, SETTINGS_FILE]))
    except Exception as error:  # see push_to_hub
        raise UserError(f"cannot download {repo_id}: {one_line(error)}") from error


def hub_library(repo_id: str) -> Any:
    """The package ``huggingface_hub``.

    Raises:
        UserError: It is not installed, which the model ``repo_id`` needs.
    """
    require_packages(f"{repo_id} is no folder here, and the Hugging Face Hub", "hub", "huggingface_hub")
    return importlib.import_module("huggingface_hub")


def require_repo_id(repo_id: str) -> None:
    """Refuse a name that is not OWNER/NAME.

    Raises:
        UserError: It is not.
    """
    if not _REPO_ID.fullmatch(repo_id):
        raise UserError(f"--push_to_hub is {repo_id!r}; it must be OWNER/NAME")
