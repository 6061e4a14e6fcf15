"""Terms of the reconstruction loss of crystals. Letters: B crystals, A atoms of the largest one, E elements."""

from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

from unite.modalities.crystal.preparation import CrystalPrediction, PreparedCrystals, as_circles

IGNORED = -100
"""Target that cross-entropy leaves out."""


def loss_terms(prediction: CrystalPrediction, prepared: PreparedCrystals, columns: Tensor) -> dict[str, Tensor]:
    """Cross-entropies of elements and their columns; squared errors of places, and of lengths and angles of the cell.

    Places are compared as points of a circle whose circumference is the length of the cell vector: near the truth
    the error is that of the place in Å, and a place and its periodic images are one.

    Args:
        prediction: What was decoded.
        prepared: The crystals.
        columns: Column of the periodic table of each element, shape (E + 1,); see :func:`column_loss`.

    Returns:
        Scalars: ``types``, ``columns``, ``positions`` (Å squared, along the cell vectors, summed over them),
        ``lengths``, ``angles`` (both standardised).
    """
    mask = prepared.mask
    types = torch.where(mask, prepared.atomic_numbers, IGNORED)
    chords = (prediction.circles - as_circles(prepared.fractional)).square().sum(dim=-1)  # (B, A, 3)
    squared = (chords * (prepared.lengths[:, None] / (2 * pi)).square()).sum(dim=-1)
    cell_error = (prediction.cell - prepared.cell).square()
    return {
        "types": F.cross_entropy(prediction.type_logits.transpose(1, 2), types, ignore_index=IGNORED),
        "columns": column_loss(prediction.type_logits, prepared.atomic_numbers, mask, columns),
        "positions": (squared * mask).sum() / mask.sum(),
        "lengths": cell_error[:, :3].mean(),
        "angles": cell_error[:, 3:].mean(),
    }


def column_loss(logits: Tensor, numbers: Tensor, mask: Tensor, columns: Tensor) -> Tensor:
    """Cross-entropy of the column of the periodic table that each atom's element is in.

    Elements of a column form ions of the same charge. With this term, latents keep elements of different columns
    further apart than those of one column, so an error of a generated latent is more often one that leaves the charges
    in balance.

    Args:
        logits: Scores of the elements, shape (B, A, E + 1).
        numbers: Atomic numbers, shape (B, A).
        mask: True where an atom is real, shape (B, A).
        columns: Column of each element, shape (E + 1,).
    """
    is_other = columns != columns[numbers][..., None]  # (B, A, E + 1)
    log_probability = logits.log_softmax(dim=-1).masked_fill(is_other, -torch.inf).logsumexp(dim=-1)  # (B, A)
    return -(log_probability * mask).sum() / mask.sum()
