"""Pictures of cells in 3D: atoms, bonds, the edges of the cell and its axes."""

import colorsys
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rdkit import Chem

from unite.modalities.crystal.crystal import Crystal
from unite.modalities.crystal.elements import SYMBOLS, group, period

SIDE: Final = 190
"""Pixels of a cell's picture."""
SCALE: Final = 3
"""The picture is drawn so many times larger, and reduced, for smooth edges."""
MAX_DRAWN_ATOMS: Final = 200
BOND_FACTOR: Final = 1.15
"""Atoms closer than this times the sum of their covalent radii are drawn as bonded."""

_FAMILIAR: Final = {"H": "#eeeeee", "C": "#707070", "N": "#4060f0", "O": "#f03020", "F": "#60c850", "S": "#e8d030"}
_AXES: Final = (("a", "#c02020"), ("b", "#208020"), ("c", "#2040c0"))
EDGES: Final = [(i, j) for i in range(8) for j in range(i + 1, 8) if bin(i ^ j).count("1") == 1]
CORNERS: Final = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], dtype=float)


def draw_cells(crystals: Sequence[Crystal]) -> Image.Image:
    """A grid of cells, each with its formula; one that is not structurally valid is marked with the reason."""
    columns = min(max(len(crystals), 1), 6)
    rows = -(-max(len(crystals), 1) // columns)
    picture = Image.new("RGB", (columns * SIDE, rows * SIDE), "white")
    for number, crystal in enumerate(crystals):
        picture.paste(draw_cell(crystal), (number % columns * SIDE, number // columns * SIDE))
    return picture


def draw_cell(crystal: Crystal) -> Image.Image:
    """One cell, seen from a little above; atoms on a face are repeated on the opposite one."""
    from unite.modalities.crystal.metrics.validity import structure_reason  # which imports what knows this file

    size = SIDE * SCALE
    picture = Image.new("RGB", (size, size), "white")
    canvas = ImageDraw.Draw(picture)
    reason = structure_reason(crystal)
    words = crystal.formula if len(crystal.formula) < 20 else crystal.formula[:18] + "…"
    if np.isfinite(crystal.matrix).all() and 0 < crystal.num_atoms <= MAX_DRAWN_ATOMS:
        _draw_inside(canvas, crystal, size)
    elif crystal.num_atoms > MAX_DRAWN_ATOMS:
        words = f"{crystal.num_atoms} atoms"
    font = ImageFont.load_default(size=11 * SCALE)
    canvas.text((size / 2, size - 22 * SCALE), words, "black", font, anchor="mm")
    if reason is not None:
        canvas.text((size / 2, size - 9 * SCALE), reason.replace("_", " "), "#c00000", font, anchor="mm")
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _draw_inside(canvas: ImageDraw.ImageDraw, crystal: Crystal, size: int) -> None:
    numbers, fractional = with_faces(crystal)
    turn = _view()
    centre = crystal.matrix.sum(axis=0) / 2
    corners = (CORNERS @ crystal.matrix - centre) @ turn.T
    places = (fractional @ crystal.matrix - centre) @ turn.T
    # All atoms within the picture, above the words and beside the axes.
    shown = np.concatenate([corners, places])[:, :2]
    middle_of_cell = (shown.max(axis=0) + shown.min(axis=0)) / 2
    largest = max(_drawn_radius(int(number)) for number in numbers)
    extent = (shown.max(axis=0) - shown.min(axis=0)) / 2 + largest
    zoom = min(0.45 * size / extent[0], 0.40 * size / extent[1])
    middle = np.array([size / 2, 0.42 * size]) - zoom * middle_of_cell * (1, -1)

    def on_screen(point: NDArray[np.float64]) -> tuple[float, float]:
        x, y = middle + zoom * point[:2] * (1, -1)
        return float(x), float(y)

    parts: list[tuple[float, int, tuple[int, ...]]] = []  # depth, kind, what
    parts += [(float(corners[list(edge), 2].mean()), 0, edge) for edge in EDGES]
    parts += [(float(places[list(pair), 2].mean()), 1, pair) for pair in bonds(numbers, places)]
    parts += [(float(place[2]), 2, (index,)) for index, place in enumerate(places)]
    for _, kind, what in sorted(parts):
        if kind == 0:
            canvas.line([on_screen(corners[i]) for i in what], "#b0b0b0", SCALE)
        elif kind == 1:
            canvas.line([on_screen(places[i]) for i in what], "#909090", 2 * SCALE)
        else:
            _draw_atom(canvas, int(numbers[what[0]]), on_screen(places[what[0]]), zoom)
    _draw_axes(canvas, (crystal.matrix / np.linalg.norm(crystal.matrix, axis=1, keepdims=True)) @ turn.T, size)


def _draw_atom(canvas: ImageDraw.ImageDraw, number: int, place: tuple[float, float], zoom: float) -> None:
    radius = max(_drawn_radius(number) * zoom, 3 * SCALE)
    x, y = place
    canvas.ellipse([x - radius, y - radius, x + radius, y + radius], _colour(number), "#303030", SCALE)
    light = radius / 3
    canvas.ellipse([x - 1.4 * light, y - 1.6 * light, x - 0.4 * light, y - 0.6 * light], "white")


def _draw_axes(canvas: ImageDraw.ImageDraw, directions: NDArray[np.float64], size: int) -> None:
    start = np.array([20 * SCALE, size - 22 * SCALE])
    font = ImageFont.load_default(size=8 * SCALE)
    for (name, colour), direction in zip(_AXES, directions, strict=True):
        end = start + 12 * SCALE * direction[:2] * (1, -1)
        canvas.line([*start, *end], colour, SCALE)
        canvas.text(tuple(start + 1.4 * (end - start)), name, colour, font, anchor="mm")


def _view() -> NDArray[np.float64]:
    """Rotation (3, 3) to a view from the front, from a little above and aside."""
    around, down = np.radians(-65), np.radians(-75)
    first = np.array([[np.cos(around), -np.sin(around), 0], [np.sin(around), np.cos(around), 0], [0, 0, 1]])
    second = np.array([[1, 0, 0], [0, np.cos(down), -np.sin(down)], [0, np.sin(down), np.cos(down)]])
    turn: NDArray[np.float64] = second @ first
    return turn


def with_faces(crystal: Crystal) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Atoms of the cell, those on its faces, edges and corners also on the opposite ones."""
    fractional = crystal.fractional % 1.0
    fractional = np.where(fractional > 0.98, fractional - 1, fractional)
    numbers = crystal.atomic_numbers
    for axis in range(3):
        is_on_face = np.abs(fractional[:, axis]) < 0.02
        copies = fractional[is_on_face].copy()
        copies[:, axis] += 1
        fractional, numbers = np.concatenate([fractional, copies]), np.concatenate([numbers, numbers[is_on_face]])
    return numbers, fractional


def bonds(numbers: NDArray[np.int64], places: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pairs of atoms (A,) at places (A, 3) in Å that are near enough for a bond; for pictures only."""
    radii = np.array([_radius(int(number)) for number in numbers])
    distances = np.linalg.norm(places[:, None] - places, axis=-1)
    is_bond = (distances < BOND_FACTOR * (radii[:, None] + radii)) & (distances > 0.5)
    return [(int(i), int(j)) for i, j in np.argwhere(np.triu(is_bond, 1))]


def _drawn_radius(number: int) -> float:
    """Å; small enough that bonds are seen."""
    return 0.38 * _radius(number)


def _radius(number: int) -> float:
    """Covalent radius in Å."""
    return float(Chem.GetPeriodicTable().GetRcovalent(number)) if number else 1.0


def _colour(number: int) -> str:
    """Familiar ones for a few elements; else the hue tells the column of the periodic table, paler further down."""
    symbol = SYMBOLS[number]
    if symbol in _FAMILIAR:
        return _FAMILIAR[symbol]
    red, green, blue = colorsys.hsv_to_rgb((0.78 + group(number) / 18 * 0.9) % 1, 0.85 - 0.08 * period(number), 0.85)
    return f"#{int(255 * red):02x}{int(255 * green):02x}{int(255 * blue):02x}"
