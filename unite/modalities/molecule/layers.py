"""Layers that read and write bonds: a graph convolution before the tokens, a pair head after the decoder.

Letters: B molecules, A atoms of the largest one, N atoms in all, E directed edges, P = A (A - 1) / 2 pairs, D width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GINEConv

from unite.modalities.molecule.graph import BOND_TYPES


@dataclass(frozen=True)
class PreparedGraph:
    """Bonds and charges of a padded batch.

    Attributes:
        charges: Formal charges, shape (B, A); 0 where padded.
        bonds: Type of every pair in the order of :func:`pair_indices`, shape (B, P); 0 for none and where padded.
        edge_index: Bonded atoms in both directions, numbers of padded places 0 .. B * A - 1, shape (2, E).
        edge_types: Their types, shape (E,).
    """

    charges: Tensor
    bonds: Tensor
    edge_index: Tensor
    edge_types: Tensor


@dataclass(frozen=True)
class GraphPrediction:
    """What the decoder says of bonds and charges.

    Attributes:
        bond_logits: Scores of the bond types of every pair in the order of :func:`pair_indices`, shape (B, P, 5).
        charge_logits: Scores of the formal charges from the lowest to the highest, shape (B, A, 2 max_charge + 1).
    """

    bond_logits: Tensor
    charge_logits: Tensor

    @property
    def bonds(self) -> Tensor:
        """Most likely types, shape (B, P)."""
        return self.bond_logits.argmax(dim=-1)

    @property
    def charges(self) -> Tensor:
        """Most likely charges, shape (B, A)."""
        return self.charge_logits.argmax(dim=-1) - self.charge_logits.shape[-1] // 2


class GraphConvolution(nn.Module):
    """Atoms that have seen their bonds: residual layers of GINE (Hu et al. 2020, arXiv:1905.12265).

    Relabelling the atoms relabels the result, and atoms without edges, padding among them, change no other.

    Args:
        width: Channels D.
        depth: Number of layers.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.bond_embedding = nn.Embedding(len(BOND_TYPES), width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.convolutions = nn.ModuleList(
            GINEConv(nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)))
            for _ in range(depth)
        )

    def forward(self, atoms: Tensor, edge_index: Tensor, edge_types: Tensor) -> Tensor:
        """Updated atoms (N, D) from atoms (N, D), edges (2, E) and their types (E,)."""
        edges = self.bond_embedding(edge_types)
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            atoms = atoms + convolution(norm(atoms), edge_index, edges)
        return atoms


class PairHead(nn.Module):
    """Scores of the bond types of every pair of atoms.

    A pair is told by the sum and the product of projections of its atoms, which do not depend on the order of the two,
    and only pairs i < j are computed. Memory grows with the square of the atoms here and, outside attention, nowhere
    else.

    Args:
        width: Channels of the decoder.
        pair_width: Channels R of a pair.
    """

    def __init__(self, width: int, pair_width: int) -> None:
        super().__init__()
        self.sum_in = nn.Linear(width, pair_width)
        self.product_in = nn.Linear(width, pair_width)
        self.bond_head = nn.Linear(pair_width, len(BOND_TYPES))

    def forward(self, atoms: Tensor) -> Tensor:
        """Logits (B, P, 5) from atoms (B, A, width)."""
        first, second = pair_indices(atoms.shape[1], atoms.device)
        summands, factors = self.sum_in(atoms), self.product_in(atoms)  # (B, A, R)
        pairs = summands[:, first] + summands[:, second] + factors[:, first] * factors[:, second]  # (B, P, R)
        logits: Tensor = self.bond_head(F.gelu(pairs))
        return logits


class BondReader(nn.Module):
    """Decoded atoms that know their bonds: how many of each type they have, which settles most hydrogens and charges.

    Types and bonds that are decoded side by side disagree where the latents are not exact: a carbon of three hydrogens
    gets two bonds. Decoded one after the other, p(bonds | z) p(types | z, bonds), they agree.

    Args:
        width: Channels of the decoder.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.atoms_in = nn.Linear(width, width)
        self.counts_in = nn.Linear(len(BOND_TYPES) - 1, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, atoms: Tensor, bonds: Tensor, mask: Tensor) -> Tensor:
        """Updated atoms (B, A, width) from atoms, bond types of all pairs (B, P) and the mask of atoms (B, A)."""
        first, second = pair_indices(atoms.shape[1], atoms.device)
        is_type = F.one_hot(bonds * pair_mask(mask), len(BOND_TYPES))[..., 1:].to(atoms)  # (B, P, 4)
        counts = atoms.new_zeros(*mask.shape, is_type.shape[-1])
        counts = counts.index_add(1, first, is_type).index_add(1, second, is_type)
        updated: Tensor = atoms + self.out(F.gelu(self.atoms_in(atoms) + self.counts_in(counts)))
        return updated


def pair_indices(num_atoms: int, device: torch.device | None = None) -> Tensor:
    """First and second atom of every pair i < j, row by row of the upper triangle, shape (2, P)."""
    return torch.triu_indices(num_atoms, num_atoms, 1, device=device)


def pair_mask(mask: Tensor) -> Tensor:
    """True for pairs of real atoms, shape (B, P), from the mask of atoms (B, A)."""
    first, second = pair_indices(mask.shape[1], mask.device)
    return mask[:, first] & mask[:, second]


def pairs_to_matrix(pairs: Tensor, num_atoms: int) -> Tensor:
    """Symmetric matrices (B, A, A) with a zero diagonal of values of pairs (B, P)."""
    first, second = pair_indices(num_atoms, pairs.device)
    matrix = pairs.new_zeros(len(pairs), num_atoms, num_atoms)
    matrix[:, first, second] = pairs
    matrix[:, second, first] = pairs
    return matrix


def are_connected(bonds: Tensor, mask: Tensor) -> Tensor:
    """Whether each molecule is one piece, shape (B,), from bond types (B, A, A) and the mask of atoms (B, A).

    Reach doubles with each matrix product, so a chain of 200 atoms takes eight.
    """
    num_atoms = mask.shape[1]
    reach = ((bonds > 0) | torch.eye(num_atoms, dtype=torch.bool, device=mask.device)).float()
    for _ in range(max(num_atoms - 1, 1).bit_length()):
        reach = (reach @ reach > 0).float()
    return ((reach[:, 0] > 0) | ~mask).all(dim=1)
