"""Text files of other people's: one way to open them, whatever wrote them."""

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TextIO

from unite.errors import UserError

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
