"""Checkpoints that are either whole or not there."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from unite.console import shown
from unite.errors import UserError
from unite.files import replacing

LAST_CHECKPOINT = "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under another name beside its place, and renames it when it is whole and on the disk.

    Own code because Lightning's writes to the folder for temporary files. Where that is on another disk, what looks
    like a rename is a copy, and a run that is killed meanwhile has lost its last checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a file that is either whole or not there; one that was there before stays until then.

        Raises:
            UserError: The disk is full, or the file cannot be written for another reason.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)  # object stores show whole files only
            return
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial, partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # else a power failure may undo the renaming
            finally:
                os.close(folder)
        except (OSError, RuntimeError) as error:  # torch tells of a failed write in a RuntimeError
            reason = _os_error(error)
            if reason is None:
                raise
            raise UserError(f"cannot write {shown(path)} ({reason.strerror}){_what_is_left(path)}") from error


def _os_error(error: BaseException | None) -> OSError | None:
    """The failure of the operating system behind an error."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _what_is_left(path: Path) -> str:
    last = path.with_name(LAST_CHECKPOINT)
    if not last.is_file():
        return "; no checkpoint was written yet"
    return f"; mend that and continue with: unite fit --ckpt_path {shown(last)}"
