"""Pictures of molecules, valid or not."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from rdkit import Chem, rdBase
from rdkit.Chem import rdDepictor

from unite.modalities.molecule.faults import fault_of_graph, free_valence, structure_of_rejected
from unite.modalities.molecule.files.graphs import draw_structure, readable
from unite.modalities.molecule.files.shapes import draw_shape, onto, shape_of, shape_of_atoms
from unite.modalities.molecule.files.structures import MAX_DRAWN_RINGS, fits_sdf, num_rings
from unite.modalities.molecule.graph import MolecularGraph, assemble
from unite.modalities.molecule.perception.molecule import Molecule, molecule_key
from unite.modalities.molecule.perception.perceive import perceive
from unite.modalities.pictures import font

CELL: Final = (220, 200)  # width and height in pixels, legend included
_LEGEND_HEIGHT: Final = 40
_LEGEND_LETTERS: Final = 24  # per line
BLACK: Final = (0, 0, 0)
INVALID_COLOUR: Final = (200, 20, 20)
OVERLAY_COLOUR: Final = (255, 140, 0)


def draw_grid(molecules: Sequence[Molecule | MolecularGraph], columns: int = 6, max_molecules: int = 36) -> Image.Image:
    """Picture of the first molecules, row by row, as structural formulas.

    Below valid molecules stands their SMILES, below invalid ones the reason in red; atoms that are to blame are marked.
    Predicted bonds are drawn where there are any, those of invalid molecules, too. Without them, atoms of an invalid
    molecule are joined where they are close enough for a bond, see
    :func:`~unite.modalities.molecule.faults.structure_of_rejected`; those that clash or have many rings stand in space.

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
    width, height = CELL
    grid = Image.new("RGB", (columns * width, num_rows * height), "white")
    with rdBase.BlockLogs():
        for index, molecule in enumerate(shown):
            grid.paste(draw_molecule(molecule), (index % columns * width, index // columns * height))
    return grid


def draw_molecule(
    molecule: Molecule | MolecularGraph, marked: Collection[int] = (), legend: str | None = None
) -> Image.Image:
    """One cell of :func:`draw_grid`.

    Args:
        molecule: The molecule.
        marked: Atoms to mark beside those that are to blame for an invalid molecule.
        legend: What stands below in place of SMILES or reason.
    """
    graph = molecule.graph if isinstance(molecule, Molecule) else molecule
    with rdBase.BlockLogs():
        if graph is not None:
            return _draw_graph(graph, marked, legend)
        assert isinstance(molecule, Molecule)
        found = perceive(molecule)
        if found.mol is not None:
            return _cell(_flat(found.mol, marked), legend or molecule_key(found.mol))
        return _draw_rejected(molecule, str(found.reason), marked, legend)


def _draw_graph(graph: MolecularGraph, marked: Collection[int], legend: str | None) -> Image.Image:
    """The predicted bonds; of no molecule, too."""
    assembly = assemble(graph)
    if assembly.mol is not None:
        return _cell(_flat(assembly.mol, marked), legend or molecule_key(assembly.mol))
    fault = fault_of_graph(graph)
    if not len(graph.atomic_numbers):
        return _cell("no atoms", legend or _reason(str(assembly.reason), ""), INVALID_COLOUR)
    mol = readable(graph)
    if num_rings(mol) > MAX_DRAWN_RINGS:
        words = f"{mol.GetNumAtoms()} atoms,\n{mol.GetNumBonds()} bonds"
        return _cell(words, legend or _reason(str(assembly.reason), fault.words), INVALID_COLOUR)
    rdDepictor.Compute2DCoords(mol)
    for atom in mol.GetAtoms():  # the number of hydrogens is often what is wrong, so all are shown
        atom.SetProp("atomLabel", _label(atom))
    picture = draw_structure(mol, _drawing_size(), {*marked, *fault.atoms})
    return _cell(picture, legend or _reason(str(assembly.reason), fault.words), INVALID_COLOUR)


def _draw_rejected(molecule: Molecule, reason: str, marked: Collection[int], legend: str | None) -> Image.Image:
    """Bonds by distance of a molecule that has no others, with what is wrong."""
    if len(molecule.positions) == 0 or not fits_sdf(molecule).all():
        text = "no atoms" if len(molecule.positions) == 0 else "positions are not finite\nor very far away"
        return _cell(text, legend or _reason(reason, ""), INVALID_COLOUR)
    mol, fault = structure_of_rejected(molecule)
    marked = {*marked, *fault.atoms}
    legend = legend or _reason(reason, fault.words)
    if reason == "clash" or num_rings(mol) > MAX_DRAWN_RINGS:
        shape = shape_of_atoms(molecule)
        assert shape is not None
        return _cell(draw_shape(replace(shape, marked=marked), _drawing_size()), legend, INVALID_COLOUR)
    for atom in mol.GetAtoms():
        if atom.GetIdx() in marked:
            atom.SetBoolProp("_marked", True)
        if atom.GetIdx() in marked or free_valence(atom):  # without a label, hydrogens would be thought there
            atom.SetProp("atomLabel", _label(atom))
    drawn = _without_plain_hydrogens(mol)
    rdDepictor.Compute2DCoords(drawn)
    kept = {atom.GetIdx() for atom in drawn.GetAtoms() if atom.HasProp("_marked")}
    return _cell(draw_structure(drawn, _drawing_size(), kept), legend, INVALID_COLOUR)


def _without_plain_hydrogens(mol: Chem.Mol) -> Chem.Mol:
    """The structure with hydrogens counted on the atom that they are bonded to; loose and bridging ones stay."""
    editable = Chem.RWMol(mol)
    for atom in reversed(list(editable.GetAtoms())):
        if atom.GetAtomicNum() != 1 or atom.GetDegree() != 1:
            continue
        (neighbour,) = atom.GetNeighbors()
        if neighbour.GetAtomicNum() == 1:
            continue
        neighbour.SetNumExplicitHs(neighbour.GetNumExplicitHs() + 1)
        if neighbour.HasProp("atomLabel"):
            neighbour.SetProp("atomLabel", _label(neighbour))
        editable.RemoveAtom(atom.GetIdx())
    reduced = editable.GetMol()
    reduced.UpdatePropertyCache(strict=False)
    Chem.FastFindRings(reduced)
    return reduced


def _flat(mol: Chem.Mol, marked: Collection[int]) -> Image.Image:
    """A valid molecule as a structural formula; ``marked`` are numbers of heavy atoms."""
    drawn = Chem.Mol(mol)
    for atom in marked:
        drawn.GetAtomWithIdx(atom).SetBoolProp("_marked", True)
    drawn = Chem.RemoveHs(drawn)
    drawn.RemoveAllConformers()  # or the drawing would be a projection of the positions
    kept = {atom.GetIdx() for atom in drawn.GetAtoms() if atom.HasProp("_marked")}
    return draw_structure(drawn, _drawing_size(), kept, is_sound=True)


def draw_grid_in_space(molecules: Sequence[Molecule], columns: int = 6) -> Image.Image:
    """Picture of molecules as balls and sticks, row by row, with the legends of :func:`draw_grid`.

    Counted hydrogens of valid molecules are placed by ideal geometry, as in an SDF.
    """
    width, height = CELL
    grid = Image.new("RGB", (min(columns, len(molecules)) * width, -(-len(molecules) // columns) * height), "white")
    for index, molecule in enumerate(molecules):
        grid.paste(_draw_in_space(molecule), (index % columns * width, index // columns * height))
    return grid


def _draw_in_space(molecule: Molecule) -> Image.Image:
    found = perceive(molecule)
    shape = shape_of(molecule)
    if found.mol is not None and shape is not None:
        return _cell(draw_shape(shape, _drawing_size()), molecule_key(found.mol))
    if shape is None:
        return _draw_rejected(molecule, str(found.reason), (), None)
    fault = structure_of_rejected(molecule)[1]
    picture = draw_shape(replace(shape, marked=fault.atoms), _drawing_size())
    return _cell(picture, _reason(str(found.reason), fault.words), INVALID_COLOUR)


def draw_difference(original: Molecule | MolecularGraph, made: Molecule | MolecularGraph) -> Image.Image:
    """What a reconstruction changes.

    Positions: the reconstruction (orange), turned and shifted onto the original, with the RMSD of the atoms. Graphs:
    the reconstruction, with atoms marked that are others or have other bonds.
    """
    if isinstance(original, MolecularGraph) and isinstance(made, MolecularGraph):
        return _draw_changed_graph(original, made)
    assert isinstance(original, Molecule)
    assert isinstance(made, Molecule)
    shape, other = shape_of_atoms(original), shape_of_atoms(made)
    if shape is None or other is None:
        return _cell("positions are not finite\nor very far away", "", INVALID_COLOUR)
    moved = onto(other.positions, shape.positions)
    rmsd = float(np.sqrt(((moved - shape.positions) ** 2).sum(-1).mean()))
    picture = draw_shape(shape, _drawing_size(), replace(other, positions=moved, colour=OVERLAY_COLOUR))
    num_others = int((_kinds(original) != _kinds(made)).any(-1).sum())
    others = f"{num_others} of {len(shape.positions)} atoms of another type"
    return _cell(picture, f"RMSD {rmsd:.3f} Å\n{others if num_others else ''}", INVALID_COLOUR if num_others else BLACK)


def _draw_changed_graph(original: MolecularGraph, made: MolecularGraph) -> Image.Image:
    is_changed = (_kinds(original) != _kinds(made)).any(-1) | (original.charges != made.charges)
    changed = np.flatnonzero(is_changed | (original.bonds != made.bonds).any(-1)).tolist()
    return draw_molecule(
        made, changed, f"{len(changed)} of {len(original.charges)} atoms differ" if changed else "the same"
    )


def _kinds(molecule: Molecule | MolecularGraph) -> npt.NDArray[np.int64]:
    """Element and counted hydrogens of each atom, shape (A, 2)."""
    numbers, counts = molecule.atomic_numbers, molecule.num_hydrogens
    return np.stack([numbers, np.zeros_like(numbers) if counts is None else counts], axis=-1)


def _label(atom: Chem.Atom) -> str:
    """Element, hydrogens and charge of an atom, as ``CH<sub>2</sub>``."""
    count, charge = atom.GetNumExplicitHs(), atom.GetFormalCharge()
    hydrogens = "" if count == 0 else "H" if count == 1 else f"H<sub>{count}</sub>"
    sign = "" if charge == 0 else f"<sup>{charge:+d}</sup>".replace("1", "")
    return f"{atom.GetSymbol()}{hydrogens}{sign}"


def _drawing_size() -> tuple[int, int]:
    return CELL[0], CELL[1] - _LEGEND_HEIGHT


def _reason(reason: str, words: str) -> str:
    return f"invalid: {reason.replace('_', ' ')}\n{words}"


def _cell(picture: Image.Image | str, legend: str, colour: tuple[int, int, int] = BLACK) -> Image.Image:
    """A drawing, or words in its place, above its legend of two lines at most."""
    width, height = CELL
    cell = Image.new("RGB", CELL, "white")
    draw = ImageDraw.Draw(cell)
    if isinstance(picture, str):
        middle = (width / 2, (height - _LEGEND_HEIGHT) / 2)
        draw.text(middle, picture, fill=colour, font=font(15), anchor="mm", align="center")
    else:
        cell.paste(picture, (0, 0))
    parts = legend.replace("Å", "A").split("\n")  # the font has no Å
    lines = [line for part in parts for line in textwrap.wrap(part, _LEGEND_LETTERS, break_on_hyphens=False)]
    if len(lines) > 2:
        lines = [lines[0], lines[1][: _LEGEND_LETTERS - 1] + "…"]
    place = (width / 2, height - _LEGEND_HEIGHT / 2)
    draw.text(place, "\n".join(lines), fill=colour, font=font(15), anchor="mm", align="center")
    return cell
