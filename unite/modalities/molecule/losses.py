"""How far decoded molecules are from the true ones."""

import torch
import torch.nn.functional as F
from torch import Tensor

from unite.modalities.atoms import pair_distances
from unite.modalities.molecule.layers import pair_mask
from unite.modalities.molecule.preparation import MoleculePrediction, PreparedMolecules


def reconstruction_terms(
    prediction: MoleculePrediction,
    prepared: PreparedMolecules,
    has_positions: bool,
    distance_cutoff: float,
    max_charge: int,
    none_weight: float,
) -> dict[str, Tensor]:
    """Terms of the reconstruction loss by name; see the adapter's ``reconstruction_loss`` and its arguments."""
    mask = prepared.mask
    types = torch.where(mask, prepared.types, -100)
    terms = {"types": F.cross_entropy(prediction.type_logits.transpose(1, 2), types, ignore_index=-100)}
    if has_positions:
        pairs = mask[:, :, None] & mask[:, None]
        true_distances = pair_distances(prepared.positions)
        pairs = pairs & (true_distances < distance_cutoff) & (true_distances > 0)
        distance_error = (pair_distances(prediction.positions) - true_distances).square()
        position_error = (prediction.positions - prepared.positions).square().sum(dim=-1)
        terms["positions"] = (position_error * mask).sum() / mask.sum()
        terms["distances"] = (distance_error * pairs).sum() / pairs.sum().clamp(min=1)
    if prediction.graph is not None and prepared.graph is not None:
        made, true = prediction.graph, prepared.graph
        charges = torch.where(mask, true.charges + max_charge, -100)
        terms["bonds"] = bond_loss(made.bond_logits, true.bonds, pair_mask(mask), none_weight)
        terms["charges"] = F.cross_entropy(made.charge_logits.transpose(1, 2), charges, ignore_index=-100)
    return terms


def bond_loss(logits: Tensor, bonds: Tensor, mask: Tensor, none_weight: float) -> Tensor:
    """Cross-entropy of bond types, summed over pairs and divided by the number of bonds.

    A mean over pairs would let the many pairs without a bond drown the others, the more so the larger the molecule.

    Args:
        logits: Scores, shape (B, P, 5).
        bonds: True types, shape (B, P).
        mask: True for pairs of real atoms, shape (B, P).
        none_weight: Weight of a pair without a bond against one with.
    """
    errors = F.cross_entropy(logits.transpose(1, 2), bonds, reduction="none")  # (B, P)
    is_bond = (bonds > 0) & mask
    weights = torch.where(is_bond, 1.0, none_weight) * mask
    return (weights * errors).sum() / is_bond.sum().clamp(min=1)
