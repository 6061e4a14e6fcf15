"""Captions of the molecules of QM9, made of what RDKit finds in the data set's SMILES."""

import hashlib
from pathlib import Path

import rdkit
import torch
from rdkit import Chem, rdBase
from torch import Tensor
from tqdm import tqdm

from unite.modalities.molecule.data.descriptions import FACTS, GROUPS, describe, facts_of
from unite.modalities.molecule.data.qm9.table import MoleculeTable, load_or_make


class DescribedMolecules:
    """Caption of each row of a table, made when it is asked for; always the same.

    Args:
        facts: True :data:`~unite.modalities.molecule.data.descriptions.FACTS` of each molecule, shape (N, F).
        numbers: Numbers of the molecules in the data set, shape (N,).
    """

    def __init__(self, facts: Tensor, numbers: Tensor) -> None:
        self.facts = facts
        self.numbers = numbers

    def __getitem__(self, row: int) -> str | None:
        """Caption of a molecule; None if nothing is known of it."""
        known = [FACTS[place] for place in self.facts[row].nonzero()[:, 0].tolist()]
        return describe(known, int(self.numbers[row]))


def load_or_describe(table: MoleculeTable, folder: Path) -> DescribedMolecules:
    """Captions of all molecules; what is true of them is read from a file in ``folder``, or found and kept there.

    Args:
        table: The molecules.
        folder: Where the file lies.

    Raises:
        UserError: It has to be made, and ``folder`` cannot be written to.
    """
    rules = f"{FACTS} {GROUPS} {rdkit.__version__} "
    name = hashlib.sha256(rules.encode() + table.smiles_text.numpy().tobytes()).hexdigest()[:12]
    path = folder / f"facts-{len(table)}-{name}.safetensors"

    def find() -> dict[str, Tensor]:
        return {"facts": torch.stack([_row(smiles) for smiles in tqdm(table.smiles, "describing", unit="mol")])}

    facts = load_or_make(path, find, "what is said of the molecules", "describing the molecules of %s again")["facts"]
    return DescribedMolecules(facts.bool(), table.molecule_id)


def _row(smiles: str) -> Tensor:
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles) if smiles else None
    known = frozenset() if mol is None else facts_of(mol)
    return torch.tensor([fact in known for fact in FACTS], dtype=torch.uint8)
