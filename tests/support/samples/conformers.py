"""Molecules with coordinates for tests, made of SMILES by RDKit."""

from functools import cache

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from unite.modalities.molecule.perception.molecule import Molecule, molecule_key

#: Of every element that perception knows beside QM9's, and of groups whose bonds RDKit's search does not find.
MANY_ELEMENTS = (
    "CC(=O)Oc1ccccc1C(=O)O",
    "Clc1ccc(Br)cc1I",
    "CS(=O)(=O)Nc1ccccc1",
    "CS(C)=O",
    "O=c1[nH]c2sccc2c(=O)n1C",
    "CN1C(=S)NC(=O)C1",
    "CSc1nc2c([nH]1)c(=O)[nH]c(=O)n2C",
    "C[Si](C)(C)O[Si](C)(C)C",
    "OB(O)c1ccccc1",
    "COP(=O)(OC)OC",
    "CP(c1ccccc1)c1ccccc1",
    "S=P(OC)(OC)Oc1ccc([N+](=O)[O-])cc1",
    "O=[N+]([O-])c1ccc(N2CCOCC2)c([N+](=O)[O-])c1",
    "CSCN=[N+]=[N-]",
    "CCSC(=O)C=[N+]=[N-]",
    "C[N+](C)(C)[O-]",
    "Clc1cccc[n+]1[O-]",
    "[C-]#[N+]CCS",
    "CS(=O)(=N)C",
    "OS(=O)(=O)O",
    "Fc1ccc(S)cc1",
    "NS(=O)(=O)c1nnc(NC(C)=O)s1",
    "C[Se]CCC(N)C(=O)O",
    "C[Ge](C)(C)C",
    "C[As](C)C",
    "C[Te]C",
    "c1ccc2c(c1)sc1ccccc12",
    "CN1CCN(CC1)C1=Nc2cc(Cl)ccc2Nc2ccccc12",
    "[O-]C(=O)C[NH2+]CS",
)


@cache
def embedded(smiles: str) -> tuple[Molecule, str]:
    """A molecule with ETKDG's coordinates, relaxed where MMFF can, and its key; charged as its SMILES says."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=1) == 0, smiles
    if rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
        rdForceFieldHelpers.MMFFOptimizeMolecule(mol)
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.int64)
    positions = mol.GetConformer().GetPositions()
    return Molecule(numbers, positions, charge=Chem.GetFormalCharge(mol)), molecule_key(mol)
