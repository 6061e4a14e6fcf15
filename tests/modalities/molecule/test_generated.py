"""Molecules as a user holds them."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rdkit import Chem

from tests.support.paths import REPOSITORY
from tests.support.samples.graphs import graph_of
from tests.support.samples.qm9_rows import tiny_molecules
from unite import Molecule, QM9DataModule, UniteModule, UserError
from unite.modalities.molecule.files.writing import write_sdf
from unite.modalities.molecule.generated import GeneratedGraph, GeneratedMolecule, batch_of
from unite.modalities.molecule.graph import data_from_mol
from unite.modalities.molecule.perception.distances import unite_hydrogens

MODEL = REPOSITORY / "docs" / "results" / "qm9_long" / "model"


@pytest.fixture(scope="module")
def module() -> UniteModule:
    return UniteModule.from_pretrained(MODEL)


def as_generated(molecule: Molecule) -> GeneratedMolecule:
    return GeneratedMolecule(molecule.atomic_numbers, molecule.positions, molecule.num_hydrogens, molecule.graph)


def test_a_real_molecule_says_what_it_is() -> None:
    molecule, smiles = tiny_molecules()[5]
    own = as_generated(molecule)
    assert own.is_valid
    assert own.reject_reason is None
    assert own.smiles == Chem.MolToSmiles(Chem.MolFromSmiles(smiles), isomericSmiles=False)
    assert repr(own) == f"<GeneratedMolecule {own.smiles}, {own.num_atoms} atoms>"
    mol = own.to_rdkit()
    np.testing.assert_allclose(mol.GetConformer().GetPositions(), own.positions)
    assert Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False) == own.smiles


def test_counted_hydrogens_become_atoms_as_in_the_sdf(tmp_path: Path) -> None:
    own = as_generated(unite_hydrogens(tiny_molecules()[5][0]))
    mol = own.to_rdkit()
    assert mol.GetNumAtoms() == own.num_atoms > len(own.atomic_numbers)
    write_sdf([own], tmp_path / "a.sdf")
    (written,) = Chem.SDMolSupplier(str(tmp_path / "a.sdf"), removeHs=False)
    np.testing.assert_allclose(mol.GetConformer().GetPositions(), written.GetConformer().GetPositions(), atol=1e-4)


def test_what_is_no_molecule_says_why() -> None:
    far = replace(as_generated(tiny_molecules()[5][0]), positions=100 * tiny_molecules()[5][0].positions)
    assert not far.is_valid
    assert far.smiles is None
    assert repr(far) == f"<GeneratedMolecule invalid: isolated_atom, {far.num_atoms} atoms>"
    assert far.to_rdkit().GetNumBonds() == 0
    assert far.to_rdkit().GetNumAtoms() == far.num_atoms


def test_a_graph_is_judged_by_its_bonds() -> None:
    graph = graph_of("CCO")
    own = GeneratedGraph(graph.atomic_numbers, graph.bonds, graph.charges, graph.num_hydrogens)
    assert (own.is_valid, own.smiles) == (True, "CCO")
    broken = replace(own, charges=np.where(np.arange(len(own.charges)) == 0, 1, own.charges))
    assert (broken.is_valid, broken.reject_reason) == (False, "charged")
    assert broken.to_rdkit().GetNumBonds() == own.to_rdkit().GetNumBonds()


def test_notebooks_show_a_picture() -> None:
    picture = Image.open(io.BytesIO(as_generated(tiny_molecules()[5][0])._repr_png_()))
    assert picture.size[0] > 100
    assert len(picture.convert("RGB").getcolors(100_000) or []) > 5


def test_generated_and_reconstructed_objects_are_such(module: UniteModule) -> None:
    molecules = module.generate("molecule", 2, num_steps=2, seed=0)
    assert all(isinstance(molecule, GeneratedMolecule) for molecule in molecules)
    again = module.reconstruct("molecule", ["CCO", "C1CC1"])
    assert [molecule.smiles for molecule in again] == ["CCO", "C1CC1"]


def test_tokenize_takes_smiles_molecules_and_what_was_generated(module: UniteModule) -> None:
    mol = module.reconstruct("molecule", ["CC=O"])[0].to_rdkit()
    (again,) = module.reconstruct("molecule", (mol,))
    assert again.smiles == "CC=O"
    data = data_from_mol(mol, "counted")
    forms: list[list[Any]] = [[mol], [data], [again]]
    latents = [module.tokenize("molecule", form, generator=torch.Generator().manual_seed(0)) for form in forms]
    assert [tuple(latent.shape) for latent in latents] == [(1, 3, 16)] * 3
    torch.testing.assert_close(latents[0], latents[1])


@pytest.mark.parametrize(
    ("item", "words"), [("CCX", "no SMILES"), (3, "not an RDKit molecule"), ("C[N+](C)(C)C", "has the charge")]
)
def test_what_is_no_molecule_is_refused(item: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        batch_of([item], positions=True, hydrogens="counted")


def test_public_names() -> None:
    assert Molecule.__name__ == "Molecule"
    assert QM9DataModule.__name__ == "QM9DataModule"


def test_an_exported_folder_is_no_checkpoint() -> None:
    with pytest.raises(UserError, match=r"load it with UniteModule\.from_pretrained"):
        UniteModule.load_from_checkpoint(MODEL)
