"""Molecules with predicted bonds for other programs and for people: entries of an SDF, and cells of a picture."""

import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from rdkit import Chem, rdBase
from rdkit.Chem import rdDepictor
from rdkit.Chem.Draw import rdMolDraw2D

from unite.modalities.molecule.graph import MolecularGraph, as_written, assemble
from unite.modalities.molecule.perception.molecule import molecule_key

FLAT_REMARK: Final = "2D: laid out by RDKit, no positions were generated"


def graph_mol_block(graph: MolecularGraph, name: str, positions: npt.NDArray[np.floating] | None) -> str:
    """A graph as a mol block with its predicted bonds, valid or not.

    Args:
        graph: The graph.
        name: First line of the block.
        positions: Positions in Å, shape (A, 3), within what an SDF can hold; counted hydrogens of a valid graph are
            then placed by ideal geometry, behind the other atoms. None lays the molecule out in the plane, and counted
            hydrogens are left to the valences, as usual in an SDF.
    """
    assembly = assemble(graph)
    mol = readable(graph) if assembly.mol is None else Chem.Mol(assembly.mol)
    mol.SetProp("_Name", name)
    with rdBase.BlockLogs():
        if positions is None:
            rdDepictor.Compute2DCoords(mol)
        else:
            conformer = Chem.Conformer(len(positions))
            conformer.Set3D(True)
            if len(positions):
                conformer.SetPositions(positions.astype(np.float64))
            mol.AddConformer(conformer)
            if assembly.mol is not None and graph.num_hydrogens is not None:
                mol = Chem.AddHs(mol, addCoords=True)
        # What is no molecule keeps its bonds as they were predicted, aromatic ones included.
        return str(Chem.MolToMolBlock(mol, includeStereo=False, kekulize=assembly.mol is not None))


def graph_properties(graph: MolecularGraph) -> dict[str, str]:
    """What the SDF tells of a graph: ``valid_bonds``, ``reject_reason_bonds``, ``smiles_bonds``."""
    assembly = assemble(graph)
    return {
        "valid_bonds": str(assembly.mol is not None),
        "reject_reason_bonds": assembly.reason or "",
        "smiles_bonds": "" if assembly.mol is None else molecule_key(assembly.mol),
    }


def readable(graph: MolecularGraph) -> Chem.RWMol:
    """A graph that is no molecule in a form that RDKit lays out and draws without judging it."""
    mol = as_written(graph)
    with rdBase.BlockLogs():
        mol.UpdatePropertyCache(strict=False)
        Chem.FastFindRings(mol)
    return mol


def draw_graph(graph: MolecularGraph, size: tuple[int, int], background: tuple[int, int, int]) -> Image.Image:
    """The predicted bonds as a structural formula of the given width and height, valid or not.

    What is no molecule stands on the background colour, with every hydrogen written out.
    """
    assembly = assemble(graph)
    drawer = rdMolDraw2D.MolDraw2DCairo(*size)
    with rdBase.BlockLogs():
        if assembly.mol is None:
            mol = readable(graph)
            rdDepictor.Compute2DCoords(mol)
            options = drawer.drawOptions()
            options.prepareMolsBeforeDrawing = False  # type: ignore[assignment]  # RDKit's stubs are wrong
            options.setBackgroundColour(tuple(part / 255 for part in background))
            for atom in mol.GetAtoms():  # the reason is often a hydrogen, so they are all told
                atom.SetProp("atomLabel", _label(atom))
            drawer.DrawMolecule(mol)
        else:
            mol = Chem.RemoveHs(assembly.mol)
            rdMolDraw2D.PrepareAndDrawMolecule(drawer, mol)
    drawer.FinishDrawing()
    return Image.open(io.BytesIO(drawer.GetDrawingText())).convert("RGB")


def _label(atom: Chem.Atom) -> str:
    """Element, hydrogens and charge of an atom, as ``CH<sub>2</sub>``."""
    count, charge = atom.GetNumExplicitHs(), atom.GetFormalCharge()
    hydrogens = "" if count == 0 else "H" if count == 1 else f"H<sub>{count}</sub>"
    sign = "" if charge == 0 else f"<sup>{charge:+d}</sup>".replace("1", "")
    return f"{atom.GetSymbol()}{hydrogens}{sign}"
