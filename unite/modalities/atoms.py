"""What molecules and crystals share: padding, sizes, centring, rotations, distances. Letters: B samples, A atoms."""

import torch
import torch.nn.functional as F
from rdkit import Chem
from torch import Tensor

from unite.errors import UserError

ATOMIC_NUMBERS = {Chem.GetPeriodicTable().GetElementSymbol(number): number for number in range(1, 119)}
"""All elements by symbol, in the order of their numbers."""


def full_precision(device: torch.device) -> torch.autocast:
    """No mixed precision: bfloat16 would round positions of a few Å by hundredths."""
    return torch.autocast(device.type, enabled=False)


def padded(values: Tensor, places: Tensor, mask: Tensor) -> Tensor:
    """Values of the atoms (N, ...) at their places of the padded batch, shape (B, A, ...); 0 where padded.

    What ``result[mask] = values`` does, without making a GPU count the places first.

    Args:
        values: Values, shape (N, ...).
        places: Place b * A + a of each atom, shape (N,).
        mask: True where an atom is real, shape (B, A).
    """
    result = values.new_zeros(mask.numel(), *values.shape[1:])
    result[places] = values
    return result.view(*mask.shape, *values.shape[1:])


def draw_sizes(counts: Tensor, num_samples: int, generator: torch.Generator | None, what: str) -> Tensor:
    """Numbers of atoms (num_samples,) as often as in the training data.

    Args:
        counts: Training samples by number of atoms, shape (largest + 1,).
        num_samples: How many to draw.
        generator: CPU generator of the draws. More samples only add to those that fewer would give.
        what: What they are called, for the message.

    Raises:
        UserError: There are no counts.
    """
    weights = counts.cpu().double()
    if weights.sum() == 0:
        raise UserError(f"this model has seen no data, so sizes of {what} are unknown: train or load it first")
    # Not torch.multinomial: its first draws depend on how many follow.
    drawn = torch.rand(num_samples, dtype=torch.float64, generator=generator) * weights.sum()
    return torch.searchsorted(weights.cumsum(0), drawn, right=True)


def centre(positions: Tensor, mask: Tensor) -> Tensor:
    """Shift the mean of the real atoms to zero; padded atoms become zero. Shapes (B, A, 3) and (B, A)."""
    weights = mask[..., None].to(positions.dtype)
    mean = (positions * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)
    return (positions - mean) * weights


def random_rotations(num: int, device: torch.device) -> Tensor:
    """Rotation matrices (num, 3, 3), uniform over all rotations: unit quaternions with normal components."""
    quaternions = F.normalize(torch.randn(num, 4, device=device), dim=-1)
    w, x, y, z = quaternions.unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def superposed(positions: Tensor, onto: Tensor) -> Tensor:
    """Positions after the rotation and shift that bring them closest to others (Kabsch 1976); no mirror images.

    Args:
        positions: Positions (P, 3), the same for all samples.
        onto: Positions of the same atoms in each sample, shape (B, P, 3).

    Returns:
        The moved positions, shape (B, P, 3).
    """
    place = onto.mean(dim=1, keepdim=True)
    centred = positions - positions.mean(dim=0)
    left, _, right = torch.linalg.svd(centred.T @ (onto - place))  # of matrices (B, 3, 3)
    left[..., 2] = left[..., 2] * (torch.linalg.det(left) * torch.linalg.det(right))[:, None]
    moved: Tensor = centred @ left @ right + place
    return moved


def pair_distances(positions: Tensor) -> Tensor:
    """Distances (B, A, A) of all pairs, in Å; the gradient at zero distance is zero."""
    squared = (positions[:, :, None] - positions[:, None]).square().sum(dim=-1)
    is_zero = squared == 0
    return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, squared).sqrt())
