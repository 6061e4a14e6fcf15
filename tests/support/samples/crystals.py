"""Crystals to test with: some that are known by name, and some of the sets that travel with the package."""

import numpy as np

from unite.modalities.crystal.crystal import Crystal
from unite.modalities.crystal.data.datamodule import CrystalDataModule, Source


def crystal(numbers: list[int], fractional: list[list[float]], *cell: float) -> Crystal:
    """A crystal of plain numbers; a cell of one number is a cube."""
    lengths_and_angles = [cell[0]] * 3 + [90.0] * 3 if len(cell) == 1 else list(cell)
    places = np.array(fractional, dtype=float).reshape(-1, 3)
    return Crystal(np.array(numbers, dtype=np.int64), places, np.array(lengths_and_angles))


#: Strontium titanate, an ideal perovskite.
PEROVSKITE = crystal(
    [38, 22, 8, 8, 8], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]], 3.905
)
#: Rock salt in its primitive cell.
ROCK_SALT = crystal([11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]], 3.99, 3.99, 3.99, 60, 60, 60)


def known_crystals(source: Source, num: int) -> list[Crystal]:
    """The first test crystals of a set."""
    data = CrystalDataModule(source)
    return [data.table().crystal(row) for row in data.rows("test")[:num].tolist()]


def rewrapped(item: Crystal, seed: int = 0) -> Crystal:
    """The same crystal from another origin, its atoms written in cells anywhere around."""
    random = np.random.default_rng(seed)
    images = random.integers(-2, 3, size=item.fractional.shape)
    return Crystal(item.atomic_numbers, item.fractional + random.random(3) + images, item.cell)
