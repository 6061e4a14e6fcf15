"""Molecules per second through the generation metrics, and seconds of `unite score molecules` from start to end.

Real molecules, garbage, and chains that are hard to refuse. The target is 10,000 molecules in less than 10 s on two
cores, garbage no slower than real molecules. Needs qm9pack.

    python benchmarks/molecule_metrics.py --num_molecules 10000 --output molecule_metrics.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from unite.modalities.molecule.metrics.generation import MoleculeGenerationMetrics
from unite.modalities.molecule.metrics.reconstruction import MoleculeReconstructionMetrics
from unite.modalities.molecule.perception.distances import unite_hydrogens
from unite.modalities.molecule.perception.elements import QM9_ELEMENTS, FloatArray
from unite.modalities.molecule.perception.molecule import Molecule

TARGET_RATE = 1000.0  # molecules/s
MAX_CHAINS = 200  # each costs RDKit its full allowance of iterations


def chain(atomic_numbers: Sequence[int]) -> Molecule:
    steps = np.arange(len(atomic_numbers))
    positions = np.stack([1.2 * steps, 0.5 * (steps % 2), np.zeros(len(steps))], axis=1)
    return Molecule(np.array(atomic_numbers), positions)


def cases(reals: Sequence[Molecule]) -> dict[str, list[Molecule]]:
    generator = np.random.default_rng(0)

    def moved(move: Callable[[FloatArray], FloatArray]) -> list[Molecule]:
        return [Molecule(real.atomic_numbers, move(real.positions.astype(np.float64))) for real in reals]

    def noisy(scale: float) -> list[Molecule]:
        return moved(lambda positions: positions + generator.normal(scale=scale, size=positions.shape))

    return {
        "real": list(reals),
        "real, united atoms": [unite_hydrogens(real) for real in reals],
        "noise 0.05 Å": noisy(0.05),
        "noise 0.1 Å": noisy(0.1),
        "noise 0.3 Å": noisy(0.3),
        "collapsed": moved(lambda positions: 0.05 * generator.normal(size=positions.shape)),
        "box 5 Å": moved(lambda positions: generator.uniform(0, 5, size=positions.shape)),
        "box 20 Å": moved(lambda positions: generator.uniform(0, 20, size=positions.shape)),
        "random types": [
            Molecule(generator.choice(QM9_ELEMENTS, size=len(real.atomic_numbers)), real.positions) for real in reals
        ],
        "nan": moved(lambda positions: positions * np.nan),
        "chains of 29 N": [chain([7] * 29)] * MAX_CHAINS,
        "chains of 29 O": [chain([8] * 29)] * MAX_CHAINS,
        "chains of N and O": [chain(generator.choice([7, 8], size=29).tolist()) for _ in range(MAX_CHAINS)],
    }


def read_reals(number: int) -> list[Molecule]:
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.modalities.qm9_rows import random_molecules

    return [molecule for molecule, _ in random_molecules(number)]


def time_generation(molecules: Sequence[Molecule]) -> dict[str, float]:
    metric = MoleculeGenerationMetrics()
    start = time.perf_counter()
    metric.update(molecules)
    metrics = metric.compute()
    seconds = time.perf_counter() - start
    return {
        "molecules_per_s": len(molecules) / seconds,
        **{name: float(value) for name, value in metrics.items()},
    }


def time_command(molecules: Sequence[Molecule], folder: Path, num_workers: int) -> dict[str, float]:
    """Seconds of the command in a process of its own, Python's start included; without novelty, which needs a cache."""
    path = folder / "molecules.xyz"
    with path.open("w") as file:  # without the perception that write_xyz adds
        for molecule in molecules:
            file.write(f"{len(molecule.positions)}\n\n")
            for number, (x, y, z) in zip(molecule.atomic_numbers, molecule.positions, strict=True):
                file.write(f"{number} {x:.6f} {y:.6f} {z:.6f}\n")
    command = [sys.executable, "-m", "unite", "score", "molecules", path, "--no_novelty", "--overwrite"]
    before, start = os.times(), time.perf_counter()
    subprocess.run(
        [*command, "--num_workers", str(num_workers)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    seconds, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall_s": seconds, "cpu_s": cpu}


def time_reconstruction(number: int) -> float:
    positions = torch.randn(number, 29, 3, generator=torch.Generator().manual_seed(0))
    types = torch.ones(number, 29, dtype=torch.long)
    mask = torch.ones(number, 29, dtype=torch.bool)
    metric = MoleculeReconstructionMetrics()
    start = time.perf_counter()
    for rows in torch.arange(number).split(256):
        metric.update(types[rows], positions[rows] + 0.01, types[rows], positions[rows], mask[rows])
    metric.compute()
    return number / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_molecules", type=int, default=10_000)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--num_threads", type=int, default=1)
    parser.add_argument("--num_workers", type=int, default=2, help="processes of unite score molecules")
    options = parser.parse_args()
    torch.set_num_threads(options.num_threads)

    reals = read_reals(options.num_molecules)
    everything = cases(reals)
    time_generation(reals[:100])  # warm up
    results = {name: time_generation(molecules) for name, molecules in everything.items()}
    real_rate = results["real"]["molecules_per_s"]
    print(f"{'case':<22} {'molecules/s':>12} {'of real':>8} {'of target':>10} {'validity':>9} {'stable':>9}")
    for name, result in results.items():
        rate = result["molecules_per_s"]
        print(
            f"{name:<22} {rate:12,.0f} {rate / real_rate:8.2f} {rate / TARGET_RATE:10.2f} "
            f"{result['validity']:9.4f} {result['molecule_stability']:9.4f}"
        )
    reconstruction_rate = time_reconstruction(options.num_molecules)
    print(f"{'reconstruction':<22} {reconstruction_rate:12,.0f}")
    commands = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("real", "noise 0.1 Å", "box 5 Å", "nan", "chains of N and O"):
            commands[name] = time_command(everything[name], Path(folder), options.num_workers)
            print(
                f"unite score molecules, {len(everything[name]):,} x {name}, {options.num_workers} processes: "
                f"{commands[name]['wall_s']:.1f} s, of CPU {commands[name]['cpu_s']:.1f} s"
            )
    if options.output is not None:
        report = {
            "num_molecules": options.num_molecules,
            "num_threads": options.num_threads,
            "reconstruction_molecules_per_s": reconstruction_rate,
            "generation": results,
            "command": commands,
        }
        options.output.write_text(json.dumps(report, indent=2) + "\n")
        print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
