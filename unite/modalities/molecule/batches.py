"""Batches of molecules out of flat tensors: which go together, and how to put them together quickly."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data

from unite.modalities.captions import Captions
from unite.modalities.flat import Segments, send
from unite.modalities.molecule.data.qm9.bonds import BondTable
from unite.modalities.molecule.data.qm9.table import MoleculeTable


class GatheredMolecules(Dataset[dict[str, Batch]]):
    """Molecules of a table, to be taken a whole batch at a time: `dataset[[3, 1, 4]]` is one step.

    Gathering the atoms of a batch by index gives what `Batch.from_data_list` would, without a Python object
    for each molecule. On a GPU nothing waits for it: all sizes are known on the CPU, and only the rows go over.

    Args:
        table: The molecules.
        with_hydrogen_counts: Whether batches have `num_hydrogens`.
        bonds: Bonds of the molecules of the table; None for batches without.
        device: Where the molecules lie and batches are made.
        properties: Properties of the molecules of the table, shape (N, properties); None for batches without.
        captions: Captions of the molecules of the table, by row; None for batches without.
    """

    def __init__(
        self,
        table: MoleculeTable,
        with_hydrogen_counts: bool,
        bonds: BondTable | None = None,
        device: torch.device | str = "cpu",
        properties: Tensor | None = None,
        captions: Captions | None = None,
    ) -> None:
        self.table = table
        self.properties = properties
        self.captions = captions
        self.bonds = bonds
        self.device = torch.device(device)
        self.per_atom = {"z": table.z, "pos": table.pos}
        if with_hydrogen_counts:
            self.per_atom["num_hydrogens"] = table.num_hydrogens
        per_edge = {}
        if bonds is not None:
            self.per_atom["charge"] = bonds.charge
            per_edge = {"edge_index": bonds.ends, "edge_attr": bonds.types}
        self.per_atom = {name: values.to(self.device) for name, values in self.per_atom.items()}
        self.per_edge = {name: values.to(self.device) for name, values in per_edge.items()}

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, rows: Any) -> dict[str, Batch]:
        """A batch of molecules.

        Args:
            rows: Rows of the table, a sequence or a tensor of shape (B,); a single int is a batch of one.

        Returns:
            The batch under the key `molecule`: `z` (A,) atomic numbers, `pos` (A, 3) in Å, `batch` (A,)
            molecule of each atom, `ptr` (B + 1,) first atom of each molecule, `molecule_id` (B,) number in
            the data set, `num_hydrogens` (A,), properties `y` (B, properties) and `caption`, a list, if asked for; with
            bonds also
            `edge_index` (2, E), every bond in both directions, `edge_attr` (E,) their types, and `charge` (A,).
        """
        rows = torch.atleast_1d(torch.as_tensor(rows))
        atoms = _segments(self.table.ptr, rows, self.device)
        # All but positions are integers, kept as bytes.
        per_atom = {name: long_unless_float(values[atoms.index]) for name, values in self.per_atom.items()}
        per_edge, edge_ptr = {}, None
        if self.bonds is not None:
            edges = _segments(self.bonds.ptr, rows, self.device)
            per_edge = {
                "edge_index": self.per_edge["edge_index"][:, edges.index] + atoms.ptr[edges.owner],
                "edge_attr": self.per_edge["edge_attr"][edges.index].long(),
            }
            edge_ptr = edges.host_ptr
        # The name is not `index`: PyG adds the number of atoms to attributes with "index" in their names
        # when it collates, so batching the molecules of a batch anew would change the numbers.
        per_molecule = {"molecule_id": send(self.table.molecule_id[rows], self.device)}
        if self.properties is not None:
            per_molecule["y"] = send(self.properties[rows], self.device)
        captions = None if self.captions is None else [self.captions[row] for row in rows.tolist()]

        result = finished_batch(per_atom, per_edge, per_molecule, atoms, edge_ptr, captions)
        return {"molecule": result}


def finished_batch(
    per_atom: dict[str, Tensor],
    per_edge: dict[str, Tensor],
    per_molecule: Mapping[str, Any],
    atoms: Segments,
    edge_ptr: Tensor | None = None,
    captions: list[str | None] | None = None,
) -> Batch:
    """A batch as `Batch.from_data_list` would make it, of values that are together already.

    Args:
        per_atom: Values (A, ...) by name.
        per_edge: Values of the edges by name; `edge_index` (2, E) counts the atoms of the batch.
        per_molecule: Values (B, ...) by name.
        atoms: Where the atoms lie.
        edge_ptr: First edge of each molecule, and the end, shape (B + 1,), if there are edges.
        captions: Caption of each molecule, which becomes `caption`, if there are some.
    """
    if captions is not None:
        per_molecule = {**per_molecule, "caption": captions}
    result = Batch(_base_cls=Data, **per_atom, **per_edge, **per_molecule, batch=atoms.owner, ptr=atoms.ptr)
    # What Batch.from_data_list leaves for taking molecules out again (batch[i], to_data_list). These
    # names are private to PyG; test_gathered_batch_equals_collated_batch guards them.
    result._num_graphs = num_molecules = len(atoms.host_ptr) - 1
    slices = dict.fromkeys(per_atom, atoms.host_ptr)
    slices |= dict.fromkeys(per_molecule, torch.arange(num_molecules + 1))
    result._inc_dict = dict.fromkeys(
        [*per_atom, *per_edge, *per_molecule], torch.zeros(num_molecules, dtype=torch.long)
    )
    if edge_ptr is not None:
        slices |= dict.fromkeys(per_edge, edge_ptr)
        result._inc_dict["edge_index"] = atoms.host_ptr[:-1]
    result._slice_dict = slices
    if "pos" not in per_atom:  # PyG would guess each molecule's number of atoms from its edges, and warn
        result.num_nodes = len(atoms.owner)
        result._num_nodes = atoms.host_ptr.diff().tolist()
    result._largest = int(atoms.host_ptr.diff().max())
    return result


def known_largest(batch: Batch) -> int | None:
    """Atoms of the largest molecule of a batch that `GatheredMolecules` made; None for others.

    It is a number on the CPU wherever the batch lies: reading it makes no GPU wait. As a private attribute, like PyG's
    own, it follows the batch to other devices but is no part of its data.
    """
    return getattr(batch, "_largest", None)


def _segments(ptr: Tensor, rows: Tensor, device: torch.device) -> Segments:
    """Where what belongs to some rows lies, of which row i has `ptr[i]` to `ptr[i + 1]`."""
    first = ptr[rows]
    return Segments(first, ptr[rows + 1] - first, device)


def long_unless_float(values: Tensor) -> Tensor:
    """Integers, which tables keep in few bytes, as PyG's batches have them."""
    return values if values.is_floating_point() else values.long()
