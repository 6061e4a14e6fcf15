"""torchmetrics for molecular graphs: what is generated, judged from predicted bonds, and how well it is reconstructed.

Their names end in ``_bonds`` where the same is measured from positions in
:mod:`~unite.modalities.molecule.metrics.generation`; the two are not to be compared with one another.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.wrappers.abstract import WrapperMetric

from unite.modalities.molecule.graph import BOND_TYPES, GRAPH_REJECT_REASONS, Assembly, MolecularGraph, assemble
from unite.modalities.molecule.layers import pair_mask
from unite.modalities.molecule.metrics.counter import GenerationCounter
from unite.modalities.molecule.metrics.shares import share
from unite.modalities.molecule.perception.molecule import (
    Molecule,
    Perception,
    molecule_key,
)
from unite.modalities.molecule.perception.perceive import perceive_all


class GraphGenerationMetrics(GenerationCounter):
    """Quality of generated molecules, judged from their predicted bonds alone.

    Every fraction except uniqueness and novelty is of the molecules *passed*; pass all that were requested.

    - ``validity_bonds``: accepted by :func:`~unite.modalities.molecule.graph.assemble`: RDKit sanitizes the molecule
      as it was predicted, one piece, neutral in sum, no radicals, no hydrogens but those predicted.
    - ``uniqueness_bonds``: distinct keys among valid molecules; falls with the number of samples.
    - ``valid_unique_bonds``: distinct valid keys.
    - ``charged_carbon_bonds``: valid, but with a charge on a carbon.
    - ``neutral_bonds``: valid without such a charge; ``neutral_unique_bonds``: distinct ones among them.
    - ``mean_rings_bonds``: rings of a valid molecule.
    - ``novelty_bonds``: distinct valid keys that are not in ``train_keys``, among distinct valid keys; only with
      ``train_keys``. Not a quality: QM9 enumerates its space, and good samples are often known.
    - ``connected_bonds``: one piece, whatever its valences.
    - ``mean_atoms_bonds``: atoms per molecule, counted hydrogens included.
    - ``bonds_agree``: valid by predicted bonds and by positions, with the same pairs bonded and the same key. Only of
      molecules that have both.
    - ``reject_bonds/<reason>``: rejected for this reason, one entry for each of
      :data:`~unite.modalities.molecule.graph.GRAPH_REJECT_REASONS`.

    Values with nothing to divide by (uniqueness of no valid molecules) are zero.

    Args:
        train_keys: Hashed keys of the training graphs, sorted, int64 of shape (T,); None leaves novelty out.

    Raises:
        ValueError: If ``train_keys`` are not sorted int64.
    """

    reasons = GRAPH_REJECT_REASONS
    suffix = "_bonds"
    counters = ("num_with_positions", "num_agreeing")
    conditional_names = ("bonds_agree",)  # what `compute` leaves out before it has seen the molecules for it

    num_with_positions: Tensor
    num_agreeing: Tensor

    def update(self, molecules: Sequence[Molecule | MolecularGraph]) -> None:
        """Add molecules.

        Args:
            molecules: Graphs, or molecules with positions and a graph: everything that was requested.

        Raises:
            ValueError: If a molecule has no graph.
        """
        graphs = [molecule.graph if isinstance(molecule, Molecule) else molecule for molecule in molecules]
        whole = [graph for graph in graphs if graph is not None]
        if len(whole) < len(molecules):
            raise ValueError(f"{len(molecules) - len(whole)} of the molecules have no graph")
        assemblies = [assemble(graph) for graph in whole]
        self.count(assemblies, sum(graph.num_atoms for graph in whole))
        with_positions = [molecule for molecule in molecules if isinstance(molecule, Molecule)]
        if with_positions:
            perceptions = perceive_all(with_positions)
            self.num_with_positions += len(with_positions)
            self.num_agreeing += sum(agree(made, found) for made, found in zip(assemblies, perceptions, strict=True))

    def further(self) -> dict[str, Tensor]:
        """Agreement of predicted and perceived bonds, of molecules that have both."""
        return {"bonds_agree": share(self.num_agreeing, self.num_with_positions)} if self.num_with_positions > 0 else {}


def agree(made: Assembly, found: Perception) -> bool:
    """Whether predicted bonds and those perceived from positions are the same molecule, atom by atom.

    Pairs of bonded atoms are compared as they are numbered. Orders and charges are compared by the key, for they may be
    written in several ways (the single and double bonds of a ring).
    """
    if made.mol is None or found.mol is None:
        return False
    num_atoms = made.mol.GetNumAtoms()  # perception appends counted hydrogens behind
    pairs = [
        {
            frozenset((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()))
            for bond in mol.GetBonds()
            if max(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) < num_atoms
        }
        for mol in (made.mol, found.mol)
    ]
    return pairs[0] == pairs[1] and molecule_key(made.mol) == molecule_key(found.mol)


class GraphReconstructionMetrics(Metric):
    """Agreement of decoded graphs with the encoded ones, atom by atom (the decoder keeps their order).

    - ``exact_graph``: molecules with all elements, hydrogen counts, charges and bonds right.
    - ``bond_accuracy/<type>``: of the pairs that truly are of this type (``none`` among them), those predicted so. Left
      out where there is no such pair.
    - ``bond_accuracy``: of the pairs that are bonded or predicted to be, those of the right type.
    - ``atom_accuracy``: atoms with the right element, hydrogen count and charge.
    - ``charge_accuracy``: of the atoms with a charge, those with the right one predicted. Left out without such atoms.
    """

    full_state_update = False
    is_differentiable = False

    num_molecules: Tensor
    num_exact: Tensor
    num_atoms: Tensor
    num_correct_atoms: Tensor
    num_charged: Tensor
    num_correct_charged: Tensor
    num_bonds: Tensor
    num_correct_bonds: Tensor
    num_pairs: Tensor  # (5,) by true type
    num_correct_pairs: Tensor  # (5,)

    def __init__(self) -> None:
        super().__init__()
        for name in (
            "num_molecules",
            "num_exact",
            "num_atoms",
            "num_correct_atoms",
            "num_charged",
            "num_correct_charged",
            "num_bonds",
            "num_correct_bonds",
        ):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("num_pairs", "num_correct_pairs"):
            self.add_state(name, torch.zeros(len(BOND_TYPES), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        predicted_types: Tensor,
        predicted_bonds: Tensor,
        predicted_charges: Tensor,
        true_types: Tensor,
        true_bonds: Tensor,
        true_charges: Tensor,
        mask: Tensor,
    ) -> None:
        """Add a batch.

        Args:
            predicted_types: Types of the decoded atoms, shape (B, A).
            predicted_bonds: Types of the decoded pairs, shape (B, P).
            predicted_charges: Charges of the decoded atoms, shape (B, A).
            true_types: Types of the encoded atoms, shape (B, A).
            true_bonds: Types of the encoded pairs, shape (B, P).
            true_charges: Charges of the encoded atoms, shape (B, A).
            mask: True for real atoms, shape (B, A); what stands elsewhere is ignored.
        """
        pairs = pair_mask(mask)  # (B, P)
        is_right = predicted_bonds == true_bonds
        is_right_charge = predicted_charges == true_charges
        is_right_atom = (predicted_types == true_types) & is_right_charge
        has_atoms = mask.any(-1)
        is_exact = (is_right_atom | ~mask).all(-1) & (is_right | ~pairs).all(-1) & has_atoms
        is_charged = mask & (true_charges != 0)
        is_bonded = pairs & ((true_bonds > 0) | (predicted_bonds > 0))
        self.num_molecules += has_atoms.sum()
        self.num_exact += is_exact.sum()
        self.num_atoms += mask.sum()
        self.num_correct_atoms += (is_right_atom & mask).sum()
        self.num_charged += is_charged.sum()
        self.num_correct_charged += (is_charged & is_right_charge).sum()
        self.num_bonds += is_bonded.sum()
        self.num_correct_bonds += (is_bonded & is_right).sum()
        self.num_pairs += true_bonds[pairs].bincount(minlength=len(BOND_TYPES))
        self.num_correct_pairs += true_bonds[pairs & is_right].bincount(minlength=len(BOND_TYPES))

    def compute(self) -> dict[str, Tensor]:
        """The metrics by name, each a scalar."""
        by_type = zip(BOND_TYPES, self.num_correct_pairs, self.num_pairs, strict=True)
        metrics = {
            "exact_graph": share(self.num_exact, self.num_molecules),
            "bond_accuracy": share(self.num_correct_bonds, self.num_bonds),
            **{f"bond_accuracy/{name}": right / total for name, right, total in by_type if total > 0},
            "atom_accuracy": share(self.num_correct_atoms, self.num_atoms),
        }
        if self.num_charged > 0:
            metrics["charge_accuracy"] = self.num_correct_charged / self.num_charged
        return metrics


class TwoViews(WrapperMetric):
    """Two metrics of the same molecules, one of their shape and one of their graph, as one.

    Args:
        shape: Metric of positions.
        graph: Metric of bonds.
        num_first: Arguments of ``update`` that are for ``shape``, the others being for ``graph``; None gives all to
            both.
    """

    def __init__(self, shape: Metric, graph: Metric, num_first: int | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.graph = graph
        self.num_first = num_first

    def update(self, *arguments: Any) -> None:
        """Pass on to both."""
        self.shape.update(*arguments[: self.num_first])
        self.graph.update(*arguments[self.num_first or 0 :])

    def compute(self) -> dict[str, Tensor]:
        """The values of both by name."""
        return {**self.shape.compute(), **self.graph.compute()}

    def reset(self) -> None:
        """Forget all molecules."""
        super().reset()
        self.shape.reset()
        self.graph.reset()
