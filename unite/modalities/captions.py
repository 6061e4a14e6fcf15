"""Captions of the samples of any data, by the row of each sample."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from unite.errors import UserError

MAX_CAPTION_BYTES: Final = 2**16
"""A longer file is no caption."""


class Captions(Protocol):
    """Captions by row, perhaps made or read when they are asked for; a list is some, too."""

    def __getitem__(self, row: int, /) -> str | None:
        """Caption of a row, None for none."""


class CaptionFiles:
    """Captions in files beside those of the samples: ``cat.txt`` beside ``cat.png``. A sample without has none.

    Args:
        paths: Files of the samples.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __getitem__(self, row: int, /) -> str | None:
        """Read a caption.

        Raises:
            UserError: The file is no text.
        """
        path = caption_file(self.paths[row])
        try:
            with path.open("rb") as file:
                return as_caption(file.read(MAX_CAPTION_BYTES + 1), str(path))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"cannot read caption {path}: {error.strerror}; replace or remove it") from error


def caption_file(path: Path) -> Path:
    """Where the caption of a file is, if it has one."""
    return path.with_suffix(".txt")


def as_caption(content: bytes, name: str) -> str | None:
    """The caption that a file holds, on one line; None if it is empty.

    Args:
        content: What is in the file.
        name: Of the file, for messages.

    Raises:
        UserError: It is no UTF-8, or far too long.
    """
    if len(content) > MAX_CAPTION_BYTES:
        raise UserError(f"caption {name} has more than {MAX_CAPTION_BYTES:,} bytes; shorten or remove it")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"caption {name} is no text in UTF-8; replace or remove it") from error
    return " ".join(text.split()) or None
