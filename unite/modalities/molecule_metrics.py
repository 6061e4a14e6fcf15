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
from unite.modalities.molecule_perception import (
    REJECT_REASONS,
    Molecule,
    edm_stability,
    has_charged_carbon,
    hash_key,
    molecule_key,
    perceive_all,
)

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
_TOLERANCES: Final = {"match_rate": 0.1, "match_rate_005": 0.05, "match_rate_03": 0.3}  # Å


class MoleculeGenerationMetrics(Metric):
    """Quality of generated molecules, judged from elements and coordinates alone.

    Every fraction except uniqueness, novelty and atom stability is of the molecules *passed*; pass all that
    were requested, including the empty and the non-finite. In brackets, what 10,000 molecules of QM9 score.

    - ``validity``: accepted by :func:`~unite.modalities.molecule_perception.perceive` (99.99 %).
    - ``uniqueness``: distinct keys among valid molecules (99.99 %); falls with the number of samples.
    - ``valid_unique``: distinct valid keys (99.98 %).
    - ``charged_carbon``: valid, but with a charge on a carbon (0.02 %). The protocol accepts such ions where hydrogen
      counts and geometry disagree; subtract them from ``validity`` for a figure that does not.
    - ``novelty``: distinct valid keys that are not in ``train_keys``, among distinct valid keys; only with
      ``train_keys``. Not a quality: QM9 enumerates its space, and good samples are often known.
    - ``connected``: one piece, whatever its valences (> 99.9 %).
    - ``atom_stability`` (99.3 %, of all atoms), ``molecule_stability`` (95.2 %), ``validity_edm`` (97.5 %):
      by EDM's distance table, see :class:`~unite.modalities.molecule_perception.EdmStability`.
    - ``mean_atoms``: atoms per molecule, counted hydrogens included (18.0).
    - ``reject/<reason>``: rejected for this reason, one entry for each of
      :data:`~unite.modalities.molecule_perception.REJECT_REASONS`.

    Values with nothing to divide by (uniqueness of no valid molecules) are zero.

    Args:
        train_keys: Hashed keys (:func:`~unite.modalities.molecule_perception.hash_key`) of the training
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


class MoleculeReconstructionMetrics(Metric):
    """Agreement of decoded molecules with the encoded ones, atom by atom (the decoder keeps their order).

    - ``match_rate``: all types equal and RMSD below 0.1 Å after the best rotation and shift. The tolerance is
      our choice, not one from the literature. ``match_rate_005`` and ``match_rate_03``: with 0.05 Å and 0.3
      Å.
    - ``type_accuracy``: atoms of the right type. ``type_correct``: molecules with all types right.
    - ``rmsd``: mean RMSD in Å after the best rotation and shift, over molecules with all types right and
      finite positions. ``rmsd_unaligned``: the same without rotating or shifting. Both NaN if there is no
      such molecule.

    Mirror images do not match. Molecules with a non-finite position match at no tolerance.
    """

    full_state_update = False
    is_differentiable = False

    num_molecules: Tensor
    num_atoms: Tensor
    num_correct_atoms: Tensor
    num_type_correct: Tensor
    num_matches: Tensor  # (len(_TOLERANCES),)
    num_measured: Tensor
    rmsd_sum: Tensor
    rmsd_unaligned_sum: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("num_molecules", "num_atoms", "num_correct_atoms", "num_type_correct", "num_measured"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("num_matches", torch.zeros(len(_TOLERANCES), dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("rmsd_sum", "rmsd_unaligned_sum"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(
        self,
        predicted_types: Tensor,
        predicted_positions: Tensor,
        true_types: Tensor,
        true_positions: Tensor,
        mask: Tensor,
    ) -> None:
        """Add a batch.

        Args:
            predicted_types: Types of the decoded atoms, shape (B, N).
            predicted_positions: Positions of the decoded atoms in Å, shape (B, N, 3).
            true_types: Types of the encoded atoms, shape (B, N).
            true_positions: Positions of the encoded atoms in Å, shape (B, N, 3).
            mask: True for real atoms, shape (B, N); what stands elsewhere is ignored. Molecules without any
                real atom are not counted.
        """
        has_atoms = mask.any(-1)  # (B,)
        is_correct = (predicted_types == true_types) & mask  # (B, N)
        is_type_correct = (is_correct | ~mask).all(-1) & has_atoms
        rmsd = kabsch_rmsd(predicted_positions, true_positions, mask)  # (B,), inf where not finite
        unaligned = _unaligned_rmsd(predicted_positions, true_positions, mask)
        is_measured = is_type_correct & rmsd.isfinite() & unaligned.isfinite()
        self.num_molecules += has_atoms.sum()
        self.num_atoms += mask.sum()
        self.num_correct_atoms += is_correct.sum()
        self.num_type_correct += is_type_correct.sum()
        self.num_matches += torch.stack([(is_type_correct & (rmsd < limit)).sum() for limit in _TOLERANCES.values()])
        self.num_measured += is_measured.sum()
        self.rmsd_sum += rmsd[is_measured].sum().to(self.rmsd_sum)
        self.rmsd_unaligned_sum += unaligned[is_measured].sum().to(self.rmsd_sum)

    def compute(self) -> dict[str, Tensor]:
        """The metrics by name, each a scalar."""
        matches = zip(_TOLERANCES, self.num_matches, strict=True)
        return {
            **{name: _fraction(count, self.num_molecules) for name, count in matches},
            "rmsd": self.rmsd_sum / self.num_measured,
            "rmsd_unaligned": self.rmsd_unaligned_sum / self.num_measured,
            "type_accuracy": _fraction(self.num_correct_atoms, self.num_atoms),
            "type_correct": _fraction(self.num_type_correct, self.num_molecules),
        }


def kabsch_rmsd(predicted: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Root mean square distance of paired points after the best rotation and shift of one of the sets.

    With the singular values :math:`s_1 \ge s_2 \ge s_3` of the covariance :math:`H = P^T Q` of the centred
    points, :math:`n\,\mathrm{rmsd}^2 = |P|^2 + |Q|^2 - 2 (s_1 + s_2 + \mathrm{sign}(\det H)\, s_3)` (Kabsch
    1976). The sign keeps to proper rotations: a mirror image is a different molecule. Computed in float64.

    Args:
        predicted: Points, shape (B, N, 3).
        target: Points, shape (B, N, 3).
        mask: True for the points that count, shape (B, N); None counts all.

    Returns:
        RMSD in the units of the input, float64 of shape (B,); infinite where a point that counts is not
        finite, zero where none counts.
    """
    points, reference, weights = _prepare(predicted, target, mask)
    num_points = weights.sum(1).clamp(min=1)  # (B, 1)
    points = (points - points.sum(1, keepdim=True) / num_points[:, None]) * weights
    reference = (reference - reference.sum(1, keepdim=True) / num_points[:, None]) * weights
    covariance = points.mT @ reference  # (B, 3, 3)
    is_finite = covariance.isfinite().all(-1).all(-1)
    covariance = covariance.where(is_finite[:, None, None], 0.0)
    singular_values = torch.linalg.svdvals(covariance)  # (B, 3), descending
    largest = singular_values[:, 0].clamp(min=torch.finfo(torch.float64).tiny)
    sign = torch.linalg.det(covariance / largest[:, None, None]).sign()  # scaled, or it would underflow
    overlap = singular_values[:, 0] + singular_values[:, 1] + sign * singular_values[:, 2]
    squared = (points.square() + reference.square()).sum((1, 2)) - 2 * overlap
    rmsd: Tensor = (squared.clamp(min=0) / num_points[:, 0]).sqrt()
    return _onto(predicted.device, rmsd.where(is_finite & rmsd.isfinite(), torch.inf))


def _unaligned_rmsd(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Root mean square distance of paired points as they are, shape (B,); infinite where not finite."""
    points, reference, weights = _prepare(predicted, target, mask)
    rmsd = ((points - reference).square().sum((1, 2)) / weights.sum((1, 2)).clamp(min=1)).sqrt()
    return _onto(predicted.device, rmsd.where(rmsd.isfinite(), torch.inf))


def _onto(device: torch.device, values: Tensor) -> Tensor:
    """Values on the device; in float32 where it has no float64."""
    return values.float().to(device) if device.type == "mps" else values.to(device)


def _prepare(predicted: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Both sets in float64 with zeros where the mask is False, and the mask as weights of shape (B, N, 1)."""
    if predicted.device.type == "mps":  # has no float64
        predicted, target, mask = predicted.cpu(), target.cpu(), None if mask is None else mask.cpu()
    if mask is None:
        mask = torch.ones(predicted.shape[:2], dtype=torch.bool, device=predicted.device)
    keep = mask[..., None]
    return predicted.double().where(keep, 0.0), target.double().where(keep, 0.0), keep.double()


def _fraction(count: Tensor, total: Tensor) -> Tensor:
    return count / total.clamp(min=1)
