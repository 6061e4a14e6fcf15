"""Pictures of molecules, valid or not."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rdkit import Chem, rdBase
from rdkit.Chem.Draw import rdMolDraw2D

from unite.modalities.molecule.files.graphs import draw_graph
from unite.modalities.molecule.files.writing import _fits_sdf, _symbol
from unite.modalities.molecule.graph import MolecularGraph, assemble
from unite.modalities.molecule.perception.distances import short_pairs
from unite.modalities.molecule.perception.molecule import Molecule, molecule_key
from unite.modalities.molecule.perception.perceive import perceive

_CELL: Final = (260, 240)  # width and height in pixels, legend included
_LEGEND_HEIGHT: Final = 40
_LEGEND_LETTERS: Final = 36  # per line
_INVALID_COLOUR: Final = (200, 20, 20)
_INVALID_BACKGROUND: Final = (255, 244, 243)
_ATOM_COLOURS: Final = {
    1: (235, 235, 235),
    6: (165, 165, 165),
    7: (130, 160, 255),
    8: (255, 120, 105),
    9: (90, 200, 90),
}
_OTHER_COLOUR: Final = (230, 110, 220)


def draw_grid(molecules: Sequence[Molecule | MolecularGraph], columns: int = 6, max_molecules: int = 36) -> Image.Image:
    """Picture of the first molecules, row by row.

    Valid molecules are drawn as structural formulas with their SMILES. Invalid ones stand on red ground with the
    reason. Predicted bonds are drawn where there are any, those of invalid molecules, too. Without them, invalid
    molecules are their atoms seen along the direction in which they extend least, joined where they are close enough
    for a bond (united atoms with the number of their hydrogens).

    Args:
        molecules: Molecules to draw.
        columns: Molecules per row.
        max_molecules: Molecules to draw at most.

    Returns:
        RGB image; one empty cell if there is no molecule.

    Raises:
        ValueError: If ``columns`` or ``max_molecules`` is below one.
    """
    if columns < 1 or max_molecules < 1:
        raise ValueError(f"columns and max_molecules must be at least 1, got {columns} and {max_molecules}")
    shown = molecules[:max_molecules]
    columns = max(min(columns, len(shown)), 1)
    num_rows = max(-(-len(shown) // columns), 1)
    width, height = _CELL
    grid = Image.new("RGB", (columns * width, num_rows * height), "white")
    with rdBase.BlockLogs():
        for index, molecule in enumerate(shown):
            grid.paste(_draw(molecule), (index % columns * width, index // columns * height))
    return grid


def _draw(molecule: Molecule | MolecularGraph) -> Image.Image:
    graph = molecule.graph if isinstance(molecule, Molecule) else molecule
    if graph is not None:
        return _draw_bonds(graph)
    assert isinstance(molecule, Molecule)
    found = perceive(molecule)
    return _draw_invalid(molecule, str(found.reason)) if found.mol is None else _draw_valid(found.mol)


def _draw_bonds(graph: MolecularGraph) -> Image.Image:
    """The predicted bonds; of no molecule, too, marked with the reason."""
    assembly = assemble(graph)
    width, height = _CELL
    cell = _invalid_cell(str(assembly.reason)) if assembly.mol is None else Image.new("RGB", _CELL, "white")
    if assembly.mol is not None:
        _write_legend(cell, molecule_key(assembly.mol), (0, 0, 0))
    if len(graph.atomic_numbers):
        margin = 0 if assembly.mol is not None else 6  # the frame stays visible
        picture = draw_graph(graph, (width - 2 * margin, height - _LEGEND_HEIGHT - margin), _INVALID_BACKGROUND)
        cell.paste(picture, (margin, margin))
    return cell


def _invalid_cell(reason: str) -> Image.Image:
    """Red ground, a frame and the reason."""
    width, height = _CELL
    cell = Image.new("RGB", _CELL, _INVALID_BACKGROUND)
    ImageDraw.Draw(cell).rectangle((2, 2, width - 3, height - 3), outline=_INVALID_COLOUR)
    _write_legend(cell, f"invalid: {reason.replace('_', ' ')}", _INVALID_COLOUR)
    return cell


def _draw_valid(mol: Chem.Mol) -> Image.Image:
    width, height = _CELL
    flat = Chem.RemoveHs(mol)
    flat.RemoveAllConformers()  # or the drawing would be a projection of the positions
    drawer = rdMolDraw2D.MolDraw2DCairo(width, height - _LEGEND_HEIGHT)
    rdMolDraw2D.PrepareAndDrawMolecule(drawer, flat)
    drawer.FinishDrawing()
    cell = Image.new("RGB", _CELL, "white")
    cell.paste(Image.open(io.BytesIO(drawer.GetDrawingText())).convert("RGB"), (0, 0))
    _write_legend(cell, molecule_key(mol), (0, 0, 0))
    return cell


def _draw_invalid(molecule: Molecule, reason: str) -> Image.Image:
    width, height = _CELL
    cell = _invalid_cell(reason)
    draw = ImageDraw.Draw(cell)
    is_drawable = len(molecule.positions) > 0 and bool(_fits_sdf(molecule).all())
    if not is_drawable:
        text = "no atoms" if len(molecule.positions) == 0 else "positions are not finite or very far away"
        middle = (width / 2, (height - _LEGEND_HEIGHT) / 2)
        draw.text(middle, text, fill=_INVALID_COLOUR, font=_font(), anchor="mm")
        return cell
    centred = molecule.positions.astype(np.float64) - molecule.positions.mean(0)
    axes = np.linalg.svd(centred, full_matrices=True)[2]  # (3, 3), rows by falling extent
    points = centred @ axes.T  # (A, 3); the last coordinate points at the reader
    extent = max(float(np.abs(points[:, :2]).max()), 1.0)  # a collapsed molecule stays small
    scale = (min(width, height - _LEGEND_HEIGHT) / 2 - 22) / extent
    places = points[:, :2] * scale + (width / 2, (height - _LEGEND_HEIGHT) / 2)  # (A, 2) in pixels
    for first, second in short_pairs(molecule):
        draw.line([tuple(places[first]), tuple(places[second])], fill=(120, 120, 120), width=3)
    for atom in np.argsort(points[:, 2]).tolist():  # the nearest is drawn last
        _draw_atom(draw, molecule, atom, places[atom, 0], places[atom, 1], scale)
    return cell


def _draw_atom(draw: ImageDraw.ImageDraw, molecule: Molecule, atom: int, x: float, y: float, scale: float) -> None:
    """A labelled disc, smaller where a large molecule leaves little room. ``scale`` is in pixels per Å."""
    atomic_number = int(molecule.atomic_numbers[atom])
    label = _symbol(atomic_number)
    if molecule.num_hydrogens is not None and molecule.num_hydrogens[atom]:
        count = int(molecule.num_hydrogens[atom])
        label += "H" if count == 1 else f"H{count}"
    radius = min(6.0 if atomic_number == 1 else 9.0, 0.6 * scale)
    colour = _ATOM_COLOURS.get(atomic_number, _OTHER_COLOUR)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=(60, 60, 60))
    draw.text((x, y), label, fill=(0, 0, 0), font=_font(), anchor="mm")


def _write_legend(cell: Image.Image, text: str, colour: tuple[int, int, int]) -> None:
    lines = [text[start : start + _LEGEND_LETTERS] for start in range(0, len(text), _LEGEND_LETTERS)]
    if len(lines) > 2:
        lines = [lines[0], lines[1][:-1] + "…"]
    width, height = _CELL
    place = (width / 2, height - _LEGEND_HEIGHT / 2)
    ImageDraw.Draw(cell).text(place, "\n".join(lines), fill=colour, font=_font(), anchor="mm", align="center")


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=12)
