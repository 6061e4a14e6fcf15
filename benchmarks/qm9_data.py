"""QM9: time to build and load the cache, molecules per second into PyG batches, and the share of padding.

Run `python benchmarks/qm9_data.py` on an idle machine; one thread is used. `--root` names a folder with a
cache, by default a temporary one in which it is built. Ratios are what to compare between machines.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule

BATCH_SIZE = 256
REPEATS = 3


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def molecules_per_second(loader: Iterable[Any], num_molecules: int) -> float:
    """Best of several epochs."""
    return num_molecules / min(seconds(lambda: [None for _ in loader]) for _ in range(REPEATS))


def padding_share(datamodule: QM9DataModule) -> float:
    """Padded places among all, if each batch is padded to its largest molecule."""
    sizes = [batch["molecule"].ptr.diff() for batch in datamodule.train_dataloader()]
    return 1 - sum(int(size.sum()) for size in sizes) / sum(int(size.max()) * len(size) for size in sizes)


def pyg_loader(datamodule: QM9DataModule) -> DataLoader:
    """What one would write with PyG alone: one object for each molecule, collated in batches."""
    table = datamodule.table()
    bounds = [(int(table.ptr[row]), int(table.ptr[row + 1])) for row in datamodule.rows("train")]
    molecules = [Data(z=table.z[first:end].long(), pos=table.pos[first:end]) for first, end in bounds]
    return DataLoader(molecules, batch_size=BATCH_SIZE, shuffle=True, drop_last=True)


def measure(root: str) -> None:
    print(f"first use (build, unless it is there)  {seconds(QM9DataModule(root).setup):9.2f} s   target < 20")
    print(f"later use (load)                       {seconds(QM9DataModule(root).setup):9.2f} s   target < 1")

    datamodule = QM9DataModule(root, batch_size=BATCH_SIZE)
    num_molecules = datamodule.rows("train").numel() // BATCH_SIZE * BATCH_SIZE
    ours = molecules_per_second(datamodule.train_dataloader(), num_molecules)
    theirs = molecules_per_second(pyg_loader(datamodule), num_molecules)
    print(f"PyG batches from index-gather          {ours:9,.0f} molecules/s   target > 200,000")
    print(f"PyG DataLoader over list of Data       {theirs:9,.0f} molecules/s   ratio {ours / theirs:.1f}")

    for hydrogens in ("explicit", "counted"):
        bucketed, random = (
            padding_share(QM9DataModule(root, hydrogens=hydrogens, batch_size=BATCH_SIZE, bucket_by_size=is_bucketed))
            for is_bucketed in (True, False)
        )
        print(f"padding, {hydrogens} hydrogens            {bucketed:9.1%} bucketed, {random:.1%} random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of a QM9 cache; default: a temporary one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.root:
        measure(arguments.root)
    else:
        with tempfile.TemporaryDirectory() as root:
            measure(root)


if __name__ == "__main__":
    main()
