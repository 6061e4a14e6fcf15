"""Small structural formulas as SVG, for pages. Needs no torch."""

import re
from collections.abc import Sequence
from typing import Final

from rdkit import Chem, rdBase
from rdkit.Chem import rdDepictor
from rdkit.Chem.Draw import rdMolDraw2D

from unite.modalities.molecule.files.structures import MAX_DRAWN_RINGS, num_rings

WIDTH: Final = 170
HEIGHT: Final = 130

_MARK: Final = (0.98, 0.72, 0.66)


def structure_svg(mol: Chem.Mol) -> str:
    """The formula of a sanitized molecule, without its hydrogens."""
    with rdBase.BlockLogs():
        flat = Chem.RemoveHs(mol)
        flat.RemoveAllConformers()  # or the drawing would be a projection of the positions
        drawer = _drawer()
        rdMolDraw2D.PrepareAndDrawMolecule(drawer, flat)
    return _text(drawer)


def rejected_svg(mol: Chem.Mol, marked: Sequence[int]) -> str:
    """The formula of what is no molecule, as it is, with some atoms marked and their hydrogens written.

    Args:
        mol: Not sanitized; hydrogens are atoms, or counted as explicit ones.
        marked: Atoms to mark.

    Returns:
        SVG; empty if there are more rings than can be laid out.
    """
    if num_rings(mol) > MAX_DRAWN_RINGS:
        return ""
    mol = Chem.RWMol(mol)
    for atom in mol.GetAtoms():
        if atom.GetIdx() in marked:
            atom.SetProp("atomLabel", _label(atom))
            atom.SetBoolProp("_marked", True)
    for atom in reversed(list(mol.GetAtoms())):
        if _is_plain_hydrogen(atom):
            mol.RemoveAtom(atom.GetIdx())
    with rdBase.BlockLogs():
        mol.UpdatePropertyCache(strict=False)
        Chem.FastFindRings(mol)
        mol.RemoveAllConformers()
        rdDepictor.Compute2DCoords(mol)
        drawer = _drawer()
        options = drawer.drawOptions()
        options.prepareMolsBeforeDrawing = False  # type: ignore[assignment]  # RDKit's stubs are wrong
        colours = {atom.GetIdx(): _MARK for atom in mol.GetAtoms() if atom.HasProp("_marked")}
        drawer.DrawMolecule(mol, highlightAtoms=list(colours), highlightAtomColors=colours, highlightBonds=[])
    return _text(drawer)


def _drawer() -> rdMolDraw2D.MolDraw2DSVG:
    drawer = rdMolDraw2D.MolDraw2DSVG(WIDTH, HEIGHT, -1, -1, True)  # letters as text: half of the size
    options = drawer.drawOptions()
    options.clearBackground = False  # type: ignore[assignment]
    options.bondLineWidth = 1.4  # type: ignore[assignment]
    options.fixedBondLength = 32  # type: ignore[assignment]  # at most, or small molecules would be huge
    options.highlightRadius = 0.35  # type: ignore[assignment]
    options.padding = 0.08  # type: ignore[assignment]
    return drawer


def _text(drawer: rdMolDraw2D.MolDraw2DSVG) -> str:
    """The SVG without what only a program would read."""
    drawer.FinishDrawing()
    text = drawer.GetDrawingText()
    text = re.sub(r"<\?xml.*?\?>|<!--.*?-->| class='[^']*'| xmlns:\w+='[^']*'", "", text)
    return re.sub(r"\s+", " ", re.sub(r"(\d+\.\d)\d+", r"\1", text)).strip()


def _is_plain_hydrogen(atom: Chem.Atom) -> bool:
    """Whether it is an atom that formulas leave out: one on a carbon, neither of them marked."""
    neighbours = list(atom.GetNeighbors())
    is_terminal = atom.GetAtomicNum() == 1 and len(neighbours) == 1 and neighbours[0].GetAtomicNum() == 6
    return is_terminal and not (atom.HasProp("_marked") or neighbours[0].HasProp("_marked"))


def _label(atom: Chem.Atom) -> str:
    """Element and counted hydrogens of an atom, as ``CH<sub>3</sub>``."""
    count = atom.GetNumExplicitHs()
    return atom.GetSymbol() + ("" if count == 0 else "H" if count == 1 else f"H<sub>{count}</sub>")
