"""CIFAR-10 as Parquet files: a column of encoded images and one of labels, as the Hugging Face hub has them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from tqdm import tqdm

from unite.console import is_quiet
from unite.errors import UserError, on_one_line, require_packages
from unite.modalities.image.data import Split
from unite.modalities.image.files import load_pixels

_IMAGE_COLUMNS: Final = ("img", "image")
_LABEL_COLUMN: Final = "label"
_ROWS_AT_ONCE: Final = 1000


def find_tables(root: Path, split: Split) -> list[Path]:
    """Parquet files of a split, `train*.parquet` or `test*.parquet` in a folder or in a folder of it, by name."""
    return sorted([*root.glob(f"{split}*.parquet"), *root.glob(f"*/{split}*.parquet")]) if root.is_dir() else []


def read_tables(paths: list[Path], size: int) -> tuple[Tensor, Tensor]:
    """All images of some files.

    Args:
        paths: The files.
        size: Pixels of a side.

    Returns:
        Pixels, uint8 of shape (N, 3, size, size), and labels, int64 of shape (N,).

    Raises:
        UserError: pyarrow is not installed, a file has no such columns or is damaged, or an image cannot be read.
    """
    require_packages(str(paths[0]), "parquet", "pyarrow")
    pixels, labels = [], []
    for row, (image, label) in enumerate(_rows(paths)):
        pixels.append(load_pixels(image, size, 3, name=f"image {row} of {paths[0].parent}"))
        labels.append(label)
    return torch.stack(pixels), torch.tensor(labels)


def _rows(paths: list[Path]) -> Iterator[tuple[bytes, int]]:
    """Encoded image and label of every row, with a progress bar."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        tables = [ParquetFile(path) for path in paths]
        total = sum(table.metadata.num_rows for table in tables)
        with tqdm(total=total, desc="reading images", unit="img", leave=False, disable=is_quiet()) as bar:
            for path, table in zip(paths, tables, strict=True):
                column = _image_column(table.schema_arrow.names, path)
                for batch in table.iter_batches(_ROWS_AT_ONCE, columns=[column, _LABEL_COLUMN]):
                    for row in batch.to_pylist():
                        yield _encoded(row[column], path), int(row[_LABEL_COLUMN])
                        bar.update()
    except (ArrowException, OSError, TypeError) as error:  # the last of a label that is none
        raise UserError(f"cannot read the images of {paths[0].parent}: {on_one_line(error)}") from error


def _image_column(names: list[str], path: Path) -> str:
    column = next((name for name in _IMAGE_COLUMNS if name in names), None)
    if column is None or _LABEL_COLUMN not in names:
        raise UserError(f"{path} has the columns {', '.join(names)}; it needs img (or image) and {_LABEL_COLUMN}")
    return column


def _encoded(cell: Any, path: Path) -> bytes:
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes):
        raise UserError(f"{path} has an image that is no encoded file (PNG, JPEG)")
    return content
