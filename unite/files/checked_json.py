"""JSON files that carry a checksum: a flipped bit is noticed when they are read back.

Imports nothing heavy: commands that need no network begin at once.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unite.files import finite, read_json, write_json

CHECKSUM = "sha256"


class DamagedFileError(Exception):
    """The file is not what was written; the message says how it is seen."""


def json_checksum(content: Any) -> str:
    """SHA-256 of what a JSON file says, whatever its blanks and the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """An object for a JSON file, and ``sha256`` of the rest; numbers that JSON does not have become null."""
    values: dict[str, Any] = finite(content)
    return {**values, CHECKSUM: json_checksum(values)}


def without_checksum(content: Any) -> dict[str, Any]:
    """Inverse of :func:`with_checksum`; what was written before there were checksums is taken as it is.

    Raises:
        DamagedFileError: The content is no object, or its checksum does not match.
    """
    if not isinstance(content, dict):
        raise DamagedFileError("it is no JSON object")
    values = {name: value for name, value in content.items() if name != CHECKSUM}
    if CHECKSUM in content and content[CHECKSUM] != json_checksum(values):
        raise DamagedFileError("its checksum does not match")
    return values


def write_checked_json(path: Path, content: Mapping[str, Any], indent: int = 2) -> Path:
    """Write a JSON file with a checksum and return its path; it appears only once it is complete."""
    return write_json(path, with_checksum(content), indent)


def read_checked_json(path: Path) -> dict[str, Any]:
    """What :func:`write_checked_json` wrote.

    Raises:
        DamagedFileError: It is no JSON object, or its checksum does not match.
        OSError: It cannot be read.
    """
    try:
        return without_checksum(read_json(path))
    except ValueError as error:
        raise DamagedFileError("it is no JSON") from error
