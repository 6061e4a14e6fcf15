"""Image folders for tests, made on the spot."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat")


def picture(number: int, width: int, height: int) -> Image.Image:
    """A smooth image of its own for every number."""
    y, x = np.mgrid[:height, :width]
    waves = [
        np.sin(0.3 * x * (1 + number % 5) / 3 + channel + number) + np.cos(0.2 * y + channel) for channel in (0, 1, 2)
    ]
    return Image.fromarray(((np.stack(waves, axis=-1) + 2) * 60).astype(np.uint8))


def write_folder(
    root: Path, counts: dict[str, int], size: tuple[int, int] = (20, 16), classes: tuple[str, ...] = CLASSES
) -> Path:
    """Class folders of every split with `counts` images each, in PNG and JPEG, all different."""
    number = 0
    for split, count in counts.items():
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for place in range(count):
                picture(number, *size).save(folder / f"{place}.{'jpg' if place % 2 else 'png'}")
                number += 1
    return root
