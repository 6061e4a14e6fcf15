"""Finished images: arrays (H, W, channels) of bytes as PNG files and as one picture."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SMALLEST_SHOWN = 64
"""Images of fewer pixels along an edge are enlarged in a picture, pixel by pixel."""

GAP = 2
"""Pixels between the images of a picture."""


def as_picture(image: NDArray[np.uint8]) -> Image.Image:
    """A picture of an array (H, W, 1) or (H, W, 3)."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def draw_grid(images: Sequence[NDArray[np.uint8]], num_columns: int | None = None) -> Image.Image:
    """Images in rows, from left to right; as many columns as rows unless ``num_columns`` says otherwise."""
    if not images:
        return Image.new("RGB", (SMALLEST_SHOWN, SMALLEST_SHOWN), "white")
    height, width = images[0].shape[:2]
    scale = max(1, math.ceil(SMALLEST_SHOWN / max(height, width)))
    cell_height, cell_width = scale * height + GAP, scale * width + GAP
    columns = num_columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    picture = Image.new("RGB", (columns * cell_width + GAP, rows * cell_height + GAP), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        cell = as_picture(image).resize((scale * width, scale * height), Image.Resampling.NEAREST)
        picture.paste(cell.convert("RGB"), (GAP + column * cell_width, GAP + row * cell_height))
    return picture


def save_images(images: Sequence[NDArray[np.uint8]], folder: Path) -> Path:
    """Write ``000000.png`` and so on into a folder, which is made, and return the folder.

    Those that an earlier call with more images left behind are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.png"):
        if re.fullmatch(r"[0-9]{6}\.png", path.name) and int(path.stem) >= len(images):
            path.unlink()
    for index, image in enumerate(images):
        as_picture(image).save(folder / f"{index:06d}.png")
    return folder
