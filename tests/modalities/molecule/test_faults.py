"""Atoms to blame, against cases worked out by hand and against RDKit."""

import numpy as np
import pytest
from rdkit import Chem

from tests.support.samples.graphs import REJECTED, ladder
from tests.support.samples.qm9_rows import tiny_molecules
from unite.modalities.molecule.faults import fault_of_graph, free_valence, structure_of_rejected
from unite.modalities.molecule.perception.distances import unite_hydrogens
from unite.modalities.molecule.perception.molecule import Molecule
from unite.modalities.molecule.perception.perceive import perceive


def line(numbers: list[int], hydrogens: list[int], gaps: dict[int, float] | None = None) -> Molecule:
    """Atoms in a row, 1.3 Å apart; ``gaps`` are other distances behind an atom."""
    steps = [0.0, *((gaps or {}).get(index, 1.3) for index in range(len(numbers) - 1))]
    positions = np.stack([np.cumsum(steps), np.zeros(len(numbers)), np.zeros(len(numbers))], axis=-1)
    return Molecule(np.array(numbers), positions, np.array(hydrogens))


@pytest.mark.parametrize(
    ("molecule", "reason", "atoms", "words"),
    [
        # CH3-C-CH3: the middle lacks two, and nobody else has any left.
        (line([6, 6, 6], [3, 0, 3]), "radical", (1,), "C lacks 2 bonds"),
        (line([6, 6, 8], [3, 2, 0]), "no_bond_orders", (2,), "O lacks a bond"),
        (line([6, 6, 6], [3, 4, 3]), "overvalent_atom", (1,), "C with 6 neighbours"),
        (line([6, 8, 6], [3, 0, 3], gaps={0: 0.3}), "clash", (0, 1), "C and O 0.30 Å apart"),
        (line([6, 6, 8, 6], [3, 3, 1, 3], gaps={1: 4.0, 2: 4.0}), "disconnected", (2, 3), "3 pieces"),
        (line([6, 6, 8], [3, 3, 0], gaps={1: 4.0}), "isolated_atom", (2,), "O without a bond"),
        (line([6, 26], [3, 0]), "unknown_element", (1,), "bonds of Fe do not follow from distances"),
    ],
)
def test_atoms_and_words(molecule: Molecule, reason: str, atoms: tuple[int, ...], words: str) -> None:
    assert perceive(molecule).reason == reason
    fault = structure_of_rejected(molecule)[1]
    assert (fault.atoms, fault.words) == (atoms, words)


def test_bonds_are_raised_so_that_as_few_atoms_as_possible_are_left_over() -> None:
    # Real molecules without one hydrogen of a heavy atom: one valence is left over, wherever the bonds go.
    num_checked = 0
    for molecule, _ in tiny_molecules():
        united = unite_hydrogens(molecule)
        assert united.num_hydrogens is not None
        mol = perceive(molecule).mol
        if mol is None or any(atom.GetFormalCharge() for atom in mol.GetAtoms()) or not united.num_hydrogens.any():
            continue
        counts = united.num_hydrogens.copy()
        counts[np.flatnonzero(counts)[0]] -= 1
        broken = Molecule(united.atomic_numbers, united.positions, counts)
        if perceive(broken).reason is None or len(counts) < 2:
            continue
        structure, fault = structure_of_rejected(broken)
        assert sum(free_valence(atom) for atom in structure.GetAtoms()) == 1
        (atom,) = fault.atoms
        structure.GetAtomWithIdx(atom).SetNumRadicalElectrons(1)
        assert Chem.SanitizeMol(structure) == Chem.SanitizeFlags.SANITIZE_NONE  # RDKit finds nothing else wrong
        num_checked += 1
    assert num_checked > 20


@pytest.mark.parametrize(
    ("reason", "atoms", "words"),
    [
        ("empty", (), "no atoms"),
        ("unknown_element", (0,), "no such element"),
        ("disconnected", (1,), "2 pieces"),
        ("charged", (0,), "charges add up to +1"),
        ("valence", (0,), "C with too many bonds"),
        ("kekulization", (0, 1, 2, 3, 4), "5 atoms cannot be aromatic"),
        ("radical", (0,), "C lacks a bond"),
        ("hydrogens", (2,), "N with wrong hydrogens"),
    ],
)
def test_atoms_and_words_of_graphs(reason: str, atoms: tuple[int, ...], words: str) -> None:
    fault = fault_of_graph(REJECTED[reason])
    assert (fault.atoms, fault.words) == (atoms, words)


def test_molecules_that_are_too_much_are_told_at_once() -> None:
    structure, fault = structure_of_rejected(ladder(300))
    assert structure.GetNumAtoms() == 600
    assert fault.atoms == ()
    assert fault.words == "more than 32 fused rings"
