"""Graphs to and from RDKit and PyG, through the adapter, and what is refused by name."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem import rdDepictor, rdDistGeom
from torch_geometric.data import Batch, Data

from tests.support.samples.graphs import (
    HARD_SMILES,
    REJECTED,
    Hydrogens,
    graph_of,
    graphs,
    perceived,
    perfect,
    relabelled,
)
from unite.errors import UserError
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.modalities.molecule.graph import (
    GRAPH_REJECT_REASONS,
    MolecularGraph,
    assemble,
    data_from_graph,
    data_from_mol,
    graph_from_data,
    graph_from_mol,
    is_one_piece,
    mol_from_data,
)
from unite.modalities.molecule.perception.molecule import molecule_key


def graph_adapter(hydrogens: Hydrogens) -> MoleculeAdapter:
    adapter = MoleculeAdapter(positions=False, bonds=True, hydrogens=hydrogens, decoder_depth=1)
    adapter.build(width=32, latent_channels=4)
    return adapter.eval()


def keys_after_the_whole_way(mols: tuple[Chem.Mol, ...], hydrogens: Hydrogens) -> list[str | None]:
    """RDKit -> PyG -> prepared -> perfect prediction -> graph -> RDKit -> key, all in one padded batch."""
    adapter = graph_adapter(hydrogens)
    prepared = adapter.prepare(Batch.from_data_list([data_from_mol(mol, hydrogens) for mol in mols]))
    prediction = perfect(prepared, len(adapter.vocabulary))
    assemblies = [assemble(graph) for graph in adapter.finish(prediction, adapter.template(prepared))]  # type: ignore[arg-type]
    return [None if made.mol is None else molecule_key(made.mol) for made in assemblies]


@pytest.mark.parametrize("hydrogens", ["explicit", "counted"])
def test_real_molecules_survive_the_whole_way(hydrogens: Hydrogens) -> None:
    mols = perceived()
    assert len(mols) == 64
    assert keys_after_the_whole_way(mols, hydrogens) == [molecule_key(mol) for mol in mols]


@pytest.mark.slow
@pytest.mark.parametrize("hydrogens", ["explicit", "counted"])
def test_ten_thousand_real_molecules_survive_the_whole_way(hydrogens: Hydrogens) -> None:
    mols = perceived(10_000)
    assert len(mols) >= 9_999  # perception rejects one
    assert sum(any(atom.GetFormalCharge() for atom in mol.GetAtoms()) for mol in mols) >= 40
    for start in range(0, len(mols), 500):
        part = mols[start : start + 500]
        assert keys_after_the_whole_way(part, hydrogens) == [molecule_key(mol) for mol in part]


@pytest.mark.parametrize("hydrogens", ["explicit", "counted"])
@pytest.mark.parametrize("smiles", HARD_SMILES)
def test_charges_and_aromatic_hydrogens_survive(smiles: str, hydrogens: Hydrogens) -> None:
    mol = Chem.MolFromSmiles(smiles)
    assert keys_after_the_whole_way((mol,), hydrogens) == [Chem.MolToSmiles(mol)]
    assert Chem.MolToSmiles(Chem.RemoveHs(mol_from_data(data_from_mol(mol, hydrogens)))) == Chem.MolToSmiles(mol)


@given(graphs(), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_relabelling_changes_neither_verdict_nor_molecule(graph: MolecularGraph, random: object) -> None:
    order = list(range(len(graph.atomic_numbers)))
    random.shuffle(order)  # type: ignore[attr-defined]
    made, again = assemble(graph), assemble(relabelled(graph, order))
    assert made.reason == again.reason
    if made.mol is not None and again.mol is not None:
        assert molecule_key(made.mol) == molecule_key(again.mol)


@given(graphs())
@settings(max_examples=100, deadline=None)
def test_pyg_objects_hold_the_graph_and_collate(graph: MolecularGraph) -> None:
    batch = Batch.from_data_list([data_from_graph(graph)] * 2)
    for data in (data_from_graph(graph), batch[1]):
        back = graph_from_data(data)
        for name in ("atomic_numbers", "bonds", "charges", "num_hydrogens"):
            np.testing.assert_array_equal(getattr(back, name), getattr(graph, name))


@pytest.mark.parametrize("hydrogens", ["explicit", "counted"])
@pytest.mark.parametrize("order", [[3, 1, 0, 2], [1, 0, 3, 2]])
def test_relabelling_an_rdkit_molecule_relabels_its_graph(hydrogens: Hydrogens, order: list[int]) -> None:
    mol = Chem.MolFromSmiles("C[N+](=O)[O-]")
    graph = graph_from_mol(mol, "counted")
    other = graph_from_mol(Chem.RenumberAtoms(mol, order), "counted")
    np.testing.assert_array_equal(other.bonds, relabelled(graph, order).bonds)
    np.testing.assert_array_equal(other.charges, relabelled(graph, order).charges)


@pytest.mark.parametrize("reason", REJECTED)
def test_what_is_no_molecule_is_told_with_the_reason(reason: str) -> None:
    made = assemble(REJECTED[reason])
    assert (made.mol, made.reason) == (None, reason)
    assert reason in GRAPH_REJECT_REASONS
    assert made.is_connected == (reason not in ("empty", "disconnected"))


def test_nothing_is_repaired() -> None:
    # RDKit reads a nitro group with five bonds on nitrogen, and writes charges into it.
    assert Chem.MolFromSmiles("CN(=O)=O") is not None
    neutral = replace(graph_of("C[N+](=O)[O-]"), charges=np.zeros(4, dtype=np.int64))
    bonds = neutral.bonds.copy()
    bonds[1, 3] = bonds[3, 1] = 2
    assert assemble(replace(neutral, bonds=bonds)).reason == "valence"
    # RDKit fills up hydrogens where it is allowed to.
    assert assemble(replace(graph_of("CC"), num_hydrogens=np.array([3, 2]))).reason == "radical"


@pytest.mark.parametrize("count", [0, 2, 3])
def test_an_aromatic_nitrogen_has_the_hydrogens_that_were_predicted_or_is_none(count: int) -> None:
    graph = graph_of("c1cc[nH]c1")
    assert graph.num_hydrogens is not None
    wrong = replace(graph, num_hydrogens=np.where(graph.atomic_numbers == 7, count, graph.num_hydrogens))
    assert assemble(graph).mol is not None
    assert assemble(wrong).mol is None


@given(graphs(max_atoms=9))
@settings(max_examples=60, deadline=None)
def test_one_piece_is_what_rdkit_calls_one_fragment(graph: MolecularGraph) -> None:
    mol = Chem.RWMol()
    for number in graph.atomic_numbers.tolist():
        mol.AddAtom(Chem.Atom(number))
    for first, second, _ in graph.bond_list:
        mol.AddBond(first, second, Chem.BondType.SINGLE)
    assert is_one_piece(graph.bonds) == (len(Chem.GetMolFrags(mol)) == 1)


@pytest.mark.parametrize(
    ("smiles", "message"),
    [
        ("C.C", "2 pieces"),
        ("C[NH3+]", r"charge \+1"),
        ("[CH3]", "unpaired electron on C"),
        ("N->B", "type dative; known are single"),
        ("*C", r"\*C has an atom of no element, \*, atom 0"),
    ],
)
def test_molecules_that_have_no_place_are_refused_by_name(smiles: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        graph_from_mol(Chem.MolFromSmiles(smiles))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "None is a NoneType, not an RDKit molecule; RDKit's readers give None"),
        ("CCO", "'CCO' is a str, not an RDKit molecule; read SMILES with"),
        (6, "6 is a int, not an RDKit molecule"),
    ],
)
def test_what_is_no_rdkit_molecule_is_refused_by_its_type(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data_from_mol(given)


def test_stereochemistry_and_isotopes_are_lost_as_documented() -> None:
    back = mol_from_data(data_from_mol(Chem.MolFromSmiles("[2H]C[C@H](N)O"), "counted"))
    assert Chem.MolToSmiles(back) == "CC(N)O"


def test_hydrogens_that_cannot_be_counted_are_refused() -> None:
    with pytest.raises(UserError, match="hydrogen 0 cannot be counted"):
        graph_from_mol(Chem.MolFromSmiles("[H][H]"), "counted")


@pytest.mark.parametrize("hydrogens", ["explicit", "counted"])
def test_positions_stay_with_their_atoms(hydrogens: Hydrogens) -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles("OC"))
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    data = data_from_mol(mol, hydrogens)
    kept = [atom.GetIdx() for atom in mol.GetAtoms() if hydrogens == "explicit" or atom.GetAtomicNum() != 1]
    torch.testing.assert_close(data.pos, torch.tensor(mol.GetConformer().GetPositions()[kept], dtype=torch.float32))
    back = mol_from_data(data).GetConformer().GetPositions()
    np.testing.assert_allclose(back, data.pos.numpy(), atol=1e-6)


def test_a_drawing_is_not_taken_for_positions() -> None:
    mol = Chem.MolFromSmiles("OC")
    rdDepictor.Compute2DCoords(mol)
    assert "pos" not in data_from_mol(mol)


def broken(data: Data, **changes: torch.Tensor | None) -> Data:
    data = data.clone()
    for name, value in changes.items():
        if value is None:
            del data[name]
        else:
            data[name] = value
    return data


METHANOL = data_from_mol(Chem.MolFromSmiles("CO"), "counted")
ETHANOL = data_from_mol(Chem.MolFromSmiles("CCO"), "counted")


@pytest.mark.parametrize(
    ("molecule", "message"),
    [
        (broken(METHANOL, edge_index=None), "carry no edge_index: set data.init_args.bonds to true"),
        (broken(METHANOL, charge=None), "carry no charge"),
        (broken(METHANOL, edge_attr=torch.tensor([7, 7])), "bond type 7; known are 1 single"),
        (broken(METHANOL, edge_attr=torch.ones(2, 4)), r"shape \(2, 4\)"),
        (broken(METHANOL, edge_attr=torch.tensor([1, 2])), "both directions, with one type"),
        (broken(METHANOL, charge=torch.tensor([0, 1])), r"molecule 1 of the batch has the charge \+1"),
        (broken(METHANOL, charge=torch.tensor([2, -2])), r"charge [+-]2, but max_charge is 1"),
        (
            broken(ETHANOL, edge_index=ETHANOL.edge_index[:, :2], edge_attr=ETHANOL.edge_attr[:2]),
            "molecule 1 of the batch is not connected",
        ),
        (broken(ETHANOL, z=torch.tensor([6, 6, 16])), "element 16"),
        (broken(ETHANOL, z=torch.tensor([6, 6, 300])), "element 300"),
        (
            broken(METHANOL, edge_index=METHANOL.edge_index.repeat(1, 2), edge_attr=METHANOL.edge_attr.repeat(2)),
            "every bond once in each direction",
        ),
        (broken(ETHANOL, edge_index=ETHANOL.edge_index - 2), "none between molecules"),
        (data_from_mol(Chem.MolFromSmiles("CCCCCCCCCCCC"), "counted"), "12 atoms, but max_atoms is 9"),
    ],
)
def test_bad_batches_are_refused_by_name(molecule: Data, message: str) -> None:
    adapter = MoleculeAdapter(positions=False, bonds=True, hydrogens="counted", max_atoms=9, decoder_depth=1)
    adapter.build(width=32, latent_channels=4)
    is_whole = "edge_index" in molecule and "charge" in molecule and molecule.edge_attr.ndim == 1
    batch = Batch.from_data_list([METHANOL, molecule] if is_whole else [molecule])
    with pytest.raises(UserError, match=message):
        adapter.prepare(batch)


def test_pyg_objects_that_do_not_tell_their_size_are_refused() -> None:
    adapter = graph_adapter("counted")
    methane = data_from_mol(Chem.MolFromSmiles("C"), "counted")
    assert adapter.prepare(methane).mask.sum() == 1
    with pytest.raises(UserError, match="each Data needs num_nodes"), pytest.warns(UserWarning, match="num_nodes"):
        adapter.prepare(broken(methane, num_nodes=None))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positions": False}, "positions and bonds are both false"),
        ({"bonds": True, "bond_depth": 0}, "bond_depth is 0"),
        ({"bonds": True, "pair_width": 0}, "pair_width is 0"),
        ({"bonds": True, "max_charge": -1}, "max_charge is -1"),
        ({"bonds": True, "none_weight": 0}, "none_weight is 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MoleculeAdapter(**settings)  # type: ignore[arg-type]


def test_shapes_need_positions() -> None:
    adapter = MoleculeAdapter(positions=True, bonds=True, hydrogens="counted")
    adapter.build(width=32, latent_channels=4)
    with pytest.raises(UserError, match="carry no pos"):
        adapter.prepare(METHANOL)


def test_graphs_of_wrong_shape_are_refused() -> None:
    asymmetric = np.array([[0, 1], [0, 0]])
    with pytest.raises(ValueError, match="symmetric"):
        MolecularGraph(np.array([6, 6]), asymmetric, np.zeros(2, dtype=np.int64))
    with pytest.raises(ValueError, match=r"bonds of shape \(2, 2\)"):
        MolecularGraph(np.array([6, 6]), np.zeros((3, 3), dtype=np.int64), np.zeros(2, dtype=np.int64))


def test_unperceivable_and_unsanitizable_input_is_told() -> None:
    with pytest.raises(UserError, match="cannot sanitize"):
        graph_from_mol(Chem.MolFromSmiles("C(C)(C)(C)(C)C", sanitize=False))
    with pytest.raises(UserError, match="no molecule: radical"):
        mol_from_data(broken(METHANOL, num_hydrogens=torch.tensor([2, 1])))
    with pytest.raises(UserError, match="without edge_attr"):
        mol_from_data(broken(METHANOL, edge_attr=None))
