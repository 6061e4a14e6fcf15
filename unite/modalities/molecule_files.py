"""Generated molecules for other programs and for people: SDF, extended XYZ, and a picture.

Nothing is left out: what is no molecule is written and drawn too, with the reason.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TextIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rdkit import Chem, rdBase
from rdkit.Chem.Draw import rdMolDraw2D

from unite.modalities.molecule_graph import MolecularGraph, assemble
from unite.modalities.molecule_graph_files import FLAT_REMARK, draw_graph, graph_mol_block, graph_properties
from unite.modalities.molecule_perception import Molecule, Perception, molecule_key, perceive, perceive_all, short_pairs
from unite.modalities.molecule_reading import MAX_SDF_COORDINATE
from unite.output_folder import replacing

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


def write_sdf(molecules: Sequence[Molecule | MolecularGraph], path: str | Path) -> None:
    """Write molecules with their bonds to an SDF file, which appears only once it is complete.

    Bonds are those predicted where there are any, and otherwise those perceived from the positions.

    The properties of each entry are ``valid`` (True or False), ``reject_reason`` (empty if valid) and
    ``smiles`` (empty if invalid).

    Positions are those generated, to 0.0001 Å, with one exception: for united atoms that form a valid
    molecule, RDKit places the counted hydrogens by ideal geometry. These *added* atoms follow behind the
    generated ones, and the property ``num_hydrogens`` lists the generated numbers, one per heavy atom.

    Invalid molecules are written as loose atoms without bonds (united atoms without their hydrogens, which
    stand in ``num_hydrogens``). Coordinates that an SDF cannot hold, non-finite or beyond 9999 Å, become zero
    there; the property ``positions`` then has them as they were generated.

    Molecules with predicted bonds have them even if they are no molecule, and the further properties ``valid_bonds``,
    ``reject_reason_bonds`` and ``smiles_bonds``. Graphs without positions are laid out in the plane; the property
    ``coordinates`` says so, and ``valid`` and its like are left out.

    Args:
        molecules: Molecules to write, in this order; all of one kind.
        path: File to write; replaced if it exists.
    """
    with _text_replacing(path) as file, rdBase.BlockLogs():
        perceptions = iter(perceive_all([molecule for molecule in molecules if isinstance(molecule, Molecule)]))
        for index, molecule in enumerate(molecules):
            name = f"molecule {index}"
            if isinstance(molecule, MolecularGraph):
                file.write(graph_mol_block(molecule, name, None))
                properties = {"coordinates": FLAT_REMARK, **graph_properties(molecule)}
            else:
                found = next(perceptions)
                file.write(_mol_block(molecule, found, name))
                properties = _properties(found)
                if molecule.graph is not None:
                    properties |= graph_properties(molecule.graph)
                if not _fits_sdf(molecule).all():
                    properties["positions"] = " ".join(map(repr, molecule.positions.ravel().tolist()))
            if molecule.num_hydrogens is not None:
                properties["num_hydrogens"] = " ".join(map(str, molecule.num_hydrogens.tolist()))
            for name, value in properties.items():
                file.write(f">  <{name}>\n{value}\n\n")
            file.write("$$$$\n")


def write_xyz(molecules: Sequence[Molecule], path: str | Path) -> None:
    """Write molecules exactly as generated to an extended XYZ file, which appears only once it is complete.

    The comment line of each molecule carries ``valid`` (T or F), and ``smiles`` or ``reject_reason``. United
    atoms are heavy atoms with a further column ``num_hydrogens``; no hydrogen is added. Elements that do not
    exist are ``X``.

    Args:
        molecules: Molecules to write, in this order.
        path: File to write; replaced if it exists.
    """
    with _text_replacing(path) as file:
        for molecule, found in zip(molecules, perceive_all(molecules), strict=True):
            columns = "species:S:1:pos:R:3"
            rows = [
                f"{_symbol(atomic_number):<2s} " + " ".join(f"{coordinate:16.8f}" for coordinate in position)
                for atomic_number, position in zip(
                    molecule.atomic_numbers.tolist(), molecule.positions.tolist(), strict=True
                )
            ]
            if molecule.num_hydrogens is not None:
                columns += ":num_hydrogens:I:1"
                counts = molecule.num_hydrogens.tolist()
                rows = [f"{row} {count}" for row, count in zip(rows, counts, strict=True)]
            properties = _properties(found)
            # Without the empty ones: readers, such as ASE's, take `a="" b="c"` for one value.
            texts = [f' {name}="{properties[name]}"' for name in ("reject_reason", "smiles") if properties[name]]
            comment = f"Properties={columns} valid={properties['valid'][0]}{''.join(texts)}"
            file.write("\n".join([str(len(rows)), comment, *rows]) + "\n")


def _mol_block(molecule: Molecule, found: Perception, name: str) -> str:
    if molecule.graph is not None:
        return graph_mol_block(molecule.graph, name, np.where(_fits_sdf(molecule), molecule.positions, 0.0))
    mol = _loose_atoms(molecule) if found.mol is None else _with_positions(found.mol, molecule)
    mol.SetProp("_Name", name)
    return str(Chem.MolToMolBlock(mol, includeStereo=False))


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


def _properties(found: Perception) -> dict[str, str]:
    return {
        "valid": str(found.mol is not None),
        "reject_reason": found.reason or "",
        "smiles": "" if found.mol is None else molecule_key(found.mol),
    }


def _fits_sdf(molecule: Molecule) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Which coordinates an SDF can hold, shape (A, 3)."""
    return np.asarray(np.abs(molecule.positions) <= MAX_SDF_COORDINATE)  # NaN compares as False


def _set_positions(mol: Chem.Mol, molecule: Molecule) -> None:
    positions = np.where(_fits_sdf(molecule), molecule.positions, 0.0).astype(np.float64)
    conformer = Chem.Conformer(len(positions))
    conformer.Set3D(True)
    if len(positions):
        conformer.SetPositions(positions)
    mol.RemoveAllConformers()
    mol.AddConformer(conformer)


def _loose_atoms(molecule: Molecule) -> Chem.RWMol:
    mol = Chem.RWMol()
    for atomic_number in molecule.atomic_numbers.tolist():
        atom = Chem.Atom(_symbol(atomic_number)) if _exists(atomic_number) else Chem.Atom(0)
        atom.SetNoImplicit(True)  # a reader must not fill them up with hydrogens
        mol.AddAtom(atom)
    _set_positions(mol, molecule)
    return mol


def _with_positions(mol: Chem.Mol, molecule: Molecule) -> Chem.Mol:
    """The perceived molecule with a conformer; counted hydrogens are placed, the rest is as generated."""
    if molecule.num_hydrogens is None:
        return Chem.Mol(mol)
    heavy = Chem.RWMol(mol)
    for atom in list(heavy.GetAtoms())[: len(molecule.num_hydrogens)]:
        atom.SetNumExplicitHs(int(molecule.num_hydrogens[atom.GetIdx()]))
    for hydrogen in range(mol.GetNumAtoms() - 1, len(molecule.num_hydrogens) - 1, -1):
        heavy.RemoveAtom(hydrogen)
    Chem.SanitizeMol(heavy)
    _set_positions(heavy, molecule)
    return Chem.AddHs(heavy, addCoords=True)


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


def _exists(atomic_number: int) -> bool:
    return 0 < atomic_number <= 118


def _symbol(atomic_number: int) -> str:
    return str(Chem.GetPeriodicTable().GetElementSymbol(atomic_number)) if _exists(atomic_number) else "X"


@contextmanager
def _text_replacing(path: str | Path) -> Iterator[TextIO]:
    """Text file that takes the place of ``path`` when all has gone well."""
    with replacing(Path(path)) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        yield file
