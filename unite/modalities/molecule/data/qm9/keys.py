"""Keys of the training molecules, by which novelty is judged: perceived once and kept in a file.

Finished chunks are kept as they come, so that an interrupted run continues.
"""

import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from unite.console import info, shown
from unite.engine.workers import Divisible, num_cpus
from unite.modalities.molecule.data.qm9.chunks import (
    MOLECULES_PER_CHUNK,
    fingerprint,
    one_by_one,
    perceive_chunks,
    perception_bar,
)
from unite.modalities.molecule.data.qm9.table import (
    DamagedCacheError,
    MoleculeTable,
    load_or_make,
    load_tensors,
    save_tensors,
)
from unite.modalities.molecule.perception.molecule import Molecule, hash_key, molecule_key
from unite.modalities.molecule.perception.perceive import perceive_all

MOLECULES_PER_SECOND = 900
"""What one core perceives, roughly; it says in advance how long that takes."""


def training_keys(table: MoleculeTable, rows: Tensor, are_hydrogens_counted: bool, folder: Path) -> Tensor:
    """Hashed keys of those molecules that perception accepts, read from a file or made and written to it.

    Args:
        table: Molecules to choose from.
        rows: Molecules to take, shape (N,).
        are_hydrogens_counted: Whether the table has united atoms.
        folder: Where the file of keys is kept.

    An interruption leaves finished chunks in `folder`, with which the next call continues.

    Returns:
        Sorted distinct keys, int64, at most N.

    Raises:
        UserError: If the keys have to be made and `folder` cannot be written to.
    """
    molecules = select(table, rows, are_hydrogens_counted)
    path = folder / f"training-keys-{rows.numel()}-{fingerprint(molecules)}.safetensors"

    def make() -> dict[str, Tensor]:
        if (num_chunks := -(-rows.numel() // MOLECULES_PER_CHUNK)) > 1:
            seconds = rows.numel() / MOLECULES_PER_SECOND / num_processes(num_chunks)
            info(
                f"perceiving {rows.numel():,} training molecules, by which novelty is judged: about {seconds:.0f} s, "
                f"once; their keys are kept in {shown(folder)}"
            )
        return {"keys": make_keys(molecules, path)}

    keys = load_or_make(path, make, "the QM9 cache", "making %s again")["keys"]
    for chunk in folder.glob(f"{path.stem}.*.part"):
        with suppress(OSError):  # a folder that this user may only read
            chunk.unlink()
    return keys


def select(table: MoleculeTable, rows: Tensor, are_hydrogens_counted: bool) -> dict[str, Tensor]:
    """Flat tensors of the molecules in `rows`: all that their keys depend on."""
    num_atoms = table.num_atoms[rows]
    ptr = torch.cat([num_atoms.new_zeros(1), num_atoms.cumsum(0)])
    atoms = torch.arange(int(ptr[-1])) + torch.repeat_interleave(table.ptr[rows] - ptr[:-1], num_atoms)
    tensors = {"z": table.z[atoms], "pos": table.pos[atoms], "ptr": ptr}
    return tensors | ({"num_hydrogens": table.num_hydrogens[atoms]} if are_hydrogens_counted else {})


def make_keys(molecules: dict[str, Tensor], path: Path) -> Tensor:
    """Sorted distinct hashed keys of the valid ones among flat molecules, with a progress bar.

    Args:
        molecules: What :func:`select` gives.
        path: File that the keys are for; finished chunks are kept beside it, as ``STEM.START-END.part``.
    """
    numbers, positions = molecules["z"].long().numpy(), molecules["pos"].numpy()
    counts = molecules["num_hydrogens"].long().numpy() if "num_hydrogens" in molecules else None
    given = [
        Molecule(numbers[first:end], positions[first:end], None if counts is None else counts[first:end])
        for first, end in pairwise(molecules["ptr"].tolist())
    ]
    keys: set[int] = set()
    missing: dict[Path, list[Molecule]] = {}
    for start, end in pairwise([*range(0, len(given), MOLECULES_PER_CHUNK), len(given)]):
        part = path.with_suffix(f".{start}-{end}.part")
        try:
            keys.update(load_tensors(part)["keys"].tolist())
        except DamagedCacheError:
            missing[part] = given[start:end]

    def keep(part: Path, found: list[int]) -> None:
        save_tensors({"keys": torch.tensor(found, dtype=torch.long)}, part)
        keys.update(found)

    kind = Divisible(keys_of, one_by_one, lambda chunk, failure: [], lambda parts: sorted(set().union(*parts)))
    with perception_bar(missing, len(given), "perceiving training molecules") as bar:
        perceive_chunks(kind, missing, keep, bar, num_processes(len(missing)))
    return torch.tensor(sorted(keys), dtype=torch.long)


def num_processes(num_chunks: int) -> int:
    """Processes for so many chunks: only Linux forks safely, and others would run an unguarded script again."""
    return max(min(num_cpus(), num_chunks), 1) if sys.platform == "linux" else 1


def keys_of(molecules: list[Molecule]) -> list[int]:
    """Sorted distinct hashed keys of the valid ones; uses no torch, for it runs in a process of its own."""
    return sorted({hash_key(molecule_key(found.mol)) for found in perceive_all(molecules) if found.mol is not None})
