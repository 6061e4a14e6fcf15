"""Perception of many molecules in chunks that are kept as they come, so that an interrupted run continues."""

import hashlib
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import rdkit
from torch import Tensor
from tqdm import tqdm

from unite.engine.workers import Divisible, work_apart
from unite.modalities.molecule import perception
from unite.modalities.molecule.data.qm9.table import checksum

MOLECULES_PER_CHUNK = 2000
RULES = Path(perception.__file__).parent

Record = TypeVar("Record")
Result = TypeVar("Result")


def fingerprint(molecules: dict[str, Tensor]) -> str:
    """Short name that changes with the molecules, with the rules of perception, and with RDKit."""
    content = f"{checksum(molecules)} {rdkit.__version__} {rules_of_perception()}"
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def rules_of_perception() -> str:
    """The rules of perception as text, which is another when they are."""
    return "".join(file.read_text(encoding="utf8") for file in sorted(RULES.glob("*.py")))


def perceive_chunks(
    kind: Divisible[list[Record], Result],
    chunks: Mapping[Path, list[Record]],
    keep: Callable[[Path, Result], None],
    bar: "tqdm[Any]",
    num_processes: int,
) -> None:
    """Do the work of the chunks in processes of their own, so that a molecule that ends one is refused by itself.

    Elsewhere than on Linux, where no process can be forked safely, one process means this one.

    Args:
        kind: Done in another process, so it uses no torch.
        chunks: Molecules, and what else is known of them, by the file that their result is for.
        keep: Is given a file and its result, in any order, in this process.
        bar: Counts the molecules of finished chunks.
        num_processes: Processes to work in.
    """
    files = list(chunks)
    if num_processes < 2 and sys.platform != "linux":
        done = ((number, kind.work(chunk)) for number, chunk in enumerate(chunks.values()))
    else:
        done = work_apart(kind, chunks.values(), num_processes)
    with closing(done):
        for number, found in done:
            keep(files[number], found)
            bar.update(len(chunks[files[number]]))


def one_by_one(chunk: list[Record]) -> list[list[Record]]:
    """Chunks of one molecule."""
    return [[record] for record in chunk]


def perception_bar(chunks: Mapping[Path, list[Any]], num_molecules: int, description: str) -> "tqdm[Any]":
    """Progress bar over all molecules, of which those outside of ``chunks`` are done."""
    num_missing = sum(map(len, chunks.values()))
    return tqdm(total=num_molecules, initial=num_molecules - num_missing, desc=description, unit="mol", smoothing=0.1)
