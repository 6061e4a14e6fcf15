"""MoleculeFilesDataModule: molecules a second out of the memory-mapped table, and the memory that it takes.

Run `python benchmarks/molecule_files.py` on an idle machine; one thread reads the table. A million conformers of 50
atoms are made up, so that nothing is downloaded: `--conformers` says how many. `--root` names a folder for them.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from unite.files.tables import write_table
from unite.modalities.molecule.data.files.gathered import ConformerBatchSampler, GatheredSamples
from unite.modalities.molecule.data.files.table import FileTable

BATCH_SIZE = 256
NUM_ATOMS = 50
CONFORMERS_PER_MOLECULE = 5
MOLECULES_AT_ONCE = 2000


def made_up(num_molecules: int) -> Iterator[dict[str, Tensor]]:
    """Chains of atoms at random places, in parts as reading makes them."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, num_molecules, MOLECULES_AT_ONCE):
        number = min(MOLECULES_AT_ONCE, num_molecules - start)
        atoms, bonds = number * NUM_ATOMS, number * (NUM_ATOMS - 1)
        first = torch.arange(NUM_ATOMS - 1, dtype=torch.int16).repeat(number)
        yield {
            "z": torch.randint(1, 10, (atoms,), generator=generator, dtype=torch.uint8),
            "charge": torch.zeros(atoms, dtype=torch.int8),
            "pos": torch.randn(atoms * CONFORMERS_PER_MOLECULE, 3, generator=generator),
            "first": first,
            "second": first + 1,
            "types": torch.ones(bonds, dtype=torch.uint8),
            "num_atoms": torch.full((number,), NUM_ATOMS, dtype=torch.int32),
            "num_conformers": torch.full((number,), CONFORMERS_PER_MOLECULE, dtype=torch.int32),
            "num_bonds": torch.full((number,), NUM_ATOMS - 1, dtype=torch.int32),
            "key": torch.arange(start, start + number),
            "scaffold": torch.arange(start, start + number),
            "fault": torch.zeros(number, dtype=torch.uint8),
            "molecule_id": torch.arange(start, start + number) + 1,
            "origin": torch.zeros(number, dtype=torch.uint8),
            "smiles_text": torch.full((number,), ord("C"), dtype=torch.uint8),
            "smiles_length": torch.ones(number, dtype=torch.int32),
            "y": torch.zeros(number, 0),
        }


def peak_memory() -> float:
    """Most memory that this process had so far, in GB; pages of files are counted, too."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(root: Path, num_conformers: int) -> dict[str, float]:
    """Seconds, rates and memory by name."""
    path = root / "molecules.safetensors"
    num_molecules = num_conformers // CONFORMERS_PER_MOLECULE
    start = time.perf_counter()
    before = peak_memory()
    write_table(lambda: made_up(num_molecules), path, {"properties": "[]"})
    results = {"file in GB": path.stat().st_size / 1e9, "write, s": time.perf_counter() - start}
    start = time.perf_counter()
    table = FileTable.load(path)
    results["open and check, s"] = time.perf_counter() - start
    for bonds in (False, True):
        molecules = GatheredSamples(table, positions=True, bonds=bonds)
        sampler = ConformerBatchSampler(table, torch.arange(len(table)), BATCH_SIZE, shuffle=True, bucket_by_size=False)
        best = 0.0
        for epoch in range(3):
            sampler.set_epoch(epoch)
            start, seen = time.process_time(), 0
            for batch in sampler:
                seen += len(molecules[batch]["molecule"].molecule_id)
                if seen >= 50_000:
                    break
            best = max(best, seen / (time.process_time() - start))
        results[f"molecules/s a core, {'with' if bonds else 'without'} bonds (target 20,000)"] = best
    results["peak memory, GB (target 2)"] = peak_memory()
    results["of which before, GB"] = before
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conformers", type=int, default=1_000_000)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.root or Path(folder), options.conformers)
    for name, value in found.items():
        print(f"{name:<60} {value:12,.2f}")
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n")
