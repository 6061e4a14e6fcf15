"""Shapes for molecules that come without: ETKDG, then the MMFF94 force field, or UFF where that has no parameters."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

#: Atoms, hydrogens among them, up to which shapes are made: beyond, ETKDG takes minutes.
MAX_ATOMS = 250
_MAX_ITERATIONS = 500


class Conformers(NamedTuple):
    """Shapes of a molecule.

    Attributes:
        positions: Positions in Å, shape (conformers, A, 3), of the lowest energy first.
        is_relaxed: Whether a force field knew all atoms, and energies are known.
    """

    positions: npt.NDArray[np.float32]
    is_relaxed: bool


def make_conformers(mol: Chem.Mol, num_conformers: int, seed: int = 0) -> Conformers:
    """Conformers of a molecule, from the seed and the molecule alone.

    Args:
        mol: A sanitized molecule of one piece, with hydrogens as atoms.
        num_conformers: Most conformers; ETKDG finds fewer of rigid molecules, in which some would be equal.
        seed: Seed of ETKDG.

    Returns:
        At least one conformer, or none where ETKDG finds none.
    """
    mol = Chem.Mol(mol)
    settings: Any = rdDistGeom.ETKDGv3()  # RDKit's stubs give its attributes other types
    settings.randomSeed = seed + 1  # RDKit multiplies it by the number of the conformer: with 0 all would be one
    settings.pruneRmsThresh = 0.1 if num_conformers > 1 else -1.0
    with rdBase.BlockLogs():
        numbers = list(rdDistGeom.EmbedMultipleConfs(mol, num_conformers, settings))
        if not numbers:
            settings.useRandomCoords = True  # what RDKit advises where distances alone lead nowhere
            numbers = list(rdDistGeom.EmbedMultipleConfs(mol, num_conformers, settings))
        if not numbers:
            return Conformers(np.zeros((0, mol.GetNumAtoms(), 3), dtype=np.float32), False)
        results = [(0, 0.0)] * len(numbers)
        is_relaxed = True
        if rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
            results = rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(mol, maxIters=_MAX_ITERATIONS)
        elif rdForceFieldHelpers.UFFHasAllMoleculeParams(mol):
            results = rdForceFieldHelpers.UFFOptimizeMoleculeConfs(mol, maxIters=_MAX_ITERATIONS)
        else:
            is_relaxed = False
    order = sorted(range(len(numbers)), key=lambda index: results[index][1])
    found = [mol.GetConformer(numbers[index]).GetPositions() for index in order]
    positions = np.array(found, dtype=np.float32).reshape(len(found), mol.GetNumAtoms(), 3)
    return Conformers(positions[np.isfinite(positions).all((1, 2))], is_relaxed)
