"""SDF files and pictures of predicted bonds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem

from tests.support.samples.graphs import HARD_SMILES, REJECTED, graph_of, perceived
from tests.support.samples.qm9_rows import tiny_molecules
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.modalities.molecule.files.writing import write_sdf
from unite.modalities.molecule.graph import graph_from_mol
from unite.modalities.molecule.perception.distances import unite_hydrogens
from unite.modalities.molecule.perception.molecule import molecule_key


def read(path: Path, sanitize: bool = True) -> list[Chem.Mol]:
    return list(Chem.SDMolSupplier(str(path), removeHs=False, sanitize=sanitize))


def test_graphs_are_written_flat_and_read_back_as_the_same_molecules(tmp_path: Path) -> None:
    samples = [graph_of(smiles, hydrogens) for smiles in HARD_SMILES for hydrogens in ("explicit", "counted")]
    write_sdf(samples, tmp_path / "x.sdf")
    for smiles, mol in zip(np.repeat(HARD_SMILES, 2), read(tmp_path / "x.sdf"), strict=True):
        assert molecule_key(mol) == molecule_key(Chem.MolFromSmiles(str(smiles)))
        assert mol.GetProp("smiles_bonds") == molecule_key(mol)
        assert mol.GetProp("valid_bonds") == "True"
        assert mol.GetProp("coordinates").startswith("2D")
        assert not mol.HasProp("valid")
        assert not mol.GetConformer().Is3D()
        assert not mol.GetConformer().GetPositions()[:, 2].any()


def test_what_is_no_molecule_keeps_its_bonds(tmp_path: Path) -> None:
    samples = list(REJECTED.values())
    write_sdf(samples, tmp_path / "x.sdf")
    for reason, graph, mol in zip(REJECTED, samples, read(tmp_path / "x.sdf", sanitize=False), strict=True):
        assert mol.GetProp("reject_reason_bonds") == reason
        assert mol.GetNumAtoms() == len(graph.atomic_numbers)
        assert sorted(sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx())) for b in mol.GetBonds()) == [
            [first, second] for first, second, _ in graph.bond_list
        ]


@pytest.mark.parametrize("is_counted", [False, True])
def test_positions_go_with_predicted_bonds_rather_than_perceived_ones(tmp_path: Path, is_counted: bool) -> None:
    molecule, mol = tiny_molecules()[20][0], perceived()[20]
    atoms = unite_hydrogens(molecule) if is_counted else molecule
    graph = graph_from_mol(mol, "counted" if is_counted else "explicit")
    scrambled = replace(atoms, positions=10 * atoms.positions, graph=graph)  # nothing to perceive
    write_sdf([replace(atoms, graph=graph), scrambled], tmp_path / "x.sdf")
    for sample, read_back, is_valid in zip([atoms, scrambled], read(tmp_path / "x.sdf"), [True, False], strict=True):
        assert molecule_key(read_back) == molecule_key(mol)
        assert read_back.GetConformer().Is3D()
        positions = read_back.GetConformer().GetPositions()[: len(sample.positions)]
        np.testing.assert_allclose(positions, sample.positions, atol=1e-4)
        assert (read_back.GetProp("valid"), read_back.GetProp("valid_bonds")) == (str(is_valid), "True")


def test_graphs_alone_give_no_xyz(tmp_path: Path) -> None:
    adapter = MoleculeAdapter(positions=False, bonds=True, hydrogens="counted")
    assert [path.name for path in adapter.save([graph_of("CO")], tmp_path)] == ["samples.sdf"]
