"""Arrays that are larger than memory: many parts put end to end in one checked file, which is read memory-mapped.

A table is a safetensors file with a checksum, as :mod:`unite.files.checked` writes them, and read by its
:func:`~unite.files.checked.load_checked`: the tensors that it gives are views of the file, so that a process holds only
what it has touched, and several processes share it. What differs here is the writing, which holds one part at a time.

Samples of differing sizes lie one after another: a column of atoms (A, ...) beside a column of sizes (N,), of which the
running sum says where each sample begins.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from torch import Tensor

from unite.files import replacing
from unite.files.checked import tensor_checksum

Columns = Mapping[str, Tensor]

_NAMES: Final = {
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float32: "F32",
}
_UNKNOWN: Final = "0" * 64  # in place of the checksum, until all is written
_HEADER_ALIGNMENT: Final = 8


def write_table(parts: Callable[[], Iterable[Columns]], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the columns of all parts, each end to end along its first axis; the file appears once it is complete.

    Args:
        parts: Gives the parts; called twice, for their shapes and for their content. All have the same columns, with
            the same types and the same shapes but for the first axis.
        path: The file.
        metadata: Further text in the file.

    Raises:
        ValueError: There is no part.
    """
    shapes: dict[str, tuple[torch.dtype, list[int]]] = {}
    for part in parts():
        for name, values in part.items():
            dtype, shape = shapes.setdefault(name, (values.dtype, [0, *values.shape[1:]]))
            if (values.dtype, list(values.shape[1:])) != (dtype, shape[1:]):
                raise ValueError(f"column {name} is {values.dtype} {tuple(values.shape)}, not {dtype} {shape}")
            shape[0] += len(values)
    if not shapes:
        raise ValueError("there is nothing to write")
    notes = dict(metadata or {})
    # Widest first: what is memory-mapped has to begin at a multiple of its width.
    order = sorted(shapes, key=lambda name: (-shapes[name][0].itemsize, name))
    entries, places, end = {}, {}, 0
    for name in order:
        dtype, shape = shapes[name]
        places[name], start = end, end
        end += dtype.itemsize * torch.Size(shape).numel()
        entries[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    with replacing(path) as temporary, temporary.open("w+b") as file:
        header = _header(entries, notes, _UNKNOWN)
        file.write(header)
        file.truncate(len(header) + end)
        for part in parts():
            for name, values in part.items():
                file.seek(len(header) + places[name])
                places[name] += file.write(values.contiguous().numpy().tobytes())
        file.flush()
        with safe_open(temporary, framework="pt") as written:
            tensors = {name: written.get_tensor(name) for name in order}
        file.seek(0)
        file.write(_header(entries, notes, tensor_checksum(tensors, notes)))


def _header(entries: Mapping[str, object], notes: Mapping[str, str], checksum: str) -> bytes:
    """Header of a safetensors file: its length, and JSON padded with blanks."""
    text = json.dumps({"__metadata__": {**notes, "checksum": checksum}, **entries}).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def offsets(sizes: Tensor) -> Tensor:
    """Where samples of these sizes (N,) begin when they lie one after another, and the end, shape (N + 1,), int64."""
    return torch.cat([torch.zeros(1, dtype=torch.long), sizes.long().cumsum(0)])
