"""Metrics of graphs against counts made by hand, and their indifference to numbering and padding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from tests.support.samples.graphs import graph_of, graphs, perceived, relabelled
from tests.support.samples.qm9_rows import tiny_molecules
from unite.modalities.molecule.graph import BOND_TYPES, GRAPH_REJECT_REASONS, MolecularGraph, graph_from_mol
from unite.modalities.molecule.metrics.generation import MoleculeGenerationMetrics
from unite.modalities.molecule.metrics.graphs import GraphGenerationMetrics, GraphReconstructionMetrics, TwoViews
from unite.modalities.molecule.perception.distances import unite_hydrogens
from unite.modalities.molecule.perception.molecule import Molecule, hash_key, molecule_key

RADICAL = replace(graph_of("C"), num_hydrogens=np.array([3]))


def computed(metric: GraphGenerationMetrics, molecules: list[MolecularGraph] | list[Molecule]) -> dict[str, float]:
    metric.update(molecules)
    return {name: value.item() for name, value in metric.compute().items()}


def test_counts_are_those_made_by_hand() -> None:
    known = torch.tensor([hash_key("CO")])
    samples = [graph_of("CO"), graph_of("OC"), graph_of("CC=O"), RADICAL]
    values = computed(GraphGenerationMetrics(known), samples)
    assert values["validity_bonds"] == pytest.approx(3 / 4)
    assert values["uniqueness_bonds"] == pytest.approx(2 / 3)
    assert values["valid_unique_bonds"] == pytest.approx(2 / 4)
    assert values["novelty_bonds"] == pytest.approx(1 / 2)
    assert values["connected_bonds"] == 1
    assert values["mean_atoms_bonds"] == pytest.approx((6 + 6 + 7 + 4) / 4)
    assert values["reject_bonds/radical"] == pytest.approx(1 / 4)
    assert sum(values[f"reject_bonds/{reason}"] for reason in GRAPH_REJECT_REASONS) == pytest.approx(1 / 4)
    assert "bonds_agree" not in values


def test_hydrogens_told_either_way_are_one_molecule() -> None:
    samples = [graph_from_mol(mol, hydrogens) for mol in perceived() for hydrogens in ("explicit", "counted")]
    values = computed(GraphGenerationMetrics(), samples)
    assert values["validity_bonds"] == 1
    assert values["uniqueness_bonds"] == pytest.approx(len({molecule_key(mol) for mol in perceived()}) / len(samples))


@given(st.lists(graphs(), min_size=1, max_size=5), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_relabelling_changes_no_metric(samples: list[MolecularGraph], random: object) -> None:
    shuffled = []
    for graph in samples:
        order = list(range(len(graph.atomic_numbers)))
        random.shuffle(order)  # type: ignore[attr-defined]
        shuffled.append(relabelled(graph, order))
    assert computed(GraphGenerationMetrics(), samples) == computed(GraphGenerationMetrics(), shuffled)


def test_no_samples_give_zeros_and_no_graph_is_refused() -> None:
    assert computed(GraphGenerationMetrics(), [])["uniqueness_bonds"] == 0
    with pytest.raises(ValueError, match="1 of the molecules have no graph"):
        GraphGenerationMetrics().update([Molecule(np.array([6]), np.zeros((1, 3)))])
    with pytest.raises(ValueError, match="rising order"):
        GraphGenerationMetrics(torch.tensor([3, 1]))


@pytest.mark.parametrize("is_counted", [False, True])
def test_bonds_of_real_molecules_agree_with_their_positions_and_wrong_ones_do_not(is_counted: bool) -> None:
    molecules = []
    for (molecule, _), mol in zip(tiny_molecules(), perceived(), strict=True):
        atoms = unite_hydrogens(molecule) if is_counted else molecule
        molecules.append(replace(atoms, graph=graph_from_mol(mol, "counted" if is_counted else "explicit")))
    values = computed(GraphGenerationMetrics(), molecules)
    assert values["validity_bonds"] == values["bonds_agree"] == 1
    # The same molecule with its atoms numbered in another way is not the same bonds.
    wrong = [replace(molecule, positions=molecule.positions[::-1].copy()) for molecule in molecules]
    assert computed(GraphGenerationMetrics(), wrong)["bonds_agree"] < 0.5


def test_bonds_agree_only_with_the_same_pairs_and_the_same_orders() -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles("NC=O"))
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    graph, positions = graph_from_mol(mol), mol.GetConformer().GetPositions()
    swapped = positions[[0, 1, 2, 5, 4, 3]]  # a hydrogen of nitrogen against that of carbon
    zwitterion = graph_from_mol(Chem.MolFromSmiles("[NH2+]=C[O-]"))
    np.testing.assert_array_equal(zwitterion.bonds > 0, graph.bonds > 0)
    for places, bonds, agreement in ((positions, graph, 1), (swapped, graph, 0), (positions, zwitterion, 0)):
        sample = Molecule(graph.atomic_numbers, places, graph=bonds)
        both = TwoViews(MoleculeGenerationMetrics(), GraphGenerationMetrics())
        both.update([sample])
        values = both.compute()
        assert values["validity_bonds"] == values["validity"] == 1
        assert values["bonds_agree"] == agreement


def test_both_views_are_measured_side_by_side() -> None:
    (molecule, _), mol = tiny_molecules()[10], perceived()[10]
    both = TwoViews(MoleculeGenerationMetrics(), GraphGenerationMetrics())
    both.update([replace(molecule, graph=graph_from_mol(mol))])
    values = both.compute()
    assert values["validity"] == values["validity_bonds"] == values["bonds_agree"] == 1
    both.reset()
    assert both.compute()["validity_bonds"] == 0


def arrays(seed: int = 0) -> dict[str, torch.Tensor]:
    """Two molecules of three and two atoms, reconstructed without error."""
    generator = torch.Generator().manual_seed(seed)
    types = torch.randint(0, 5, (2, 3), generator=generator)
    charges = torch.tensor([[0, 1, -1], [0, 0, 0]])
    bonds = torch.tensor([[1, 0, 4], [3, 0, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    return {
        "predicted_types": types.clone(),
        "predicted_bonds": bonds.clone(),
        "predicted_charges": charges.clone(),
        "true_types": types,
        "true_bonds": bonds,
        "true_charges": charges,
        "mask": mask,
    }


def reconstruction(values: dict[str, torch.Tensor]) -> dict[str, float]:
    metric = GraphReconstructionMetrics()
    metric.update(**values)
    return {name: value.item() for name, value in metric.compute().items()}


def test_perfect_reconstructions_are_exact_whatever_stands_in_the_padding() -> None:
    values = arrays()
    values["predicted_types"][1, 2] = 7
    values["predicted_bonds"][1, 1:] = 2
    values["predicted_charges"][1, 2] = 1
    result = reconstruction(values)
    assert result["exact_graph"] == result["bond_accuracy"] == result["atom_accuracy"] == 1
    assert result["charge_accuracy"] == 1
    assert "bond_accuracy/double" not in result  # there is none
    assert all(result[f"bond_accuracy/{name}"] == 1 for name in BOND_TYPES if name != "double")


def test_what_is_in_no_molecule_has_no_accuracy() -> None:
    values = arrays()
    values["true_charges"][:] = 0
    result = reconstruction(values)
    assert "charge_accuracy" not in result
    assert all(np.isfinite(value) for value in result.values())


@pytest.mark.parametrize(
    ("name", "place", "expected"),
    [
        ("predicted_types", (0, 1), {"atom_accuracy": 4 / 5, "charge_accuracy": 1, "bond_accuracy": 1}),
        ("predicted_charges", (0, 1), {"atom_accuracy": 4 / 5, "charge_accuracy": 1 / 2, "bond_accuracy": 1}),
        ("predicted_bonds", (0, 2), {"bond_accuracy": 2 / 3, "bond_accuracy/aromatic": 0, "atom_accuracy": 1}),
        # a bond too many: of four bonded or predicted pairs three are right
        ("predicted_bonds", (0, 1), {"bond_accuracy": 3 / 4, "bond_accuracy/none": 0, "bond_accuracy/single": 1}),
    ],
)
def test_one_mistake_costs_the_graph_and_its_own_share(
    name: str, place: tuple[int, int], expected: dict[str, float]
) -> None:
    values = arrays()
    values[name][place] += 1 if name != "predicted_bonds" or place == (0, 1) else -1
    result = reconstruction(values)
    assert result["exact_graph"] == 1 / 2
    for key, value in expected.items():
        assert result[key] == pytest.approx(value), key
