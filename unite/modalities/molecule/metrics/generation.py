"""torchmetrics for molecules: what is generated, and how well it is reconstructed.

All state is summed or concatenated over devices, so shards give the metrics of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from unite.errors import UserError
from unite.modalities.molecule.perception.molecule import (
    REJECT_REASONS,
    Molecule,
    has_charged_carbon,
    hash_key,
    molecule_key,
)
from unite.modalities.molecule.perception.perceive import perceive_all
from unite.modalities.molecule.perception.stability import edm_stability

_COUNTERS: Final = (
    "num_requested",
    "num_valid",
    "num_charged_carbon",
    "num_connected",
    "num_atoms",
    "num_stable_atoms",
    "num_stable",
    "num_valid_edm",
)


class MoleculeGenerationMetrics(Metric):
    """Quality of generated molecules, judged from elements and coordinates alone.

    Every fraction except uniqueness, novelty and atom stability is of the molecules *passed*; pass all that
    were requested, including the empty and the non-finite. In brackets, what 10,000 molecules of QM9 score.

    - ``validity``: accepted by :func:`~unite.modalities.molecule.perception.perceive.perceive` (99.99 %).
    - ``uniqueness``: distinct keys among valid molecules (99.99 %); falls with the number of samples.
    - ``valid_unique``: distinct valid keys (99.98 %).
    - ``charged_carbon``: valid, but with a charge on a carbon (0.02 %). The protocol accepts such ions where hydrogen
      counts and geometry disagree; subtract them from ``validity`` for a figure that does not.
    - ``novelty``: distinct valid keys that are not in ``train_keys``, among distinct valid keys; only with
      ``train_keys``. Not a quality: QM9 enumerates its space, and good samples are often known.
    - ``connected``: one piece, whatever its valences (> 99.9 %).
    - ``atom_stability`` (99.3 %, of all atoms), ``molecule_stability`` (95.2 %), ``validity_edm`` (97.5 %):
      by EDM's distance table, see :class:`~unite.modalities.molecule.perception.stability.EdmStability`.
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

    full_state_update = False
    is_differentiable = False

    num_requested: Tensor
    num_valid: Tensor
    num_charged_carbon: Tensor
    num_connected: Tensor
    num_atoms: Tensor
    num_stable_atoms: Tensor
    num_stable: Tensor
    num_valid_edm: Tensor
    num_rejected: Tensor  # (len(REJECT_REASONS),)
    valid_keys: list[Tensor]  # hashes, each (V,)
    train_keys: Tensor | None

    def __init__(self, train_keys: Tensor | None = None) -> None:
        super().__init__()
        if train_keys is not None and (
            train_keys.dtype != torch.int64 or train_keys.ndim != 1 or bool((train_keys.diff() < 0).any())
        ):
            raise ValueError(
                f"train_keys must be hashed keys in rising order, int64 of shape (T,); got "
                f"{train_keys.dtype} of shape {tuple(train_keys.shape)}: sort them, as torch.sort does"
            )
        self.register_buffer("train_keys", train_keys, persistent=False)
        for name in _COUNTERS:
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("num_rejected", torch.zeros(len(REJECT_REASONS), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("valid_keys", [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all molecules."""
        super().reset()
        # A process without molecules would otherwise contribute an empty float tensor when states are
        # gathered, and concatenating it would round everybody's hashes.
        self.valid_keys.append(torch.empty(0, dtype=torch.int64, device=self.device))

    def update(self, molecules: Sequence[Molecule]) -> None:
        """Add molecules.

        Args:
            molecules: Everything that was requested, failures included.
        """
        perceptions = perceive_all(molecules)
        keys = [hash_key(molecule_key(found.mol)) for found in perceptions if found.mol is not None]
        reasons = [REJECT_REASONS.index(found.reason) for found in perceptions if found.reason is not None]
        rejected = np.bincount(np.array(reasons, dtype=np.int64), minlength=len(REJECT_REASONS))
        edm = edm_stability(molecules)
        self.valid_keys.append(torch.tensor(keys, dtype=torch.int64, device=self.device))
        self.num_requested += len(molecules)
        self.num_valid += len(keys)
        self.num_charged_carbon += sum(found.mol is not None and has_charged_carbon(found.mol) for found in perceptions)
        self.num_connected += sum(found.is_connected for found in perceptions)
        self.num_rejected += torch.from_numpy(rejected).to(self.device)
        self.num_atoms += int(edm.num_atoms.sum())
        self.num_stable_atoms += int(edm.num_stable_atoms.sum())
        self.num_stable += int(edm.is_stable.sum())
        self.num_valid_edm += int(edm.is_valid.sum())

    def compute(self) -> dict[str, Tensor]:
        """The metrics by name, each a scalar."""
        distinct_keys = torch.unique(dim_zero_cat(self.valid_keys))
        num_distinct = torch.tensor(len(distinct_keys), device=self.device)
        metrics = {
            "validity": _fraction(self.num_valid, self.num_requested),
            "uniqueness": _fraction(num_distinct, self.num_valid),
            "valid_unique": _fraction(num_distinct, self.num_requested),
            "charged_carbon": _fraction(self.num_charged_carbon, self.num_requested),
            "connected": _fraction(self.num_connected, self.num_requested),
            "atom_stability": _fraction(self.num_stable_atoms, self.num_atoms),
            "molecule_stability": _fraction(self.num_stable, self.num_requested),
            "validity_edm": _fraction(self.num_valid_edm, self.num_requested),
            "mean_atoms": _fraction(self.num_atoms, self.num_requested),
        }
        if self.train_keys is not None:
            num_novel = (~torch.isin(distinct_keys, self.train_keys)).sum()
            metrics["novelty"] = _fraction(num_novel, num_distinct)
        for reason, num_rejected in zip(REJECT_REASONS, self.num_rejected, strict=True):
            metrics[f"reject/{reason}"] = _fraction(num_rejected, self.num_requested)
        return metrics


def score_molecules(
    molecules: Sequence[Molecule | Chem.Mol | None], train_keys: Tensor | None = None
) -> dict[str, float]:
    """The metrics of :class:`MoleculeGenerationMetrics` for molecules of any origin.

    Args:
        molecules: Molecules as generated, or RDKit molecules with a conformer, of which only elements and positions
            are used: hydrogens must be atoms. Pass failures as well, None among them,
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
    return Molecule(numbers, mol.GetConformer().GetPositions())


def _fraction(count: Tensor, total: Tensor) -> Tensor:
    return count / total.clamp(min=1)
