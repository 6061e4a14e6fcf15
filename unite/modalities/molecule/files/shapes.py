"""Pictures of molecules in space, as balls and sticks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from rdkit import Chem, rdBase

from unite.modalities.molecule.files.structures import fits_sdf, with_positions
from unite.modalities.molecule.perception.distances import short_pairs
from unite.modalities.molecule.perception.molecule import Molecule
from unite.modalities.molecule.perception.perceive import perceive

FloatArray = npt.NDArray[np.float64]

_COLOURS: Final = {
    1: (240, 240, 240),
    6: (95, 95, 95),
    7: (60, 100, 230),
    8: (225, 40, 40),
    9: (90, 190, 80),
}
MARKED_COLOUR: Final = (255, 130, 120)
MAX_STICKS: Final = 1000
"""Of one molecule: hundreds of atoms in one place would be joined by many thousands, which nobody tells apart."""
_OTHER_COLOUR: Final = (200, 90, 200)
_BALL_RADIUS: Final = 0.42  # in covalent radii
_STICK_RADIUS: Final = 0.11  # Å
_TILT: Final = np.deg2rad(-25.0)  # about x: seen flat on, balls hide one another
_SMOOTHING: Final = 2  # pixels along an edge for one of the picture
_PIXELS_PER_ANGSTROM: Final = 26.0  # at most
_MARGIN: Final = 0.6  # Å around the centres of atoms
_LIGHT: Final = np.array([-0.4, 0.5, 0.77])


@dataclass(frozen=True, eq=False)
class Shape:
    """A molecule to be drawn in space.

    Attributes:
        atomic_numbers: Atomic numbers, shape (A,).
        positions: Coordinates in Å, shape (A, 3).
        pairs: Atoms joined by a stick.
        colour: One colour for all atoms; None for those of the elements.
        marked: Atoms in the colour of what is wrong.
    """

    atomic_numbers: npt.NDArray[np.int64]
    positions: FloatArray
    pairs: Sequence[tuple[int, int]]
    colour: tuple[int, int, int] | None = None
    marked: Collection[int] = ()


def shape_of_atoms(molecule: Molecule) -> Shape | None:
    """The atoms that a molecule has positions of, joined where they are near enough for a bond.

    None if there are none, or positions are not finite or very far away.
    """
    if len(molecule.positions) == 0 or not fits_sdf(molecule).all():
        return None
    return Shape(molecule.atomic_numbers, molecule.positions.astype(np.float64), short_pairs(molecule))


def shape_of(molecule: Molecule) -> Shape | None:
    """The shape of a molecule as its SDF has it; None as :func:`shape_of_atoms`.

    Sticks are predicted bonds where there are any, and otherwise those perceived. Counted hydrogens of a valid molecule
    are placed by ideal geometry; those of an invalid one are left out.
    """
    shape = shape_of_atoms(molecule)
    if shape is not None and molecule.graph is not None:
        return replace(shape, pairs=[(first, second) for first, second, _ in molecule.graph.bond_list])
    found = perceive(molecule).mol
    if shape is None or found is None:
        return shape
    with rdBase.BlockLogs():
        mol = with_positions(found, molecule)
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.int64)
    pairs = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()]
    return Shape(numbers, mol.GetConformer().GetPositions(), pairs)


def principal_axes(positions: FloatArray) -> FloatArray:
    """Positions (A, 3), centred and turned so that x is the direction in which they spread most, and z the least.

    A rotation: a molecule keeps its handedness.
    """
    turned: FloatArray = (positions - positions.mean(axis=0)) @ _axes_of(positions).T
    return turned


def _axes_of(positions: FloatArray) -> FloatArray:
    """Directions in which positions (A, 3) spread, by falling spread, as rows of a rotation."""
    axes: FloatArray = np.linalg.svd(positions - positions.mean(axis=0), full_matrices=True)[2]
    axes[2] *= np.linalg.det(axes)
    return axes


def onto(positions: FloatArray, reference: FloatArray) -> FloatArray:
    """Positions (A, 3) after the rotation and shift that bring them closest to a reference (A, 3) (Kabsch 1976)."""
    centred, centre = positions - positions.mean(axis=0), reference.mean(axis=0)
    left, _, right = np.linalg.svd(centred.T @ (reference - centre))
    left[:, 2] *= np.linalg.det(left) * np.linalg.det(right)  # no mirror image
    moved: FloatArray = centred @ left @ right + centre
    return moved


def draw_shape(shape: Shape, size: tuple[int, int], other: Shape | None = None) -> Image.Image:
    """A molecule seen from a little above the plane in which it extends most.

    Args:
        shape: The molecule.
        size: Width and height in pixels.
        other: A second one, drawn over it half transparent; its positions are in the frame of the first.
    """
    turn = _axes_of(shape.positions).T @ np.array(
        [[1, 0, 0], [0, np.cos(_TILT), np.sin(_TILT)], [0, -np.sin(_TILT), np.cos(_TILT)]]
    )
    centre = shape.positions.mean(axis=0)
    shapes = [replace(item, positions=(item.positions - centre) @ turn) for item in (shape, other) if item is not None]
    corners = np.concatenate([item.positions[:, :2] for item in shapes])
    middle = (corners.max(axis=0) + corners.min(axis=0)) / 2
    extent = corners.max(axis=0) - corners.min(axis=0) + 2 * _MARGIN  # (2,) in Å
    scale = _SMOOTHING * min(_PIXELS_PER_ANGSTROM, *(np.array(size) / extent))
    layers = [_render(item, middle, scale, (size[0] * _SMOOTHING, size[1] * _SMOOTHING)) for item in shapes]
    picture = layers[0]
    if other is not None:
        picture = np.where(np.isnan(layers[1]), picture, 0.4 * np.nan_to_num(picture, nan=255.0) + 0.6 * layers[1])
    solid = Image.fromarray(np.nan_to_num(picture, nan=255.0).astype(np.uint8))
    return solid.resize(size, Image.Resampling.LANCZOS)


def _render(shape: Shape, middle: FloatArray, scale: float, size: tuple[int, int]) -> FloatArray:
    """Colours (height, width, 3) of what is nearest to the reader in each pixel; NaN where nothing is."""
    width, height = size
    picture = np.full((height, width, 3), np.nan)
    depth = np.full((height, width), -np.inf)
    x = (np.arange(width) + 0.5 - width / 2) / scale + middle[0]
    y = (height / 2 - np.arange(height) - 0.5) / scale + middle[1]
    table = Chem.GetPeriodicTable()
    colours = np.array([shape.colour or _COLOURS.get(int(n), _OTHER_COLOUR) for n in shape.atomic_numbers], dtype=float)
    colours[list(shape.marked)] = MARKED_COLOUR
    for first, second in shape.pairs[:MAX_STICKS]:
        ends = shape.positions[[first, second]]
        for start, stop, colour in ((ends[0], ends.mean(0), colours[first]), (ends.mean(0), ends[1], colours[second])):
            rows, columns = _window(y, x, np.stack([start, stop]), _STICK_RADIUS)
            z, normals = _stick(x[columns], y[rows, None], start, stop)
            _paint(picture[rows, columns], depth[rows, columns], z, normals, colour)
    for number, place, colour in zip(shape.atomic_numbers.tolist(), shape.positions, colours, strict=True):
        radius = _BALL_RADIUS * table.GetRcovalent(number if 0 < number <= 118 else 6)
        rows, columns = _window(y, x, place[None], radius)
        across = np.stack(np.broadcast_arrays(x[columns] - place[0], y[rows, None] - place[1]), axis=-1)
        with np.errstate(invalid="ignore"):
            up = np.sqrt(radius**2 - (across**2).sum(-1))  # NaN beside the ball
        normals = np.concatenate([across, up[..., None]], axis=-1) / radius
        _paint(picture[rows, columns], depth[rows, columns], place[2] + up, normals, colour)
    return picture


def _window(y: FloatArray, x: FloatArray, points: FloatArray, radius: float) -> tuple[slice, slice]:
    """Rows and columns of the pixels within a radius of the box around points (P, 3)."""
    low, high = points.min(0) - radius, points.max(0) + radius
    columns = slice(*np.searchsorted(x, [low[0], high[0]]))
    rows = slice(*np.searchsorted(-y, [-high[1], -low[1]]))
    return rows, columns


def _stick(x: FloatArray, y: FloatArray, start: FloatArray, stop: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Depth (H, W) of the surface of a cylinder above each pixel, and its normal (H, W, 3); NaN beside it."""
    length = max(float(np.linalg.norm(stop - start)), 1e-9)
    axis = (stop - start) / length
    flat = np.stack(np.broadcast_arrays(x - start[0], y - start[1], np.zeros(1)), axis=-1)  # (H, W, 3), z = 0
    beside = flat - (flat @ axis)[..., None] * axis  # without the part along the axis
    up = np.array([0.0, 0.0, 1.0]) - axis[2] * axis
    # |beside + z up|^2 = radius^2; the larger z is nearer to the viewer.
    square, half, rest = up @ up, beside @ up, (beside**2).sum(-1) - _STICK_RADIUS**2
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (-half + np.sqrt(half**2 - square * rest)) / square
    along = flat @ axis + z * axis[2]
    z = np.where((along >= 0) & (along <= length), z, np.nan)
    return z + start[2], (beside + z[..., None] * up) / _STICK_RADIUS


def _paint(picture: FloatArray, depth: FloatArray, z: FloatArray, normals: FloatArray, colour: FloatArray) -> None:
    """Write a shaded surface into the part of a picture where nothing nearer was painted."""
    with np.errstate(invalid="ignore"):
        is_seen = z > depth
    light = np.clip(normals[is_seen] @ (_LIGHT / np.linalg.norm(_LIGHT)), 0, 1)[:, None]
    depth[is_seen] = z[is_seen]
    picture[is_seen] = np.clip(colour * (0.45 + 0.6 * light) + 110 * light**24, 0, 255)
