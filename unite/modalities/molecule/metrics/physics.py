"""Molecules relaxed by GFN2-xTB: how much energy that releases, how far atoms move, whether the bonds stay.

GFN2-xTB is the semiempirical method of Bannwarth, Ehlert and Grimme (J. Chem. Theory Comput. 15, 1652 (2019)), by the
package tblite. What is valid by its distances may still be badly bent: strain tells.
"""

import os
from collections.abc import Collection, Iterable
from functools import partial
from typing import Final

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdMolAlign

from unite.modalities.molecule.files.reading import Record, parse
from unite.modalities.molecule.files.structures import with_positions
from unite.modalities.molecule.metrics.scores import file_reason
from unite.modalities.molecule.perception.distances import short_pairs
from unite.modalities.molecule.perception.elements import FloatArray
from unite.modalities.molecule.perception.molecule import Molecule
from unite.modalities.molecule.perception.perceive import perceive
from unite.modalities.physics import Measured, relax_first, summary

PACKAGES: Final = ("tblite", "ase")
MAX_FORCE: Final = 0.05
"""eV/Å; below, a molecule is relaxed."""
MAX_STEPS: Final = 250


def molecule_physics(
    records: Iterable[Record],
    most: int,
    prefix: str = "physics",
    num_workers: int | None = None,
    skip: Collection[tuple[str, int]] = (),
) -> dict[str, float]:
    """Relax the first valid molecules of files, and measure the changes.

    Args:
        records: Records with positions.
        most: How many molecules to relax.
        prefix: Of the names.
        num_workers: Processes; None for one per CPU, at most eight.
        skip: File and number of records that are known to end a process.

    Returns:
        ``num`` and ``failed`` (see :func:`unite.modalities.physics.summary`); ``strain_median`` and ``strain_90th``,
        the energy that relaxation sets free in eV; ``rmsd_median``, of the heavy atoms in Å, aligned; ``bonds_kept``,
        the mean share of bonds that are bonds afterwards; ``same_bonds``, the share of molecules that keep all and get
        no new ones; ``converged``, the share whose forces fell below :data:`MAX_FORCE` in :data:`MAX_STEPS` steps. The
        strain of the others is a lower bound.
    """
    found = relax_first(
        _relax_record,
        (record for record in records if (record.file, record.number) not in skip),
        most,
        prefix.replace("_", " "),
        "mol",
        num_workers,
    )
    return summary(
        found,
        prefix,
        medians=("strain", "rmsd"),
        upper=("strain",),
        means=("bonds_kept", "same_bonds", "converged"),
    )


def _relax_record(record: Record) -> Measured | None:
    entry = parse(record)
    return None if entry.molecule is None or file_reason(entry) else relax_molecule(entry.molecule)


def relax_molecule(molecule: Molecule) -> Measured | None:
    """What relaxing a molecule gives, by name; None if it is not valid.

    Counted hydrogens are placed by RDKit and relaxed with all other atoms held, before anything is measured: where they
    are put says nothing about the model.

    Raises:
        RuntimeError: The electrons of the molecule have no solution that the method finds.
    """
    mol = perceive(molecule).mol
    if mol is None:
        return None
    os.environ["OMP_NUM_THREADS"] = "1"  # processes share the cores; read when the library is loaded
    from ase import Atoms
    from ase.constraints import FixAtoms
    from ase.optimize import LBFGS
    from tblite.ase import TBLite

    mol = with_positions(mol, molecule)
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    atoms = Atoms(numbers, mol.GetConformer().GetPositions())
    atoms.calc = TBLite(method="GFN2-xTB", charge=molecule.charge, verbosity=0)
    relax = partial(LBFGS, logfile=None)
    if molecule.num_hydrogens is not None and (numbers == 1).any():
        atoms.set_constraint(FixAtoms(mask=numbers != 1))
        relax(atoms).run(fmax=MAX_FORCE, steps=MAX_STEPS)
        atoms.set_constraint()
        mol.GetConformer().SetPositions(atoms.get_positions())
    before = float(atoms.get_potential_energy())
    is_converged = relax(atoms).run(fmax=MAX_FORCE, steps=MAX_STEPS)
    strain = before - float(atoms.get_potential_energy())
    bonds = _bonds(mol)
    kept = set(short_pairs(Molecule(numbers, atoms.get_positions())))
    return {
        "strain": strain,
        "rmsd": _heavy_rmsd(mol, atoms.get_positions()),
        "bonds_kept": len(bonds & kept) / max(len(bonds), 1),
        "same_bonds": float(bonds == kept),
        "converged": float(is_converged),
    }


def _bonds(mol: Chem.Mol) -> set[tuple[int, int]]:
    pairs = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()]
    return {(min(pair), max(pair)) for pair in pairs}


def _heavy_rmsd(mol: Chem.Mol, positions: FloatArray) -> float:
    """Root mean square distance in Å between heavy atoms of a molecule and the same at other positions, aligned."""
    moved = Chem.Mol(mol)
    moved.GetConformer().SetPositions(positions)
    heavy = [(atom.GetIdx(), atom.GetIdx()) for atom in mol.GetAtoms() if atom.GetAtomicNum() != 1]
    return float(rdMolAlign.AlignMol(moved, mol, atomMap=heavy))
