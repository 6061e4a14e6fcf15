"""The run folder: what a run keeps there, and how it is found again."""

import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unite.console import shown
from unite.errors import UserError, no_checkpoint
from unite.files import require_writable as require_writable
from unite.files import write_json
from unite.files.checked import require_finite
from unite.files.locks import RUN_HINT, only_one
from unite.files.moved import moved
from unite.files.shipped import shipped_model
from unite.runs.checkpoint_io import LAST_CHECKPOINT
from unite.runs.exported import SETTINGS_FILE, WEIGHTS_FILE, is_exported, read_exported
from unite.runs.known_classes import require_few_settings

if TYPE_CHECKING:
    from lightning.pytorch import Trainer  # takes seconds, and commands without a trainer read run folders, too

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.json"


def write_metrics(values: Mapping[str, float], folder: Path) -> Path:
    """Write ``metrics.json``, metric name -> number or null, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_json(folder / METRICS_FILE, values)


@contextmanager
def run_folder_for_itself(trainer: "Trainer") -> Iterator[None]:
    """Keep other processes from training into the run folder of a trainer, if this one writes there."""
    is_writing = bool(trainer.loggers or trainer.checkpoint_callbacks) and not trainer.fast_dev_run  # type: ignore[attr-defined]
    if not is_writing or not trainer.is_global_zero:
        yield
        return
    folder = Path(trainer.default_root_dir)
    require_writable(folder)
    with only_one(folder, RUN_HINT):
        yield


def find_checkpoint(path: str | None) -> Path | None:
    """The checkpoint file that ``--ckpt_path`` names, itself or by its run folder; the weights of an exported folder.

    Raises:
        UserError: There is none.
    """
    if path is None:
        return None
    found = shipped_model(path) or Path(path).expanduser()
    if found.is_dir():
        is_shared = (found / SETTINGS_FILE).is_file() and not (found / LAST_CHECKPOINT).is_file()
        found = found / (WEIGHTS_FILE if is_shared else LAST_CHECKPOINT)
    if not found.is_file():
        raise no_checkpoint(path)
    return found


def find_last_checkpoint(root: Path) -> Path | None:
    """The newest last.ckpt of a run in a folder or its ``version_N``, if there is one."""
    found = [path for path in [root / LAST_CHECKPOINT, *root.glob(f"version_*/{LAST_CHECKPOINT}")] if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def find_best_checkpoint(run_folder: Path) -> Path:
    """The best checkpoint of a run, by the metric that its ``ModelCheckpoint`` watches.

    Raises:
        UserError: There is none, or there are several, of several metrics.
    """
    found = sorted(run_folder.glob("best*.ckpt"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(f"--ckpt_path best: {shown(run_folder)} has {names}; name the file with --ckpt_path")
    return found[0]


def find_run_config(checkpoint: Path) -> Path | None:
    """config.yaml of the run that a checkpoint belongs to: beside it, or one or two folders up."""
    folders = [checkpoint.resolve().parent, *checkpoint.resolve().parents[1:3]]
    candidates = [folder / CONFIG_FILE for folder in folders]
    return next((Path(os.path.relpath(path)) for path in candidates if path.is_file()), None)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of a :class:`UniteModule`, its tensors still on disk; or the same of an exported folder.

    Raises:
        UserError: The file is damaged, of another program, or has weights that are not finite.
    """
    if is_exported(path):
        return read_exported(path.parent)
    try:
        checkpoint = _load(path)
    except Exception as error:
        raise UserError(
            f"{path} is not a unite checkpoint, or is damaged: torch.load cannot read it{_other_checkpoint(path)}"
        ) from error
    hparams = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not isinstance(hparams, dict) or not {"encoder", "adapters"} <= hparams.keys() or "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a unite checkpoint: it has no settings of encoder and adapters")
    require_few_settings(hparams, path)
    require_finite(checkpoint["state_dict"], path)
    return {**checkpoint, "hyper_parameters": moved(hparams)}


def as_of_today(path: Path, checkpoint: dict[str, Any]) -> Path | io.BytesIO:
    """The file, or its content in memory if its settings name classes by paths that have moved.

    Lightning reads the settings itself, before any hook of ours.

    Args:
        path: The file.
        checkpoint: What :func:`read_checkpoint` gave of it.
    """
    if _load(path)["hyper_parameters"] == checkpoint["hyper_parameters"]:
        return path
    content = io.BytesIO()
    torch.save(checkpoint, content)
    content.seek(0)
    return content


def _load(path: Path) -> Any:
    with zipfile.ZipFile(path) as file:  # torch.load does not look at the checksums that torch.save writes
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
            raise ValueError("it is packed, as torch.save packs nothing")  # and could unpack to more than there is room
        if (damaged := file.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged} does not match")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _other_checkpoint(damaged: Path) -> str:
    """``; the newest whole one ...`` if the folder has another checkpoint."""
    others = [path for path in damaged.parent.glob("*.ckpt") if path != damaged]
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            step = _load(path)["global_step"]
        except Exception:
            continue
        return f"; the newest whole one is --ckpt_path {shown(path)} (step {step})"
    return ""
