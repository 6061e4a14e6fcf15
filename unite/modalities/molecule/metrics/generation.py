"""torchmetrics for molecules: what is generated, and how well it is reconstructed.

All state is summed or concatenated over devices, so shards give the metrics of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rdkit import Chem
from torch import Tensor

from unite.errors import UserError
from unite.modalities.molecule.metrics.counter import GenerationCounter
from unite.modalities.molecule.metrics.shares import share
from unite.modalities.molecule.perception.molecule import (
    REJECT_REASONS,
    Molecule,
)
from unite.modalities.molecule.perception.perceive import perceive_all
from unite.modalities.molecule.perception.stability import edm_stability, is_outside_edm


class MoleculeGenerationMetrics(GenerationCounter):
    """Quality of generated molecules, judged from elements and coordinates alone.

    Every fraction except uniqueness, novelty and atom stability is of the molecules *passed*; pass all that
    were requested, including the empty and the non-finite. In brackets, what 10,000 molecules of QM9 score.

    - ``validity``: accepted by :func:`~unite.modalities.molecule.perception.perceive.perceive` (99.99 %).
    - ``uniqueness``: distinct keys among valid molecules (99.99 %); falls with the number of samples.
    - ``valid_unique``: distinct valid keys (99.98 %).
    - ``charged_carbon``: valid, but with a charge on a carbon (0.02 %). The protocol accepts such ions where hydrogen
      counts and geometry disagree; subtract them from ``validity`` for a figure that does not.
    - ``neutral``: valid without such a charge (99.95 %); ``neutral_unique``: distinct ones among them.
    - ``mean_rings``: rings of a valid molecule (1.77). A sampler that narrows the distribution has fewer, at a
      validity that may be higher.
    - ``novelty``: distinct valid keys that are not in ``train_keys``, among distinct valid keys; only with
      ``train_keys``. Not a quality: QM9 enumerates its space, and good samples are often known.
    - ``connected``: one piece, whatever its valences (> 99.9 %).
    - ``atom_stability`` (99.3 %, of all atoms), ``molecule_stability`` (95.2 %), ``validity_edm`` (97.5 %):
      by EDM's distance table, see :class:`~unite.modalities.molecule.perception.stability.EdmStability`. Left out
      where there are elements that it does not know, all but H, C, N, O and F.
    - ``mean_atoms``: atoms per molecule, counted hydrogens included (18.0).
    - ``reject/<reason>``: rejected for this reason, one entry for each of
      :data:`~unite.modalities.molecule.perception.molecule.REJECT_REASONS`.

    Values with nothing to divide by (uniqueness of no valid molecules) are zero.

    Args:
        train_keys: Hashed keys (:func:`~unite.modalities.molecule.perception.molecule.hash_key`) of the training
            molecules, sorted, int64 of shape (T,). Make them by perceiving the coordinates: for 0.2 % of QM9
            (charges placed differently) the SMILES of the data set are others, and these would count as
            novel. None leaves novelty out.

    Raises:
        ValueError: If ``train_keys`` are not sorted int64.
    """

    reasons = REJECT_REASONS
    counters = ("num_stable_atoms", "num_stable", "num_valid_edm", "num_outside_edm")

    num_stable_atoms: Tensor
    num_stable: Tensor
    num_valid_edm: Tensor
    num_outside_edm: Tensor

    def update(self, molecules: Sequence[Molecule]) -> None:
        """Add molecules.

        Args:
            molecules: Everything that was requested, failures included.
        """
        edm = edm_stability(molecules)
        self.count(perceive_all(molecules), int(edm.num_atoms.sum()))
        self.num_stable_atoms += int(edm.num_stable_atoms.sum())
        self.num_stable += int(edm.is_stable.sum())
        self.num_valid_edm += int(edm.is_valid.sum())
        self.num_outside_edm += sum(map(is_outside_edm, molecules))

    def further(self) -> dict[str, Tensor]:
        """Stability by EDM's table."""
        if self.num_outside_edm:
            return {}
        return {
            "atom_stability": share(self.num_stable_atoms, self.num_atoms),
            "molecule_stability": share(self.num_stable, self.num_requested),
            "validity_edm": share(self.num_valid_edm, self.num_requested),
        }


def score_molecules(
    molecules: Sequence[Molecule | Chem.Mol | None], train_keys: Tensor | None = None
) -> dict[str, float]:
    """The metrics of :class:`MoleculeGenerationMetrics` for molecules of any origin.

    Args:
        molecules: Molecules as generated, or RDKit molecules with a conformer, of which only elements, positions
            and the total charge are used: hydrogens must be atoms. Pass failures as well, None among them,
            as RDKit's readers give it for what they cannot read; fractions are of all that are passed.
        train_keys: Keys of the training molecules, see :class:`MoleculeGenerationMetrics`; None leaves novelty out.

    Raises:
        UserError: An RDKit molecule has no conformer, or a drawing in its place.
    """
    metric = MoleculeGenerationMetrics(train_keys)
    metric.update([item if isinstance(item, Molecule) else _as_molecule(item) for item in molecules])
    return {name: float(value) for name, value in metric.compute().items()}


def _as_molecule(mol: Chem.Mol | None) -> Molecule:
    if mol is None or not mol.GetNumAtoms():
        return Molecule(np.empty(0, dtype=np.int64), np.empty((0, 3)))
    if not mol.GetNumConformers():
        raise UserError("an RDKit molecule has no conformer; bonds are not read, so positions are needed")
    if not mol.GetConformer().Is3D():
        raise UserError("the conformer of an RDKit molecule is a drawing (2D), from which no bonds can be perceived")
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.int64)
    return Molecule(numbers, mol.GetConformer().GetPositions(), charge=Chem.GetFormalCharge(mol))
