"""Molecules of a kind that the shipped QM9 model rarely makes, to be tuned to with `unite fit --init_from qm9`.

`python benchmarks/init_from.py write fluorine.xyz` writes 400 molecules of QM9 with fluorine, drawn by a fixed seed
(1.5 % of QM9 have some); `python benchmarks/init_from.py count SAMPLES.xyz` counts them among samples. What came of it,
and the commands in between: docs/results/init_from.md.
"""

import argparse
from pathlib import Path

import torch
from rdkit import Chem

from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule

NUM_MOLECULES = 400
FLUORINE = 9


def write(path: Path, root: str) -> None:
    """Write the molecules as an XYZ file."""
    table = QM9DataModule(root).table()
    owner = torch.repeat_interleave(torch.arange(len(table)), table.num_atoms)
    rows = owner[table.z == FLUORINE].unique()
    print(f"{len(rows):,} of {len(table):,} molecules have fluorine")
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:NUM_MOLECULES]]
    symbol_of = Chem.GetPeriodicTable().GetElementSymbol
    frames = []
    for row in rows.tolist():
        atoms = slice(*table.ptr[[row, row + 1]].tolist())
        lines = [
            f"{symbol_of(number)} {x:.6f} {y:.6f} {z:.6f}"
            for number, (x, y, z) in zip(table.z[atoms].tolist(), table.pos[atoms].tolist(), strict=True)
        ]
        frames.append("\n".join([str(len(lines)), f"molecule_id={table.molecule_id[row]}", *lines]) + "\n")
    path.write_text("".join(frames))


def count(path: Path) -> None:
    """Print how many samples have fluorine, and are valid."""
    lines = path.read_text().splitlines()
    number = with_fluorine = valid = both = start = 0
    while start < len(lines):
        end = start + 2 + int(lines[start])
        has_fluorine = any(line.split()[0] == "F" for line in lines[start + 2 : end])
        is_valid = "valid=T" in lines[start + 1]
        number, with_fluorine, valid = number + 1, with_fluorine + has_fluorine, valid + is_valid
        both += has_fluorine and is_valid
        start = end
    print(f"{number} samples: {with_fluorine} with fluorine, {valid} valid, {both} both")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("write", "count"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--root", default="data/qm9", help="folder of the QM9 cache")
    options = parser.parse_args()
    if options.what == "write":
        write(options.path, options.root)
    else:
        count(options.path)
