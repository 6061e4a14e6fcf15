"""Generated and decoded molecules, with their validity, SMILES and picture in notebooks."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers
from torch_geometric.data import Batch, Data

from unite.errors import UserError
from unite.modalities.molecule.files.drawing import draw_grid
from unite.modalities.molecule.files.graphs import readable
from unite.modalities.molecule.files.structures import loose_atoms, with_positions
from unite.modalities.molecule.graph import Assembly, MolecularGraph, assemble, data_from_graph, data_from_mol
from unite.modalities.molecule.perception.molecule import Molecule, Perception, molecule_key
from unite.modalities.molecule.perception.perceive import perceive


class _Judged:
    """What both kinds have in common."""

    num_atoms: int

    @property
    def verdict(self) -> Perception | Assembly:
        """The result of judging it, computed once."""
        raise NotImplementedError

    @property
    def is_valid(self) -> bool:
        """Whether it counts for ``validity`` (``validity_bonds`` of a graph)."""
        return self.verdict.mol is not None

    @property
    def reject_reason(self) -> str | None:
        """Why it does not count; None of a valid one."""
        return self.verdict.reason

    @property
    def smiles(self) -> str | None:
        """SMILES without stereochemistry, by which uniqueness and novelty count; None of an invalid one."""
        return None if self.verdict.mol is None else molecule_key(self.verdict.mol)

    def __repr__(self) -> str:
        """Its SMILES, or why it is invalid."""
        told = self.smiles or f"invalid: {self.reject_reason}"
        return f"<{type(self).__name__} {told}, {self.num_atoms} atoms>"

    def _repr_png_(self) -> bytes:
        """The picture that notebooks show."""
        content = io.BytesIO()
        draw_grid([self]).save(content, format="PNG")  # type: ignore[list-item]  # each subclass is a kind it takes
        return content.getvalue()


class GeneratedMolecule(_Judged, Molecule):
    """A molecule in space, as a model gives it: atoms and positions, and predicted bonds in ``graph``, if any.

    The validity is that of its positions; that of the bonds is ``molecule.graph.is_valid``.
    """

    @property
    def verdict(self) -> Perception:
        """Bonds perceived from elements and positions, or why there are none."""
        return perceive(self)

    def to_rdkit(self) -> Chem.Mol:
        """The RDKit molecule with a conformer, as its SDF has it.

        Counted hydrogens of a valid molecule follow behind the other atoms, placed by ideal geometry. An invalid one is
        loose atoms without bonds.
        """
        mol = self.verdict.mol
        return Chem.Mol(loose_atoms(self)) if mol is None else with_positions(mol, self)


class GeneratedGraph(_Judged, MolecularGraph):
    """A molecular graph, as a model gives it."""

    @property
    def verdict(self) -> Assembly:
        """The molecule exactly as it was predicted, or why it is none."""
        return assemble(self)

    def to_rdkit(self) -> Chem.Mol:
        """The RDKit molecule; of an invalid one, its bonds as predicted, unchecked by RDKit."""
        mol = self.verdict.mol
        return Chem.Mol(readable(self) if mol is None else mol)


def batch_of(
    objects: Iterable[object], positions: bool, hydrogens: Literal["explicit", "counted"], seed: int = 0
) -> Batch:
    """Molecules in any of the accepted forms as the batch that datamodules yield.

    Args:
        objects: SMILES, RDKit molecules, PyG objects, or what a model has generated.
        positions: Whether the model sees positions. SMILES, and RDKit molecules without a conformer in space, are then
            given one (ETKDG, then MMFF94).
        hydrogens: ``explicit`` or ``counted``, as the model has it.
        seed: Of these conformers.

    Raises:
        UserError: One of them is no molecule, or cannot be given a conformer.
    """
    return Batch.from_data_list([_data_of(item, positions, hydrogens, seed) for item in objects])


def _data_of(item: Any, positions: bool, hydrogens: Literal["explicit", "counted"], seed: int) -> Data:
    if isinstance(item, Data):
        return item
    if isinstance(item, MolecularGraph):
        return data_from_graph(item)
    if isinstance(item, Molecule):
        if item.graph is not None:
            return data_from_graph(item.graph, item.positions)
        data = Data(z=torch.from_numpy(item.atomic_numbers), pos=torch.from_numpy(item.positions.astype(np.float32)))
        if item.num_hydrogens is not None:
            data.num_hydrogens = torch.from_numpy(item.num_hydrogens)
        return data
    if isinstance(item, str):
        with rdBase.BlockLogs():
            read = Chem.MolFromSmiles(item)
        if read is None:
            raise UserError(f"{item!r} is no SMILES that RDKit can read")
        item = read
    if isinstance(item, Chem.Mol) and positions and not _is_in_space(item):
        item = _with_conformer(item, seed)
    return data_from_mol(item, hydrogens)


def _is_in_space(mol: Chem.Mol) -> bool:
    return mol.GetNumConformers() > 0 and mol.GetConformer().Is3D()


def _with_conformer(mol: Chem.Mol, seed: int) -> Chem.Mol:
    with rdBase.BlockLogs():
        complete = Chem.AddHs(mol)
        if rdDistGeom.EmbedMolecule(complete, randomSeed=seed) != 0:
            raise UserError(f"RDKit finds no conformer of {Chem.MolToSmiles(mol)}; give it one, or leave it out")
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(complete):
            rdForceFieldHelpers.MMFFOptimizeMolecule(complete)
    return complete
