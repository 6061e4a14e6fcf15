"""CIFAR-10 as its makers give it to Python: batches in pickle files. Nothing of these files is run.

A batch is a dictionary with `data`, a NumPy array of bytes (10000, 3072), all red, then all green, then all blue pixels
of an image row by row, and `labels`, a list of classes (Krizhevsky 2009). NumPy's arrays are the only objects in it;
stand-ins take their places while the pickle is read, and only arrays of bytes are made of them.
"""

import io
import pickle
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unite.errors import UserError, on_one_line
from unite.modalities.image.data import Split

SIZE: Final = 32
NUM_VALUES: Final = 3 * SIZE * SIZE
#: Names of the batches. No file of another name is looked at.
BATCHES: Final[Mapping[Split, tuple[str, ...]]] = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}
FOLDER: Final = "cifar-10-batches-py"
ARCHIVES: Final = ("cifar-10-python.tar.gz", "cifar-10-python.tar")
_MAX_BYTES: Final = 1 << 28  # of a batch; the real ones have 31 MB


def find_batches(root: Path) -> Path | None:
    """The archive, or the folder with the batches, that `root` is or holds; None if there is neither."""
    if root.is_file():
        return root if root.name.endswith((".tar.gz", ".tgz", ".tar")) else None
    for folder in (root, root / FOLDER):
        if (folder / BATCHES["train"][0]).is_file():
            return folder
    return next((root / name for name in ARCHIVES if (root / name).is_file()), None)


def read_batches(source: Path, split: Split) -> tuple[Tensor, Tensor]:
    """All images of a split.

    Args:
        source: What :func:`find_batches` has found.
        split: `train` or `test`.

    Returns:
        Pixels, uint8 of shape (N, 3, 32, 32), and labels, int64 of shape (N,).

    Raises:
        UserError: A batch is missing or damaged, or names anything but arrays and plain values.
    """
    parts = [_read_batch(content, f"{name} of {source}") for name, content in _contents(source, BATCHES[split])]
    return torch.cat([pixels for pixels, _ in parts]), torch.cat([labels for _, labels in parts])


def _contents(source: Path, names: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each batch."""
    if source.is_dir():
        for name in names:
            if not (source / name).is_file():
                raise UserError(f"{source} has no {name}: unpack the archive anew")
            with (source / name).open("rb") as file:
                yield name, _bytes_of(file, f"{source / name}")
        return
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(source) as archive:
            for member in archive:  # read on the way, nothing is unpacked: a compressed archive cannot go back
                name = Path(member.name).name
                if name in names and member.isfile() and (content := archive.extractfile(member)):
                    found[name] = _bytes_of(content, f"{name} of {source}")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"cannot read {source}: {error}; fetch the archive anew") from error
    for name in names:
        if name not in found:
            raise UserError(f"{source} has no {name}: it is not the archive of CIFAR-10 for Python, or a part of it")
        yield name, found[name]


def _bytes_of(file: IO[bytes], name: str) -> bytes:
    content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise UserError(f"{name} has more than {_MAX_BYTES:,} bytes, so it is no batch of CIFAR-10")
    return content


def _read_batch(content: bytes, name: str) -> tuple[Tensor, Tensor]:
    """Pixels (N, 3, 32, 32) and labels (N,) of one batch."""
    try:
        # The official files are of Python 2, whose strings are bytes: the pixels among them.
        loaded = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in loaded.items()}
        pixels = batch["data"].values() if isinstance(batch["data"], _Array) else None
        labels = torch.tensor([int(label) for label in batch["labels"]])
    except KeyError as error:
        raise UserError(f"{name} has no {error.args[0]!r}: it is no batch of CIFAR-10") from error
    except Exception as error:  # what damaged bytes make an unpickler raise is not limited to a few classes
        raise UserError(f"cannot read {name}: {on_one_line(error) or type(error).__name__}") from error
    if pixels is None or pixels.shape != (len(labels), NUM_VALUES):
        shape = None if pixels is None else pixels.shape
        raise UserError(f"{name} has data of shape {shape} and {len(labels)} labels; ({len(labels)}, {NUM_VALUES}) fit")
    return torch.from_numpy(pixels.copy()).view(-1, 3, SIZE, SIZE), labels


class _Type:
    """Stands for a NumPy dtype: its code, such as `u1`."""

    def __init__(self, code: bytes | str = b"", *_: object) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else str(code)

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment, of which bytes have none."""


class _Array:
    """Stands for a NumPy array: its shape, type and bytes."""

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def values(self) -> NDArray[np.uint8]:
        """The array.

        Raises:
            ValueError: It is no array of bytes, or has more or fewer than its shape says.
        """
        _, shape, kind, is_fortran, content = self.state
        if not isinstance(kind, _Type) or kind.code not in ("u1", "|u1") or is_fortran:
            raise ValueError("its data are no array of bytes, row by row")
        return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _new_array(*_: object) -> _Array:
    return _Array()


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into a pickle that Python 2 can read."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it has text of encoding {encoding!r}, which no batch has")
    return text.encode("latin1")


_KNOWN: Final[Mapping[tuple[str, str], Callable[..., object]]] = {
    ("numpy.core.multiarray", "_reconstruct"): _new_array,
    ("numpy._core.multiarray", "_reconstruct"): _new_array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _latin1,
}


class _ArraysOnly(pickle.Unpickler):
    """Reads plain values and stand-ins of arrays; looks up nothing else, so that nothing of the file is run."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of an array or its type.

        Raises:
            UnpicklingError: Any other name.
        """
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array and is not looked up")
        return _KNOWN[module, name]
