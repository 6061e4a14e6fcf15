"""Tables of many parts against the parts in memory, and against safetensors' own reader."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from unite.files.checked import load_checked
from unite.files.checked_json import DamagedFileError
from unite.files.tables import offsets, write_table


def parts(number: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for size in range(number):
        yield {
            "z": torch.randint(100, (size,), generator=generator, dtype=torch.uint8),
            "pos": torch.randn(size, 3, generator=generator),
            "key": torch.randint(2**40, (size,), generator=generator),
            "first": torch.randint(99, (size,), generator=generator).to(torch.int16),
        }


def test_columns_are_those_of_the_parts_end_to_end(tmp_path: Path) -> None:
    path = tmp_path / "table.safetensors"
    write_table(lambda: parts(7), path, {"properties": "[]"})
    tensors, metadata = load_checked(path)
    assert metadata == {"properties": "[]"}
    for name, values in tensors.items():
        expected = torch.cat([part[name] for part in parts(7)])
        assert torch.equal(values, expected)
        assert torch.equal(load_file(path)[name], expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.safetensors"]


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "table.safetensors"
    write_table(lambda: parts(5), path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="checksum"):
        load_checked(path)


def test_parts_of_other_shapes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    wrong = [{"z": torch.zeros(2)}, {"z": torch.zeros(2, 3)}]
    with pytest.raises(ValueError, match="column z"):
        write_table(lambda: wrong, tmp_path / "table")
    assert not list(tmp_path.iterdir())


def test_offsets() -> None:
    assert offsets(torch.tensor([2, 0, 3], dtype=torch.int32)).tolist() == [0, 2, 2, 5]
