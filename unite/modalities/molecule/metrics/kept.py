"""What comparisons need of files of molecules, made once and kept beside the files with a checksum.

A kept file is found by the contents of the files that it was made of and by the version of RDKit, since canonical
SMILES differ between versions.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import rdkit
import torch
from torch import Tensor

from unite.console import info
from unite.errors import UserError
from unite.files import file_checksum, require_writable
from unite.modalities.molecule.data.qm9.table import load_or_make
from unite.modalities.molecule.metrics.moses import Described

_VERSION: Final = 1  # raised when what is kept means something else


def kept_beside(
    paths: Sequence[Path], contents: str, settings: Iterable[object], make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Tensors that depend on files and settings: read from a file beside the first of them, or made and kept there.

    Where the folder cannot be written to, they are made each time, which is said.

    Args:
        paths: The files.
        contents: What the tensors are, in a word, which becomes part of the name.
        settings: All else that they depend on.
        make: Gives the tensors.
    """
    digest = hashlib.sha256(repr((_VERSION, rdkit.__version__, contents, *settings)).encode())
    for path in paths:
        digest.update(file_checksum(path).encode())
    kept = paths[0].with_name(f"{paths[0].name}.{contents}-{digest.hexdigest()[:12]}.safetensors")
    if not kept.is_file():
        try:
            require_writable(kept.parent, "it is made again each time", "what is compared with")
        except UserError as error:
            info(str(error))
            return make()
    return load_or_make(kept, make, "what is compared with", "making %s again")


def as_tensors(molecules: Sequence[Described | None]) -> dict[str, Tensor]:
    """Those molecules that can be read as ``bits``, uint8 of shape (N, bytes), and ``text``, a line of UTF-8 each."""
    found = [item for item in molecules if item is not None]
    lines = [f"{item.smiles} {'.'.join(item.fragments)} {item.scaffold or ''}" for item in found]
    bits = np.frombuffer(b"".join(item.bits for item in found), dtype=np.uint8).reshape(len(found), -1)
    text = np.frombuffer("\n".join(lines).encode(), dtype=np.uint8)
    return {"bits": torch.from_numpy(bits.copy()), "text": torch.from_numpy(text.copy())}


def from_tensors(tensors: dict[str, Tensor]) -> list[Described | None]:
    """The molecules of :func:`as_tensors`, which were not asked for filters."""
    found: list[Described | None] = []
    for bits, line in zip(tensors["bits"].numpy(), tensors["text"].numpy().tobytes().decode().split("\n"), strict=True):
        smiles, fragments, scaffold = line.split(" ")
        found.append(Described(smiles, bits.tobytes(), fragments.split("."), scaffold or None, None))
    return found
