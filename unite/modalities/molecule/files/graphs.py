"""Molecules with predicted bonds as entries of an SDF and cells of a picture."""

import io
from collections.abc import Collection
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
BOND_LENGTH: Final = 30
"""Pixels of a bond in a drawing, unless there is too little room."""
MARK_COLOUR: Final = (1.0, 0.66, 0.62)


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
    """Properties of a graph in an SDF: ``valid_bonds``, ``reject_reason_bonds``, ``smiles_bonds``."""
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


def draw_structure(
    mol: Chem.Mol, size: tuple[int, int], marked: Collection[int] = (), is_sound: bool = False
) -> Image.Image:
    """A structural formula of the given width and height.

    Args:
        mol: The molecule.
        size: Width and height in pixels.
        marked: Atoms on a red disc.
        is_sound: Whether RDKit may prepare the molecule for drawing, and lay it out; otherwise it is drawn as it is.
    """
    drawer = rdMolDraw2D.MolDraw2DCairo(*size)
    options = drawer.drawOptions()
    # RDKit's stubs are wrong about these attributes.
    options.fixedBondLength = BOND_LENGTH  # type: ignore[assignment]
    options.setHighlightColour(MARK_COLOUR)
    options.highlightRadius = 0.4  # type: ignore[assignment]
    options.prepareMolsBeforeDrawing = False  # type: ignore[assignment]
    if is_sound:
        mol = rdMolDraw2D.PrepareMolForDrawing(mol)
    drawer.DrawMolecule(mol, highlightAtoms=sorted(marked), highlightBonds=[])
    drawer.FinishDrawing()
    return Image.open(io.BytesIO(drawer.GetDrawingText())).convert("RGB")
