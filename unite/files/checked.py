"""Tensors in files that carry a checksum: a flipped bit is noticed when they are read back."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from unite.errors import UserError
from unite.files import write_whole
from unite.files.checked_json import DamagedFileError


def save_checked(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file with a checksum of its tensors and metadata; it appears only once it is complete."""
    content = {name: value.contiguous() for name, value in tensors.items()}
    notes = dict(metadata or {})
    write_whole(path, save(content, {**notes, "checksum": tensor_checksum(content, notes)}))


def load_checked(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that :func:`save_checked` wrote.

    Raises:
        DamagedFileError: It cannot be read, or its checksum is missing or does not match.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DamagedFileError(str(error)) from error
    if metadata.pop("checksum", None) != tensor_checksum(tensors, metadata):
        raise DamagedFileError("its checksum does not match")
    return tensors, metadata


def tensor_checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """SHA-256 over metadata, and names, types, shapes, and contents of tensors."""
    digest = hashlib.sha256()
    for name, value in sorted((metadata or {}).items()):
        digest.update(f"{name}={value}\n".encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()


def require_finite(tensors: Mapping[str, Any], path: Path) -> None:
    """Refuse weights with which nothing can be made.

    Raises:
        UserError: A tensor has numbers that are infinite or not a number; the message names file and tensor.
    """
    for name, value in tensors.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            num_bad = int((~value.isfinite()).sum())
            raise UserError(
                f"{path} has weights that are not finite: {num_bad:,} of {value.numel():,} numbers of {name}; "
                "choose an earlier checkpoint"
            )
