"""Do samples keep a part that is given, and are they still molecules?

Three parts of validation molecules of QM9: a ring, a group, a chain. SciPy, which has no part in the sampling, says
whether elements and relative positions are those of the molecule. The base: samples of the model without a part.

    python benchmarks/fixed_parts.py qm9 --root data/qm9 --num_samples 300
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from unite import UniteModule
from unite.modalities.molecule import QM9DataModule
from unite.modalities.molecule.perception.molecule import Molecule, has_charged_carbon
from unite.modalities.molecule.perception.perceive import perceive
from unite.modalities.template import Wanted

PARTS = {
    "ring C4O, of N#CC(=O)C1CCOC1": (42322, [4, 5, 6, 7, 8]),
    "group NC(=O)C, of C#CCCC(=O)NC": (9185, [1, 2, 3, 4]),
    "chain CCCO, of CCC(C=O)CCCO": (122108, [3, 4, 5, 6]),
}
"""Number of a molecule in QM9, and atoms of its part."""
TOLERANCE = 0.1  # Å


def deviation(molecule: Molecule, places: Sequence[int], original: Molecule, atoms: Sequence[int]) -> float:
    """Largest distance in Å of an atom from where the original has it; infinite where an element differs."""
    if molecule.atomic_numbers[list(places)].tolist() != original.atomic_numbers[list(atoms)].tolist():
        return float("inf")
    there, here = (item.positions[list(chosen)] for item, chosen in ((original, atoms), (molecule, places)))
    there, here = there - there.mean(axis=0), here - here.mean(axis=0)
    turn, _ = Rotation.align_vectors(there, here)
    return float(np.linalg.norm(turn.apply(here) - there, axis=1).max())


def summary(molecules: Sequence[Molecule], kept: Sequence[bool]) -> dict[str, float]:
    """Shares of all samples, and of the valid ones that differ."""
    found = [perceive(molecule).mol for molecule in molecules]
    keys = [molecule.smiles for molecule, mol in zip(molecules, found, strict=True) if mol is not None]
    neutral = [mol is not None and not has_charged_carbon(mol) for mol in found]
    return {
        "keeps the part": float(np.mean(kept)),
        "valid": len(keys) / len(found),
        "keeps it and is valid": float(np.mean([k and mol is not None for k, mol in zip(kept, found, strict=True)])),
        "keeps it, valid and not charged": float(np.mean([k and n for k, n in zip(kept, neutral, strict=True)])),
        "uniqueness": len(set(keys)) / max(len(keys), 1),
    }


def main() -> None:
    """Print a table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run folder, or name of a model that comes with the package")
    parser.add_argument("--root", default="data/qm9", help="cache of QM9")
    parser.add_argument("--num_samples", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("fixed_parts.json"))
    options = parser.parse_args()
    is_path = Path(options.model).exists()
    module = (UniteModule.load_from_checkpoint if is_path else UniteModule.from_pretrained)(options.model)
    adapter = module.adapters["molecule"]
    data = QM9DataModule(options.root, hydrogens="counted")
    data.prepare_data()
    table = data.table()
    draw = {"num_samples": options.num_samples, "seed": options.seed}
    rows = {"no part": summary(made := module.generate("molecule", **draw), [False] * len(made))}
    for name, (number, atoms) in PARTS.items():
        row = int((table.molecule_id == number).nonzero())
        (original,) = adapter.originals(adapter.prepare(data.molecules()[row]["molecule"]))
        wanted = {"fix": original, "fix_atoms": atoms}
        made = module.generate("molecule", **draw, **wanted)
        generator = torch.Generator().manual_seed(options.seed)
        part = adapter.wanted_template(options.num_samples, Wanted(**wanted), generator).part
        kept = [
            deviation(molecule, places, original, atoms) < TOLERANCE
            for molecule, places in zip(made, part.places.tolist(), strict=True)
        ]
        rows[name] = summary(made, kept)
        print(name, {key: f"{value:.1%}" for key, value in rows[name].items()}, flush=True)
    print("no part", {key: f"{value:.1%}" for key, value in rows["no part"].items()})
    options.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
