"""Agreement of decoded molecules with the encoded ones."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torchmetrics import Metric

from unite.modalities.molecule.metrics.shares import share

_TOLERANCES: Final = {"match_rate": 0.1, "match_rate_005": 0.05, "match_rate_03": 0.3}  # Å


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
            **{name: share(count, self.num_molecules) for name, count in matches},
            "rmsd": self.rmsd_sum / self.num_measured,
            "rmsd_unaligned": self.rmsd_unaligned_sum / self.num_measured,
            "type_accuracy": share(self.num_correct_atoms, self.num_atoms),
            "type_correct": share(self.num_type_correct, self.num_molecules),
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
