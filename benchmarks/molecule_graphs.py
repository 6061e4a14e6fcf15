"""Molecular graphs: CPU time and memory of the pair head by number of atoms, and real molecules there and back.

Run `python benchmarks/molecule_graphs.py` on an idle machine; one thread is used. Ratios are what to compare between
machines. `--num_molecules 10000` sends so many molecules of QM9 through RDKit -> sample -> perfect prediction -> RDKit.
"""

import argparse
import time
from itertools import pairwise

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch_geometric.data import Batch

from unite.modalities.base import Template
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.modalities.molecule.batches import GatheredMolecules
from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule
from unite.modalities.molecule.graph import BOND_TYPES, assemble
from unite.modalities.molecule.layers import GraphPrediction
from unite.modalities.molecule.perception.molecule import hash_key, molecule_key
from unite.modalities.molecule.preparation import MoleculePrediction

REPEATS = 3


def measure_pair_head(num_atoms: int, width: int = 384, num_molecules: int = 2) -> tuple[float, float, float]:
    """Seconds of a step of the decoder alone and of its pair head, and megabytes that the head keeps, per molecule."""
    adapter = MoleculeAdapter(positions=False, bonds=True, max_atoms=num_atoms, decoder_depth=4, decoder_heads=6)
    adapter.build(width, latent_channels=16)
    latents = torch.randn(num_molecules, num_atoms, 16)
    template = Template(torch.full((num_molecules,), num_atoms))

    def run_decoder() -> None:
        adapter.decoder(latents, adapter.places[:num_atoms], template.mask).sum().backward()

    hidden = torch.randn(num_molecules, num_atoms, width, requires_grad=True)
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def run_head() -> None:
        kept.clear()
        with saved_tensors_hooks(count, lambda tensor: tensor):
            loss = adapter.pairs(hidden).sum()
        loss.backward()

    return (
        best_time(run_decoder) / num_molecules,
        best_time(run_head) / num_molecules,
        sum(kept.values()) / num_molecules / 1e6,
    )


def best_time(function: object) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        function()  # type: ignore[operator]
        times.append(time.process_time() - start)
    return min(times)


def perfect(adapter: MoleculeAdapter, batch: Batch) -> tuple[MoleculePrediction, Template]:
    """What a decoder without errors would say."""
    prepared = adapter.prepare(batch)
    assert prepared.graph is not None
    one_hot = torch.nn.functional.one_hot
    graph = GraphPrediction(
        one_hot(prepared.graph.bonds, len(BOND_TYPES)).float(), one_hot(prepared.graph.charges + 1, 3).float()
    )
    types = one_hot(prepared.types, len(adapter.vocabulary)).float()
    return MoleculePrediction(types, prepared.positions, prepared.mask, graph), adapter.template(prepared)


def there_and_back(root: str, num_molecules: int) -> None:
    for hydrogens in ("explicit", "counted"):
        datamodule = QM9DataModule(root, hydrogens=hydrogens, bonds=True)  # type: ignore[arg-type]
        bonds = datamodule.bond_table()
        molecules = GatheredMolecules(datamodule.table(), hydrogens == "counted", bonds)
        adapter = MoleculeAdapter(positions=False, bonds=True, hydrogens=hydrogens)  # type: ignore[arg-type]
        adapter.build(32, latent_channels=4)
        rows = datamodule.table().permutation
        rows = rows[bonds.has_bonds[rows]][:num_molecules]
        num_same = 0
        for start, end in pairwise([*range(0, len(rows), 500), len(rows)]):
            part = rows[start:end]
            prediction, template = perfect(adapter.eval(), molecules[part]["molecule"])
            for graph, key in zip(adapter.finish(prediction, template), bonds.key[part].tolist(), strict=True):
                mol = assemble(graph).mol  # type: ignore[arg-type]
                num_same += mol is not None and hash_key(molecule_key(mol)) == key
        print(f"{hydrogens}: {num_same:,} of {len(rows):,} molecules come back with the same canonical SMILES")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data/qm9", help="folder with the cache of QM9 and its bonds")
    parser.add_argument("--num_molecules", type=int, default=0, help="molecules to send there and back")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "per molecule, width 384: a decoder of 4 blocks, the pair head, its share, and what it keeps for the backward"
    )
    for num_atoms in (9, 29, 60, 100, 200):
        decoder, head, megabytes = measure_pair_head(num_atoms)
        print(
            f"{num_atoms:5d} atoms {1e3 * decoder:8.1f} ms {1e3 * head:8.2f} ms {head / (decoder + head):7.0%} "
            f"{megabytes:8.1f} MB"
        )
    if options.num_molecules:
        there_and_back(options.root, options.num_molecules)


if __name__ == "__main__":
    main()
