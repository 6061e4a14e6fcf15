"""Molecules judged by the bonds that their files give them: those of an SDF, and SMILES."""

from typing import Final, NamedTuple

from rdkit import Chem, rdBase

from unite.modalities.molecule.files.reading import Record, counted_hydrogens
from unite.modalities.molecule.perception.molecule import has_charged_carbon, hash_key, molecule_key
from unite.modalities.molecule.perception.sanitizing import TooManyRingsError, has_too_many_rings, sanitize

WRITTEN_REASONS: Final = (
    "unreadable",
    "too_slow",
    "crashed",
    "sanitization",
    "disconnected",
    "radical",
    "implicit_hydrogen",
)
"""Reasons to reject a molecule by the bonds of its file, in the order of the checks."""


class Written(NamedTuple):
    """What the bonds in an SDF make of a molecule.

    Attributes:
        key: Key of a valid one.
        reason: One of :data:`WRITTEN_REASONS`, or None if it is valid.
        smiles: SMILES of a valid one, without stereochemistry.
    """

    key: int | None
    reason: str | None
    smiles: str | None = None


def judge_as_written(record: Record) -> Written:
    """Whether a molecule is valid with the bonds, charges and hydrogens that its SDF gives it.

    In our own files of united atoms the hydrogens are those counted: the valences must imply just as many.
    """
    with rdBase.BlockLogs():
        mol: Chem.Mol | None = Chem.MolFromMolBlock(
            "\n".join(record.lines), sanitize=False, removeHs=False, strictParsing=False
        )
        if mol is None or mol.GetNumAtoms() == 0:
            return Written(None, "unreadable")
        try:
            sanitize(mol)
        except TooManyRingsError:
            return Written(None, "too_slow")
        except (ValueError, RuntimeError):
            return Written(None, "sanitization")
        atoms = list(mol.GetAtoms())
        reason = None
        if len(Chem.GetMolFrags(mol)) > 1:
            reason = "disconnected"
        elif any(atom.GetNumRadicalElectrons() for atom in atoms):
            reason = "radical"
        elif [str(atom.GetTotalNumHs()) for atom in atoms] != _implied_hydrogens(record, len(atoms)):
            reason = "implicit_hydrogen"
        if reason is not None:
            return Written(None, reason)
        smiles = molecule_key(mol)
        return Written(hash_key(smiles), None, smiles)


def _implied_hydrogens(record: Record, num_atoms: int) -> list[str]:
    """How many hydrogens each atom may have that are no atoms: those counted, unless they were added as atoms."""
    counts = counted_hydrogens(record.lines)
    return counts if counts is not None and len(counts) == num_atoms else ["0"] * num_atoms


class SmilesVerdict(NamedTuple):
    """What a SMILES is.

    Attributes:
        smiles: The canonical one without stereochemistry, if RDKit reads it, valid or not.
        reason: One of :data:`WRITTEN_REASONS`, or None if it is a valid molecule.
        detail: RDKit's message for one that it cannot read.
        symbols: Symbol of every atom, hydrogens among them.
        is_connected: Whether it is one piece.
        has_charged_carbon: Whether a carbon has a charge.
        num_rings: Rings of a molecule that can be read.
    """

    smiles: str | None
    reason: str | None
    detail: str
    symbols: list[str]
    is_connected: bool
    has_charged_carbon: bool
    num_rings: int = 0


def judge_smiles(text: str) -> SmilesVerdict:
    """Whether RDKit reads and sanitizes a SMILES, and whether it is one piece without radicals.

    A SMILES implies its hydrogens, so they cannot be wrong; a total charge is allowed, as it is where files give one.
    """
    nothing: list[str] = []
    with rdBase.BlockLogs():
        mol: Chem.Mol | None = Chem.MolFromSmiles(text, sanitize=False) if text else None
        if mol is None or mol.GetNumAtoms() == 0:
            return SmilesVerdict(None, "unreadable", f"no SMILES: {text[:60]!r}", nothing, False, False)
        if has_too_many_rings(mol):
            return SmilesVerdict(None, "too_slow", "", nothing, False, False)
        read: Chem.Mol | None = Chem.MolFromSmiles(text)
        if read is None:
            return SmilesVerdict(None, "sanitization", text[:60], nothing, False, False)
    atoms = list(read.GetAtoms())
    symbols = [atom.GetSymbol() for atom in atoms] + ["H"] * sum(atom.GetTotalNumHs() for atom in atoms)
    is_connected = len(Chem.GetMolFrags(read)) == 1
    reason = None if is_connected else "disconnected"
    if reason is None and any(atom.GetNumRadicalElectrons() for atom in atoms):
        reason = "radical"
    num_rings = read.GetRingInfo().NumRings()
    return SmilesVerdict(molecule_key(read), reason, "", symbols, is_connected, has_charged_carbon(read), num_rings)
