"""The metrics of generated molecules in one call."""

import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdDepictor
from rdkit.Geometry import Point3D

from tests.support.samples.qm9_rows import tiny_molecules
from unite import UserError, score_molecules
from unite.modalities.molecule.metrics.generation import MoleculeGenerationMetrics
from unite.modalities.molecule.perception.molecule import Molecule


def as_rdkit(molecule: Molecule) -> Chem.Mol:
    """Loose atoms with positions, as a generator of another kind would give them."""
    mol = Chem.RWMol()
    conformer = Chem.Conformer(len(molecule.atomic_numbers))
    rows = zip(molecule.atomic_numbers.tolist(), molecule.positions.tolist(), strict=True)
    for index, (number, position) in enumerate(rows):
        mol.AddAtom(Chem.Atom(number))
        conformer.SetAtomPosition(index, Point3D(*position))
    mol.AddConformer(conformer)
    return mol.GetMol()


def test_scores_are_those_of_the_metric() -> None:
    molecules = [molecule for molecule, _ in tiny_molecules()[:8]]
    molecules.append(molecules[0])
    metric = MoleculeGenerationMetrics(torch.tensor([7]))
    metric.update(molecules)
    expected = {name: float(value) for name, value in metric.compute().items()}
    assert score_molecules(molecules, torch.tensor([7])) == expected
    assert expected["validity"] == 1
    assert expected["uniqueness"] < 1
    assert "novelty" not in score_molecules(molecules)


def test_rdkit_molecules_score_by_their_atoms_alone() -> None:
    molecules = [molecule for molecule, _ in tiny_molecules()[:8]]
    assert score_molecules([as_rdkit(molecule) for molecule in molecules]) == score_molecules(molecules)
    empty = score_molecules([Chem.Mol(), *molecules])  # what RDKit has no conformer for, since it has no atoms
    assert empty["reject/empty"] > 0


def test_a_graph_without_positions_is_refused() -> None:
    with pytest.raises(UserError, match="no conformer"):
        score_molecules([Chem.AddHs(Chem.MolFromSmiles("CCO"))])
    drawn = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    rdDepictor.Compute2DCoords(drawn)
    with pytest.raises(UserError, match="is a drawing"):
        score_molecules([drawn])
