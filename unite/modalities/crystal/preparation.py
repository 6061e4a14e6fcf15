"""Crystals as tensors for the network, and back. Letters: B crystals, A atoms of the largest one, E elements.

The network gets no absolute places: coordinates are those from the first atom on, so a cell that is shifted, or of
which some atoms are written in a neighbouring cell, gives the same tensors. The cell is given as lengths and angles,
which no rotation changes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor

from unite.errors import require
from unite.modalities.crystal.crystal import Crystal, as_crystal
from unite.modalities.crystal.data.table import CrystalBatch, table_of
from unite.modalities.crystal.elements import MAX_ELEMENT, NUMBERS


@dataclass(frozen=True)
class PreparedCrystals:
    """A padded batch of crystals.

    Attributes:
        atomic_numbers: Elements, shape (B, A); 0 where padded.
        fractional: Coordinates from the first atom on, in [0, 1), shape (B, A, 3); 0 where padded.
        cell: What :func:`cell_features` gives, shape (B, 6).
        lengths: Lengths of the cell in Å, shape (B, 3).
        mask: True where an atom is real, shape (B, A).
        is_full: Whether all crystals are of one size, so that the mask hides nothing.
        conditions: Columns of their conditions, shape (B, P), NaN where absent; None for a model without any.
    """

    atomic_numbers: Tensor
    fractional: Tensor
    cell: Tensor
    lengths: Tensor
    mask: Tensor
    is_full: bool = False
    conditions: Tensor | None = None


@dataclass(frozen=True)
class CrystalPrediction:
    """Output of the decoder for a batch of crystals.

    Attributes:
        type_logits: Scores of the elements, shape (B, A, E + 1); index 0 is no element.
        circles: A point of the plane for each coordinate, whose direction is the coordinate, shape (B, A, 3, 2).
        cell: Features of the cell, standardised, shape (B, 6).
        mask: True where an atom is real, shape (B, A).
    """

    type_logits: Tensor
    circles: Tensor
    cell: Tensor
    mask: Tensor

    @property
    def atomic_numbers(self) -> Tensor:
        """Most likely elements, shape (B, A)."""
        return self.type_logits.argmax(dim=-1)

    @property
    def fractional(self) -> Tensor:
        """Coordinates from the first atom on, in [0, 1), shape (B, A, 3)."""
        angles = torch.atan2(self.circles[..., 1].float(), self.circles[..., 0].float())
        fractional = angles / (2 * pi)
        wrapped: Tensor = (fractional - fractional[:, :1]) % 1.0
        return wrapped


def as_circles(fractional: Tensor) -> Tensor:
    """Cosine and sine of each coordinate, shape (..., 3, 2): nearby places of the torus are nearby points."""
    angles = 2 * pi * fractional
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def waves(fractional: Tensor, num_frequencies: int) -> Tensor:
    """Cosines and sines of one to ``num_frequencies`` periods a cell, shape (..., 6 num_frequencies)."""
    frequencies = torch.arange(1, num_frequencies + 1, device=fractional.device)
    angles = 2 * pi * fractional[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).flatten(-2)


def cell_features(cell: Tensor, sizes: Tensor) -> Tensor:
    """A cell as numbers of like scale: logarithms of lengths that one atom would have, angles in radians, shape (B, 6).

    Args:
        cell: Lengths in Å and angles in degrees, shape (B, 6).
        sizes: Atoms of each cell, shape (B,).
    """
    lengths = cell[:, :3].log() - sizes[:, None].to(cell.dtype).log() / 3
    return torch.cat([lengths, torch.deg2rad(cell[:, 3:])], dim=1)


def cell_of(features: Tensor, sizes: Tensor) -> Tensor:
    """Inverse of :func:`cell_features`; angles are kept between 1 and 179 degrees."""
    lengths = (features[:, :3] + sizes[:, None].to(features.dtype).log() / 3).exp()
    return torch.cat([lengths, torch.rad2deg(features[:, 3:]).clamp(1, 179)], dim=1)


def shares_of_elements(numbers: Tensor) -> Tensor:
    """Share of each element in crystals (B, A), 0 where padded; shape (B, E + 1), of which column 0 is 0."""
    counts = F.one_hot(numbers, MAX_ELEMENT + 1).sum(dim=1).float()
    counts[:, 0] = 0
    return counts / counts.sum(dim=1, keepdim=True)


def read_formula(text: str) -> Tensor:
    """Atomic numbers of the atoms of a formula such as ``BaTiO3``, shape (A,).

    Raises:
        UserError: It is none, has brackets, or an element that there is not.
    """
    parts = re.findall(r"([A-Z][a-z]?)(\d*)", text)
    is_formula = bool(parts) and "".join(symbol + number for symbol, number in parts) == text
    require(is_formula, f"composition is {text!r}; it takes a formula without brackets, such as BaTiO3")
    atoms: list[int] = []
    for symbol, number in parts:
        require(symbol in NUMBERS, f"composition is {text!r}, but {symbol} is no element that crystals can have")
        atoms += [NUMBERS[symbol]] * (int(number) if number else 1)
    require(bool(atoms), f"composition is {text!r}, which has no atom")
    return torch.tensor(atoms)


def batch_of(objects: Sequence[object]) -> CrystalBatch:
    """Crystals in any of the accepted forms as the batch that datamodules yield; see :func:`as_crystal`."""
    table = table_of([as_crystal(item) for item in objects])
    return table.batch(torch.arange(len(table)))


def shuffled(numbers: Tensor, fractional: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Atoms (B, A) and their coordinates in random order, the real ones before the padding."""
    order = (torch.rand(mask.shape, device=mask.device) + ~mask).argsort(dim=1)
    return numbers.gather(1, order), fractional.gather(1, order[..., None].expand_as(fractional))


def finished(numbers: Tensor, fractional: Tensor, cell: Tensor, sizes: Tensor) -> list[Crystal]:
    """Crystals without padding.

    Args:
        numbers: Elements, shape (B, A).
        fractional: Coordinates, shape (B, A, 3).
        cell: Lengths in Å and angles in degrees, shape (B, 6).
        sizes: Atoms of each, shape (B,).
    """
    elements = numbers.clamp(0, MAX_ELEMENT).cpu().numpy()
    places, cells = fractional.detach().double().cpu().numpy(), cell.detach().double().cpu().numpy()
    return [Crystal(elements[i, :size], places[i, :size], cells[i]) for i, size in enumerate(sizes.tolist())]
