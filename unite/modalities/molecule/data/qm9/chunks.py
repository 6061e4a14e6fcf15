"""Perception of many molecules in chunks that are kept as they come, so that an interrupted run continues."""

import hashlib
import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import rdkit
from torch import Tensor
from tqdm import tqdm

from unite.modalities.molecule import perception
from unite.modalities.molecule.data.qm9.table import checksum
from unite.modalities.molecule.metrics.scores import leave_interrupts_to_the_parent

MOLECULES_PER_CHUNK = 2000
RULES = Path(perception.__file__).parent


def fingerprint(molecules: dict[str, Tensor]) -> str:
    """Short name that changes with the molecules, with the rules of perception, and with RDKit."""
    rules = "".join(file.read_text(encoding="utf8") for file in sorted(RULES.glob("*.py")))
    return hashlib.sha256(f"{checksum(molecules)} {rdkit.__version__} {rules}".encode()).hexdigest()[:12]


def perceive_chunks(
    work: Callable[..., Any],
    chunks: Mapping[Path, tuple[Any, ...]],
    keep: Callable[[Path, Any], None],
    bar: "tqdm[Any]",
    num_processes: int,
    start_method: str | None = None,
) -> None:
    """Do the work of the chunks, in this process or in several.

    Args:
        work: Is given the arguments of a chunk; in another process, so it uses no torch.
        chunks: Arguments of each chunk, the molecules first, by the file that its result is for.
        keep: Is given a file and its result, in any order, in this process.
        bar: Counts the molecules of finished chunks.
        num_processes: Processes to work in; with fewer than two it is this one.
        start_method: How processes are started, see :mod:`multiprocessing`; None is Python's own way.
    """

    def finish(file: Path, found: Any) -> None:
        keep(file, found)
        bar.update(len(chunks[file][0]))

    if num_processes < 2:
        for file, arguments in chunks.items():
            finish(file, work(*arguments))
        return
    context = multiprocessing.get_context(start_method)
    workers = ProcessPoolExecutor(num_processes, context, leave_interrupts_to_the_parent)
    try:
        waiting = {workers.submit(work, *arguments): file for file, arguments in chunks.items()}
        for done in as_completed(waiting):
            finish(waiting[done], done.result())
    finally:  # interrupted, do not begin another chunk
        workers.shutdown(wait=True, cancel_futures=True)


def perception_bar(chunks: Mapping[Path, tuple[Any, ...]], num_molecules: int, description: str) -> "tqdm[Any]":
    """Progress bar over all molecules, of which those outside of ``chunks`` are done."""
    num_missing = sum(len(arguments[0]) for arguments in chunks.values())
    return tqdm(total=num_molecules, initial=num_molecules - num_missing, desc=description, unit="mol", smoothing=0.1)
