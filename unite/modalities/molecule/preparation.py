"""Molecules as tensors: padded batches from PyG's, and finished molecules from what a decoder returns.

Letters: B molecules, A atoms of the largest one, T atom types.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from rdkit import Chem
from torch import Tensor
from torch_geometric.data import Batch

from unite.errors import UserError, require
from unite.modalities.atoms import ATOMIC_NUMBERS, centre, full_precision, padded, random_rotations
from unite.modalities.molecule.batches import known_largest
from unite.modalities.molecule.generated import GeneratedGraph, GeneratedMolecule
from unite.modalities.molecule.graph import check_bond_types
from unite.modalities.molecule.layers import (
    GraphPrediction,
    PreparedGraph,
    are_connected,
    pair_indices,
    pairs_to_matrix,
)


def max_hydrogens(atomic_number: int) -> int:
    """Most hydrogens that a united atom may carry: its usual valence by RDKit, where that is above one.

    The one bond of a halogen ties it to its molecule; metals and noble gases have none.
    """
    valence = int(Chem.GetPeriodicTable().GetDefaultValence(atomic_number))
    return valence if valence > 1 else 0


MOST_HYDROGENS = max(max_hydrogens(number) for number in ATOMIC_NUMBERS.values())


@dataclass(frozen=True)
class PreparedMolecules:
    """A padded batch of molecules, centred.

    Attributes:
        types: Indices into the type vocabulary, shape (B, A); 0 where padded.
        positions: Positions in Å, shape (B, A, 3); 0 where padded, and everywhere if the view is without positions.
        mask: True where an atom is real, shape (B, A).
        graph: Bonds and charges, or None if the view is without bonds.
        is_full: Whether all molecules are of one size, so that the mask hides nothing.
        properties: What the samples have as ``y``, shape (B, properties), or None.
        captions: What the samples have as ``caption``, one for each, or None.
    """

    types: Tensor
    positions: Tensor
    mask: Tensor
    graph: PreparedGraph | None = None
    is_full: bool = False
    properties: Tensor | None = None
    captions: Sequence[str | None] | None = None


@dataclass(frozen=True)
class MoleculePrediction:
    """What the decoder says of a batch of molecules.

    Attributes:
        type_logits: Scores of the atom types, shape (B, A, T).
        positions: Positions in Å, shape (B, A, 3), centred over real atoms; 0 if the view is without positions.
        mask: True where an atom is real, shape (B, A).
        graph: Bonds and charges, or None if the view is without bonds.
        atoms: Channels of the decoded atoms that all this is read from, shape (B, A, D), or None.
    """

    type_logits: Tensor
    positions: Tensor
    mask: Tensor
    graph: GraphPrediction | None = None
    atoms: Tensor | None = None

    @property
    def types(self) -> Tensor:
        """Most likely types, shape (B, A)."""
        return self.type_logits.argmax(dim=-1)


def vocabulary(elements: Sequence[str], hydrogens: str) -> list[tuple[int, int]]:
    """Pairs of atomic number and hydrogen count."""
    if hydrogens == "explicit":
        return [(ATOMIC_NUMBERS[symbol], 0) for symbol in elements]
    heavy = [ATOMIC_NUMBERS[symbol] for symbol in elements if symbol != "H"]
    return [(number, count) for number in heavy for count in range(max_hydrogens(number) + 1)]


def row_names(
    vocabulary: Sequence[tuple[int, int]], max_charge: int, num_atoms: int, num_registers: int
) -> dict[str, list[Hashable]]:
    """What the rows of an adapter's parameters stand for, by name of the parameter.

    Args:
        vocabulary: Atomic number and hydrogen count of each type.
        max_charge: Largest charge of an atom.
        num_atoms: Most atoms of a molecule.
        num_registers: Most registers of a molecule.
    """
    symbols = {number: symbol for symbol, number in ATOMIC_NUMBERS.items()}
    types: list[Hashable] = [f"{symbols[number]}H{count}" for number, count in vocabulary]
    charges: list[Hashable] = [f"{charge:+d}" for charge in range(-max_charge, max_charge + 1)]
    return {
        **dict.fromkeys(("type_embedding.weight", "type_head.weight", "type_head.bias"), types),
        **dict.fromkeys(("charge_embedding.weight", "charge_head.weight", "charge_head.bias"), charges),
        "place_embedding.weight": [f"place {number}" for number in range(num_atoms)],
        "register_embedding": [f"place {number}" for number in range(num_registers)],
    }


def type_table(vocabulary: Sequence[tuple[int, int]]) -> Tensor:
    """Index of a type by atomic number and hydrogen count, shape (128, H); -1 where there is none."""
    table = torch.full((128, MOST_HYDROGENS + 2), -1)
    for index, (atomic_number, num_hydrogens) in enumerate(vocabulary):
        table[atomic_number, num_hydrogens] = index
    return table


@dataclass(frozen=True)
class Preparation:
    """Makes padded tensors of PyG's batches, and finished molecules of tensors, as the view of an adapter has it.

    Attributes:
        hydrogens: Whether hydrogens are atoms, or counted on the heavy ones.
        positions: Whether molecules have a shape.
        bonds: Whether they have bonds and charges.
        max_atoms: Most atoms of a molecule.
        max_charge: Largest charge of an atom.
    """

    hydrogens: Literal["explicit", "counted"]
    positions: bool
    bonds: bool
    max_atoms: int
    max_charge: int

    def __call__(
        self, samples: Batch, type_table: Tensor, rotate: bool = False, check: bool = True
    ) -> PreparedMolecules:
        """Pad, centre and rotate.

        Args:
            samples: Molecules as the datamodule yields them.
            type_table: What :func:`type_table` gives, on their device.
            rotate: Turn each molecule by a random rotation.
            check: Look at the values, for which a GPU waits.

        Raises:
            UserError: They do not fit the view; see :meth:`MoleculeAdapter.prepare`.
        """
        sizes = samples.ptr.diff()
        if check and int(sizes.sum()) != len(samples.z):
            raise UserError(
                f"the samples have {len(samples.z)} atoms, but PyG counts {int(sizes.sum())} nodes: "
                "without pos, each Data needs num_nodes"
            )
        if check and bool((sizes == 0).any()):
            raise UserError(f"molecule {int((sizes == 0).nonzero()[0])} of the batch has no atoms: leave it out")
        largest = known_largest(samples)
        num_atoms = int(sizes.max()) if largest is None else largest
        require(
            num_atoms <= self.max_atoms, f"a molecule of {num_atoms} atoms, but max_atoms is {self.max_atoms}: raise it"
        )
        place_in_molecule = torch.arange(len(samples.z), device=sizes.device) - samples.ptr[samples.batch]
        places = samples.batch * num_atoms + place_in_molecule  # (atoms,), numbers in the padded batch
        mask = torch.arange(num_atoms, device=sizes.device) < sizes[:, None]  # (B, A)
        types = padded(self._types(samples, type_table, check), places, mask)
        if self.positions:
            positions = centre(padded(self._positions(samples, check).float(), places, mask), mask)
            if rotate:
                # Under autocast the product would round coordinates to bfloat16, about 0.01 Å.
                with full_precision(positions.device):
                    positions = positions @ random_rotations(len(sizes), device=positions.device)
        else:
            positions = torch.zeros(*mask.shape, 3, device=mask.device)
        graph = self._graph(samples, places, mask, check) if self.bonds else None
        # Told by shapes alone: values would have to be waited for.
        is_full = len(samples.z) == len(sizes) * num_atoms
        return PreparedMolecules(types, positions, mask, graph, is_full, samples.get("y"), samples.get("caption"))

    def _positions(self, samples: Batch, check: bool) -> Tensor:
        if samples.get("pos") is None:
            raise UserError("the samples carry no pos; for molecular graphs without a shape set positions to false")
        positions: Tensor = samples.pos
        if check and bool((is_bad := ~positions.isfinite().all(dim=-1)).any()):
            number = int(samples.batch[is_bad.nonzero()[0]])
            raise UserError(
                f"molecule {number} of the batch has a position that is not finite: correct it or leave it out"
            )
        return positions

    def _graph(self, samples: Batch, places: Tensor, mask: Tensor, check: bool) -> PreparedGraph:
        missing = [name for name in ("edge_index", "edge_attr", "charge") if samples.get(name) is None]
        if missing:
            raise UserError(
                f"the adapter's bonds is true but the samples carry no {missing[0]}: "
                "set data.init_args.bonds to true, too"
            )
        num_molecules, num_atoms = mask.shape
        edge_types = samples.edge_attr.long()
        if check:
            check_bond_types(edge_types)
        edge_index = places[samples.edge_index]  # (2, E) places in the padded batch
        matrix = edge_types.new_zeros(num_molecules * num_atoms, num_atoms)
        matrix[edge_index[0], edge_index[1] % num_atoms] = edge_types
        matrix = matrix.view(num_molecules, num_atoms, num_atoms)
        charges = padded(samples.charge.long(), places, mask)
        if check:
            if int((matrix > 0).sum()) != len(edge_types):
                raise UserError("edge_index must hold every bond once in each direction, and none between molecules")
            self._check_graph(matrix, charges, mask)
        first, second = pair_indices(num_atoms, mask.device)
        return PreparedGraph(charges, matrix[:, first, second], edge_index, edge_types)

    def _check_graph(self, bonds: Tensor, charges: Tensor, mask: Tensor) -> None:
        """Refuse what no model of graphs is built for; ``bonds`` are matrices (B, A, A)."""
        if bool((bonds != bonds.mT).any()) or bool(bonds.diagonal(dim1=1, dim2=2).any()):
            raise UserError(
                "edge_index must hold every bond in both directions, with one type, and no atom with itself"
            )
        if bool((charges.abs() > self.max_charge).any()):
            largest = int(charges.flatten()[charges.abs().argmax()])
            raise UserError(f"an atom has the charge {largest:+d}, but max_charge is {self.max_charge}: raise it")
        if bool((total := charges.sum(dim=1)).any()):
            number = int(total.nonzero()[0])
            raise UserError(
                f"molecule {number} of the batch has the charge {int(total[number]):+d}; "
                "only molecules that are neutral in sum have a place here"
            )
        if bool((is_split := ~are_connected(bonds, mask)).any()):
            number = int(is_split.nonzero()[0])
            raise UserError(
                f"molecule {number} of the batch is not connected by its bonds: give one molecule at a time"
            )

    def _types(self, samples: Batch, type_table: Tensor, check: bool) -> Tensor:
        if self.hydrogens == "explicit":
            if "num_hydrogens" in samples:
                raise UserError(
                    "the samples are united atoms (they carry num_hydrogens), but the adapter's hydrogens is "
                    "'explicit': set both to the same"
                )
            counts = torch.zeros_like(samples.z)
        elif "num_hydrogens" in samples:
            counts = samples.num_hydrogens
        else:
            raise UserError(
                "the adapter's hydrogens is 'counted' but the samples carry no num_hydrogens: "
                "set data.init_args.hydrogens to 'counted', too"
            )
        # What the table does not have is looked up where it has no type, at atomic number 0.
        numbers = samples.z.where((samples.z > 0) & (samples.z < len(type_table)), 0)
        types = type_table[numbers, counts.clamp(min=-1, max=type_table.shape[1] - 1)]
        if check and bool((types < 0).any()):
            first = int((types < 0).nonzero()[0])
            kind = f"element {int(samples.z[first])}"
            if self.hydrogens == "counted":
                kind += f" with {int(counts[first])} hydrogens"
            raise UserError(
                f"an atom of {kind} is not among the types this model was built for: see elements, hydrogens"
            )
        return types

    def finished(
        self, kinds: Tensor, positions: Tensor, graph: PreparedGraph | GraphPrediction | None, sizes: Tensor
    ) -> list[GeneratedMolecule] | list[GeneratedGraph]:
        """Molecules without padding, or graphs alone if there are no positions.

        Args:
            kinds: Atomic number and hydrogen count of each atom, shape (B, A, 2).
            positions: Positions in Å, shape (B, A, 3).
            graph: Bonds of the pairs, shape (B, P), and charges, shape (B, A), or None.
            sizes: Numbers of atoms, shape (B,).
        """
        numbers = kinds.cpu().numpy()
        counts = numbers[..., 1] if self.hydrogens == "counted" else None
        places = positions.detach().cpu().double().numpy()
        graphs: list[GeneratedGraph] = []
        if graph is not None:
            matrices = pairs_to_matrix(graph.bonds, kinds.shape[1]).cpu().numpy()
            formal = graph.charges.cpu().numpy()
            graphs = [
                GeneratedGraph(
                    atomic_numbers=numbers[i, :size, 0],
                    bonds=matrices[i, :size, :size],
                    charges=formal[i, :size],
                    num_hydrogens=None if counts is None else counts[i, :size],
                )
                for i, size in enumerate(sizes.tolist())
            ]
        if not self.positions:
            return graphs
        return [
            GeneratedMolecule(
                atomic_numbers=numbers[i, :size, 0],
                positions=places[i, :size],
                num_hydrogens=None if counts is None else counts[i, :size],
                graph=graphs[i] if graphs else None,
            )
            for i, size in enumerate(sizes.tolist())
        ]
