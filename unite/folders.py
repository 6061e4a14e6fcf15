"""Folders that commands write to: checked before long work, and left as they were when nothing came of it."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from unite.errors import UserError


def require_writable(
    folder: Path, hint: str = "see --output and --trainer.default_root_dir", contents: str = ""
) -> None:
    """Make a folder and be sure that files can be written there.

    Args:
        folder: The folder; made with its parents where it is missing.
        hint: What the user can change if not.
        contents: What is to be written, for the message.

    Raises:
        UserError: Files cannot be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        words = f"cannot write {contents} to" if contents else "cannot write to"
        file = next((path for path in (folder, *folder.parents) if path.is_file()), None)
        if file is not None:
            raise UserError(f"{words} {folder}: {file} is a file, not a folder; {hint}") from error
        raise UserError(f"{words} {folder} ({error.strerror}); {hint}") from error


@contextlib.contextmanager
def leaving_no_empty_folders(folder: Path) -> Iterator[None]:
    """If the block fails, take away the empty folders that it made: ``folder``, its parents, its children."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    children = set(_folders_in(folder))
    try:
        yield
    except BaseException:
        for path in [*(child for child in _folders_in(folder) if child not in children), *missing]:
            with contextlib.suppress(OSError):  # not empty, or never made
                path.rmdir()
        raise


def _folders_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
