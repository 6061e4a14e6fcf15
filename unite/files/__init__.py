"""Files and folders: checked before long work, written whole, and text read in any of the usual encodings.

Imports nothing heavy: commands that need no network begin at once.
"""

import codecs
import contextlib
import hashlib
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

from unite.errors import UserError

MAX_JSON_BYTES = 2**28
"""Largest JSON file that is read, 256 MiB: a manifest of a million shards has half of that."""

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@contextmanager
def open_text(
    path: Path, newline: str | None = None, errors: Literal["strict", "replace"] = "strict"
) -> Iterator[TextIO]:
    """A text file in UTF-8, or in UTF-16 if it begins with a byte order mark, which is not part of the text.

    Windows writes such marks: Excel before its "CSV UTF-8", PowerShell before what ``>`` redirects.

    Args:
        path: The file.
        newline: As of :func:`open`.
        errors: What to do with bytes that are no text: refuse the file, or replace them.

    Raises:
        UserError: The file has bytes that are no text, and `errors` is strict; at the line where they stand.
        OSError: It cannot be opened.
    """
    with path.open("rb") as file:
        mark = file.read(2)
    encoding = "utf-16" if mark in _UTF16 else "utf-8-sig"
    with path.open(encoding=encoding, newline=newline, errors=errors) as lines:
        try:
            yield lines
        except UnicodeError as error:
            raise UserError(f"{path} is not text in UTF-8 ({error}); save it as UTF-8") from error


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


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears only once it is complete."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden name beside ``path``, to write a file under that takes the place of ``path`` when all has gone well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None:  # the error of a full disk has no name of a file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any, indent: int = 2) -> Path:
    """Write a JSON file and return its path; numbers that JSON does not have (NaN, infinite) become null."""
    write_whole(path, (json.dumps(finite(content), indent=indent) + "\n").encode())
    return path


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: It is no JSON, is larger than :data:`MAX_JSON_BYTES`, or is nested too deeply.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return parse_json(file.read(MAX_JSON_BYTES + 1).decode("utf-8-sig"))


def parse_json(text: str) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: It is no JSON, is larger than :data:`MAX_JSON_BYTES`, or is nested too deeply.
    """
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"it has more than {MAX_JSON_BYTES:,} bytes")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def finite(value: Any) -> Any:
    """A value as JSON can hold it: numbers that are infinite or not a number become None."""
    if isinstance(value, Mapping):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def file_checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_leftovers(folder: Path, prefix: str = "") -> None:
    """Remove what :func:`replacing` has left half written of files whose names begin so, if its process is dead."""
    for path in folder.glob(".*.tmp"):
        found = re.fullmatch(r"\.(.+)\.(\d+)\.tmp", path.name)
        if found and found[1].startswith(prefix) and not is_alive(int(found[2])):
            path.unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Whether there is a process of this number on this machine."""
    if sys.platform == "win32":  # where asking would end it
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def newest(folder: Path, pattern: str) -> Path | None:
    """The file of a pattern that was written last, if there is any."""
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime, default=None)
