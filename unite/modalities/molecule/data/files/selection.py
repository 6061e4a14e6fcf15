"""Which molecules of a table a model has a place for, and by what name the others are left out."""

from dataclasses import dataclass

import torch
from rdkit import Chem
from torch import Tensor

from unite.modalities.atoms import ATOMIC_NUMBERS
from unite.modalities.molecule.data.files.records import GRAPH_FAULTS, REFUSALS
from unite.modalities.molecule.data.files.table import FileTable
from unite.modalities.molecule.data.qm9.table import UNATTACHED
from unite.modalities.molecule.preparation import max_hydrogens

REASONS = {
    "no_heavy_atom": "without a heavy atom to count hydrogens on",
    "uncountable_hydrogen": "with a hydrogen that belongs to no single heavy atom",
    "charged": "charged in sum, which a model of bonds has no place for",
    "radical": "with an unpaired electron, which a model of bonds has no place for",
    "bond_type": "with a bond of another type than single, double, triple, aromatic",
    "no_bonds": "without bonds, and perception finds none that make sense",
    "too_large": "of more atoms than the model has places for",
    "atom_charge": "with an atom of a larger charge than the model knows",
}
"""Why a molecule is left out of a view; an element or an atom that the model lacks is named by itself."""


@dataclass(frozen=True)
class View:
    """Which molecules a model takes, and with which hydrogens and bonds; None for no limit.

    Attributes:
        hydrogens: ``explicit`` or ``counted``.
        bonds: Whether molecules have bonds and charges.
        elements: Symbols that the model knows.
        max_atoms: Most tokens of a molecule.
        max_charge: Largest formal charge of an atom, of either sign; heeded with bonds only.
    """

    hydrogens: str
    bonds: bool
    elements: tuple[str, ...] | None = None
    max_atoms: int | None = None
    max_charge: int | None = None


def select(table: FileTable, view: View) -> tuple[Tensor, dict[str, int]]:
    """Rows of the molecules that fit a view, shape (N,), and how many are left out, by reason: each by its first one.

    Args:
        table: Molecules with hydrogens as the view has them.
        view: Which molecules the model takes.
    """
    is_left = torch.ones(len(table), dtype=torch.bool)
    counts: dict[str, int] = {}

    def leave_out(reason: str, is_meant: Tensor) -> None:
        is_meant = is_meant & is_left
        if number := int(is_meant.sum()):
            counts[reason] = counts.get(reason, 0) + number
            is_left[is_meant] = False

    def have(is_meant: Tensor) -> Tensor:
        """Molecules with such an atom."""
        return table.per_molecule(is_meant) > 0

    if table.num_hydrogens is not None:
        leave_out("no_heavy_atom", table.num_atoms == 0)
        leave_out("uncountable_hydrogen", have(table.num_hydrogens == UNATTACHED))
    if view.bonds:
        for number, fault in enumerate(GRAPH_FAULTS[1:], start=1):
            leave_out(fault, table.fault == number)
        if view.max_charge is not None:
            leave_out("atom_charge", have(table.charge.abs() > view.max_charge))
    if view.max_atoms is not None:
        leave_out("too_large", table.num_atoms > view.max_atoms)
    known = set(ATOMIC_NUMBERS if view.elements is None else view.elements)
    for symbol in elements_of(table):
        is_element = table.z == ATOMIC_NUMBERS[symbol]
        if symbol not in known:
            leave_out(f"element_{symbol}", have(is_element))
        elif table.num_hydrogens is not None:
            most = max_hydrogens(ATOMIC_NUMBERS[symbol])
            for count in table.num_hydrogens[is_element].unique().tolist():
                if most < count != UNATTACHED:
                    leave_out(f"atom_{symbol}H{count}", have(is_element & (table.num_hydrogens == count)))
    return is_left.nonzero()[:, 0], counts


def elements_of(table: FileTable, rows: Tensor | None = None) -> list[str]:
    """Symbols of the elements that occur in a table, or in some rows of it, in the order of their numbers."""
    numbers = table.z
    if rows is not None:
        is_taken = torch.zeros(len(table), dtype=torch.bool)
        is_taken[rows] = True
        numbers = numbers[is_taken.repeat_interleave(table.num_atoms.long())]
    is_there = numbers.bincount(minlength=119)
    symbol_of = Chem.GetPeriodicTable().GetElementSymbol
    return [str(symbol_of(number)) for number in is_there.nonzero()[:, 0].tolist()]


def described(counts: dict[str, int]) -> str:
    """``12 of several pieces (mixture), 3 with I (element_I)``: the largest first."""
    parts = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{number:,} {reason_in_words(reason)} ({reason})" for reason, number in parts)


def reason_in_words(reason: str) -> str:
    """What a reason means."""
    kind, _, name = reason.partition("_")
    if reason in REASONS or reason in REFUSALS:
        return {**REASONS, **REFUSALS}[reason]
    return f"with {name}, which the model does not know" if kind == "element" else f"with {name} as one united atom"
