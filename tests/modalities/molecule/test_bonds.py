"""The layers of bonds: relabelling, padding, symmetry, and the loss in closed form."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch

from tests.support.cases import awake, latents_of
from tests.support.samples.graphs import graph_of, graphs, perceived, perfect
from unite.errors import UserError
from unite.modalities.base import Template
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.modalities.molecule.graph import MolecularGraph, data_from_graph, data_from_mol, is_one_piece
from unite.modalities.molecule.layers import (
    BondReader,
    GraphConvolution,
    GraphPrediction,
    PairHead,
    are_connected,
    pair_indices,
    pair_mask,
    pairs_to_matrix,
)
from unite.modalities.molecule.losses import bond_loss
from unite.modalities.molecule.preparation import MoleculePrediction
from unite.module import UniteModule
from unite.nn.generative_encoder import GenerativeEncoder


def edges_of(graph: MolecularGraph) -> tuple[torch.Tensor, torch.Tensor]:
    data = data_from_graph(graph)
    return data.edge_index, data.edge_attr


@given(graphs(), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_relabelling_the_atoms_relabels_what_the_convolution_says(graph: MolecularGraph, seed: int) -> None:
    torch.manual_seed(seed)
    convolution = GraphConvolution(16, 2)
    num_atoms = len(graph.atomic_numbers)
    atoms, order = torch.randn(num_atoms, 16), torch.randperm(num_atoms)
    edge_index, edge_types = edges_of(graph)
    place = order.argsort()  # where each atom goes
    with torch.no_grad():
        out = convolution(atoms, edge_index, edge_types)
        relabelled = convolution(atoms[order], place[edge_index], edge_types)
    torch.testing.assert_close(relabelled, out[order], atol=1e-5, rtol=1e-5)


def test_atoms_see_the_type_of_their_bonds_and_others_nothing() -> None:
    torch.manual_seed(0)
    convolution, atoms = GraphConvolution(16, 1), torch.randn(4, 16)
    edge_index = torch.tensor([[0, 1], [1, 0]])
    with torch.no_grad():
        single, double = (convolution(atoms, edge_index, torch.tensor([kind, kind])) for kind in (1, 2))
    assert not torch.allclose(single[:2], double[:2])
    assert torch.equal(single[2:], double[2:])


@given(st.integers(0, 1000), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_relabelling_the_atoms_relabels_the_pairs(seed: int, num_atoms: int) -> None:
    torch.manual_seed(seed)
    head, atoms, order = PairHead(16, 8), torch.randn(2, num_atoms, 16), torch.randperm(num_atoms)
    with torch.no_grad():
        for score in range(5):
            matrix = pairs_to_matrix(head(atoms)[..., score], num_atoms)
            assert torch.equal(matrix, matrix.mT)
            relabelled = pairs_to_matrix(head(atoms[:, order])[..., score], num_atoms)
            torch.testing.assert_close(relabelled, matrix[:, order][:, :, order], atol=1e-5, rtol=1e-5)


def test_pairs_are_the_upper_triangle() -> None:
    assert pair_indices(3).tolist() == [[0, 0, 1], [1, 2, 2]]
    mask = torch.tensor([[True, True, False]])
    assert pair_mask(mask).tolist() == [[True, False, False]]
    assert pairs_to_matrix(torch.tensor([[1, 2, 3]]), 3).tolist() == [[[0, 1, 2], [1, 0, 3], [2, 3, 0]]]


def test_bond_loss_counts_each_bond_once_however_many_pairs_have_none() -> None:
    bonds = torch.tensor([[1, 0, 0, 2], [0, 0, 0, 0]])
    mask = torch.tensor([[True, True, True, True], [True, False, False, False]])
    logits = torch.zeros(2, 4, 5)
    logits[1, 1:] = 1e3 * torch.randn(3, 5)  # padding
    one = math.log(5)
    assert bond_loss(logits, bonds, mask, none_weight=0.25) == pytest.approx((2 + 0.25 * 3) * one / 2, rel=1e-5)
    certain = torch.full((2, 4, 5), -50.0).scatter(2, bonds[..., None], 50.0)
    assert bond_loss(certain, bonds, mask, none_weight=1.0) < 1e-6
    assert bond_loss(logits[:, :0], bonds[:, :0], mask[:, :0], none_weight=1.0) == 0


@given(graphs(max_atoms=9))
@settings(max_examples=80, deadline=None)
def test_connectedness_in_a_padded_batch_is_that_of_each_graph(graph: MolecularGraph) -> None:
    num_atoms = len(graph.atomic_numbers)
    bonds = torch.zeros(2, 11, 11, dtype=torch.long)
    bonds[0, :num_atoms, :num_atoms] = torch.from_numpy(graph.bonds)
    bonds[1, range(10), range(1, 11)] = bonds[1, range(1, 11), range(10)] = 1  # the longest chain
    mask = torch.arange(11) < torch.tensor([[num_atoms], [11]])
    assert are_connected(bonds, mask).tolist() == [is_one_piece(graph.bonds), True]


def make_module(**settings: object) -> UniteModule:
    encoder = GenerativeEncoder("XS", latent_channels=4, depth=2, width=32, num_heads=2)
    adapter = MoleculeAdapter(bonds=True, hydrogens="counted", decoder_depth=1, **settings)  # type: ignore[arg-type]
    return awake(UniteModule(encoder, {"molecule": adapter}))


def decoded(module: UniteModule, batch: Batch, noise: torch.Tensor) -> tuple[MoleculePrediction, GraphPrediction]:
    adapter = module.adapters["molecule"]
    prepared = adapter.prepare(batch)
    template = adapter.template(prepared)
    with torch.no_grad():
        latents = latents_of(module, adapter, prepared, noise)
        prediction = adapter.decode(latents, template)
    return prediction, prediction.graph


@pytest.mark.parametrize(
    "settings",
    [{}, {"registers_per_molecule": 5}, {"types_from_bonds": True}],
    ids=["one register per atom", "five registers", "types from bonds"],
)
def test_padding_changes_no_score_from_end_to_end(settings: dict[str, object]) -> None:
    module = make_module(positions=False, **settings)
    molecules = [data_from_mol(mol, "counted") for mol in perceived()[20:40]]
    noise = torch.randn(len(molecules), 29, 4)
    together, graph = decoded(module, Batch.from_data_list(molecules), noise)
    sizes = [len(molecule.z) for molecule in molecules]
    assert len(set(sizes)) > 1
    for i, size in enumerate(sizes):
        alone, own = decoded(module, Batch.from_data_list([molecules[i]]), noise[[i]])
        torch.testing.assert_close(together.type_logits[i, :size], alone.type_logits[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(graph.charge_logits[i, :size], own.charge_logits[0], atol=1e-4, rtol=1e-4)
        for score in range(5):
            padded = pairs_to_matrix(graph.bond_logits[..., score], max(sizes))[i, :size, :size]
            torch.testing.assert_close(
                padded, pairs_to_matrix(own.bond_logits[..., score], size)[0], atol=1e-4, rtol=1e-4
            )


def test_bonds_and_charges_reach_the_tokens() -> None:
    adapter = make_module(positions=False).adapters["molecule"]
    carbonyl, ether = graph_of("CC=O"), graph_of("CC=O")
    ether.bonds[1, 2] = ether.bonds[2, 1] = 1
    values = [adapter.tokens(adapter.prepare(data_from_graph(graph))).values for graph in (carbonyl, ether)]
    assert not torch.allclose(values[0], values[1])
    salt = graph_of("[NH3+]CC(=O)[O-]")
    uncharged = MolecularGraph(salt.atomic_numbers, salt.bonds, np.zeros_like(salt.charges), salt.num_hydrogens)
    values = [adapter.tokens(adapter.prepare(data_from_graph(graph))).values for graph in (salt, uncharged)]
    assert not torch.allclose(values[0], values[1])


def test_an_atom_reads_its_own_bonds_and_no_other_nor_padding() -> None:
    torch.manual_seed(0)
    reader, atoms = BondReader(16), torch.randn(1, 4, 16)
    mask = torch.tensor([[True, True, True, False]])
    bonds = torch.tensor([[1, 0, 0, 1, 0, 0]])  # a chain of three, in the order of pair_indices
    doubled = torch.tensor([[2, 0, 4, 1, 3, 0]])  # the first bond doubled; bonds to the padding
    with torch.no_grad():
        single, double = reader(atoms, bonds, mask), reader(atoms, doubled, mask)
    assert not torch.isclose(single[0, :2], double[0, :2]).all(dim=1).any()
    assert torch.equal(single[0, 2:], double[0, 2:])


def test_types_are_learned_beside_the_true_bonds_and_told_beside_the_decoded_ones() -> None:
    adapter = make_module(positions=False, types_from_bonds=True).adapters["molecule"]
    assert isinstance(adapter, MoleculeAdapter)
    prepared = adapter.prepare(Batch.from_data_list([data_from_mol(mol, "counted") for mol in perceived()[20:24]]))
    assert prepared.graph is not None
    num_atoms = prepared.mask.shape[1]
    with torch.no_grad():
        prediction = adapter.decode(torch.randn(4, num_atoms, 4), adapter.template(prepared))
        assert prediction.graph is not None
        terms = adapter.reconstruction_loss(prediction, prepared)
        for bonds, told in ((prediction.graph.bonds, prediction.type_logits), (prepared.graph.bonds, None)):
            logits = adapter.type_head(adapter.bond_reader(prediction.atoms, bonds, prepared.mask))
            if told is not None:
                torch.testing.assert_close(logits, told)
    expected = torch.nn.functional.cross_entropy(logits[prepared.mask], prepared.types[prepared.mask])
    torch.testing.assert_close(terms["types"], expected)
    wrong = torch.nn.functional.cross_entropy(prediction.type_logits[prepared.mask], prepared.types[prepared.mask])
    assert not torch.isclose(expected, wrong)
    with pytest.raises(UserError, match="types_from_bonds is true, but bonds is false"):
        MoleculeAdapter(types_from_bonds=True)


def test_loss_of_a_perfect_prediction_is_zero_and_ignores_padding() -> None:
    adapter = make_module(positions=False).adapters["molecule"]
    prepared = adapter.prepare(Batch.from_data_list([data_from_mol(mol, "counted") for mol in perceived()]))
    assert isinstance(adapter, MoleculeAdapter)
    terms = adapter.reconstruction_loss(perfect(prepared, len(adapter.vocabulary)), prepared)
    assert set(terms) == {"types", "bonds", "charges"}
    assert all(term < 1e-6 for term in terms.values())


def test_mixed_precision_does_not_reach_the_heads() -> None:
    adapter = make_module(positions=False).adapters["molecule"]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        prediction = adapter.decode(torch.randn(2, 4, 4), Template(torch.tensor([4, 3])))
    assert prediction.graph.bond_logits.dtype == prediction.graph.charge_logits.dtype == torch.float32
