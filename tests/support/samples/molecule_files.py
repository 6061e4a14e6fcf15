"""Molecule files as people have them, made with RDKit."""

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from rdkit import Chem
from rdkit.Chem import rdDistGeom

from unite.modalities.molecule.data.files.datamodule import MoleculeFilesDataModule

DRUG_LIKE = (
    "CC(=O)Oc1ccccc1C(=O)O",
    "Clc1ccccc1",
    "CS(=O)(=O)c1ccc(Br)cc1",
    "C[Si](C)(C)O",
    "OB(O)c1ccccc1",
    "CC(C)I",
    "CP(C)C",
    "CCO",
    "c1ccncc1",
    "CC(N)=O",
    "C1CC1",
    "OCCN",
)
"""Twelve molecules of eleven elements."""


@cache
def _shaped(smiles: str, seed: int) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=seed) == 0
    return mol


def with_shape(smiles: str, seed: int = 7, **properties: object) -> Chem.Mol:
    """A molecule with hydrogens and a shape, and data items for an SDF."""
    mol = Chem.Mol(_shaped(smiles, seed))
    for name, value in properties.items():
        mol.SetProp(name, str(value))
    return mol


def write_sdf(path: Path, mols: Iterable[Chem.Mol]) -> Path:
    """An SDF of molecules as they are."""
    with Chem.SDWriter(str(path)) as writer:
        for mol in mols:
            writer.write(mol)
    return path


def write_text(path: Path, *lines: str) -> Path:
    """A file of lines."""
    path.write_text("\n".join(lines) + "\n")
    return path


def datamodule(path: Path, **settings: Any) -> MoleculeFilesDataModule:
    """The datamodule of a file, with its cache beside it."""
    values: Mapping[str, Any] = {"num_conformers": 1, "batch_size": 4, "cache": str(path.parent / "cache"), **settings}
    return MoleculeFilesDataModule(str(path), **values)
