"""Keys of the training molecules, by which novelty is judged: perceived once and kept in a file."""

import hashlib
import logging
from itertools import pairwise
from pathlib import Path

import rdkit
import torch
from torch import Tensor
from tqdm import tqdm

from unite.folders import require_writable
from unite.modalities import molecule_perception
from unite.modalities.molecule_perception import Molecule, hash_key, molecule_key, perceive_all
from unite.modalities.qm9_cache import (
    WRITE_HINT,
    DamagedCacheError,
    MoleculeTable,
    checksum,
    load_tensors,
    save_tensors,
)

MOLECULES_AT_ONCE = 1000

logger = logging.getLogger(__name__)


def training_keys(table: MoleculeTable, rows: Tensor, are_hydrogens_counted: bool, folder: Path) -> Tensor:
    """Hashed keys of those molecules that perception accepts, read from a file or made and written to it.

    Args:
        table: Molecules to choose from.
        rows: Molecules to take, shape (N,).
        are_hydrogens_counted: Whether the table has united atoms.
        folder: Where the file of keys is kept.

    Returns:
        Sorted distinct keys, int64, at most N.

    Raises:
        UserError: If the keys have to be made and `folder` cannot be written to.
    """
    molecules = select(table, rows, are_hydrogens_counted)
    path = folder / f"training-keys-{rows.numel()}-{fingerprint(molecules)}.safetensors"
    if path.exists():
        try:
            return load_tensors(path)["keys"]
        except DamagedCacheError as error:
            logger.warning("making %s again: %s", path, error)
    require_writable(folder, WRITE_HINT, "the QM9 cache")
    keys = make_keys(molecules)
    save_tensors({"keys": keys}, path)
    return keys


def select(table: MoleculeTable, rows: Tensor, are_hydrogens_counted: bool) -> dict[str, Tensor]:
    """Flat tensors of the molecules in `rows`: all that their keys depend on."""
    num_atoms = table.num_atoms[rows]
    ptr = torch.cat([num_atoms.new_zeros(1), num_atoms.cumsum(0)])
    atoms = torch.arange(int(ptr[-1])) + torch.repeat_interleave(table.ptr[rows] - ptr[:-1], num_atoms)
    tensors = {"z": table.z[atoms], "pos": table.pos[atoms], "ptr": ptr}
    return tensors | ({"num_hydrogens": table.num_hydrogens[atoms]} if are_hydrogens_counted else {})


def fingerprint(molecules: dict[str, Tensor]) -> str:
    """Short name that changes with the molecules, with the rules of perception, and with RDKit."""
    rules = Path(molecule_perception.__file__).read_text(encoding="utf8")
    return hashlib.sha256(f"{checksum(molecules)} {rdkit.__version__} {rules}".encode()).hexdigest()[:12]


def make_keys(molecules: dict[str, Tensor]) -> Tensor:
    """Sorted distinct hashed keys of the valid ones among flat molecules, with a progress bar."""
    numbers, positions = molecules["z"].long().numpy(), molecules["pos"].numpy()
    counts = molecules["num_hydrogens"].long().numpy() if "num_hydrogens" in molecules else None
    given = [
        Molecule(numbers[first:end], positions[first:end], None if counts is None else counts[first:end])
        for first, end in pairwise(molecules["ptr"].tolist())
    ]
    keys: set[int] = set()
    with tqdm(total=len(given), desc="perceiving training molecules", unit="mol", smoothing=0.1) as bar:
        for start in range(0, len(given), MOLECULES_AT_ONCE):
            perceptions = perceive_all(given[start : start + MOLECULES_AT_ONCE])
            keys.update(hash_key(molecule_key(found.mol)) for found in perceptions if found.mol is not None)
            bar.update(len(perceptions))
    return torch.tensor(sorted(keys), dtype=torch.long)
