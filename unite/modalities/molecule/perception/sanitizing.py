"""RDKit's sanitization, refused where it would not end."""

from typing import Final

from rdkit import Chem

MAX_FUSED_RINGS: Final = 32
"""Most rings that hang together by their bonds: RDKit tries combinations of them for aromaticity.

A ladder of 33 rungs takes 0.2 s, one of 100 takes minutes. C60 has 31 independent rings, one of QM9 has five at most.
"""


_BEFORE_RINGS: Final = (
    Chem.SanitizeFlags.SANITIZE_CLEANUP
    | Chem.SanitizeFlags.SANITIZE_CLEANUP_ORGANOMETALLICS
    | Chem.SanitizeFlags.SANITIZE_PROPERTIES
)


class TooManyRingsError(ValueError):
    """A molecule has more fused rings than RDKit can be given."""


def sanitize(mol: Chem.Mol, steps: Chem.SanitizeFlags = Chem.SanitizeFlags.SANITIZE_ALL) -> None:
    """Sanitize a molecule in place.

    Args:
        mol: The molecule.
        steps: What to do.

    Raises:
        TooManyRingsError: It has more than :data:`MAX_FUSED_RINGS` fused rings.
        ValueError, RuntimeError: RDKit's own, for molecules that make no sense.
    """
    if has_too_many_rings(mol):
        Chem.SanitizeMol(mol, steps & _BEFORE_RINGS)  # errors of the steps before rings are reported as usual
        raise TooManyRingsError(f"it has more than {MAX_FUSED_RINGS} fused rings, with which RDKit takes too long")
    Chem.SanitizeMol(mol, steps)


def has_too_many_rings(mol: Chem.Mol) -> bool:
    """Whether a molecule has more than :data:`MAX_FUSED_RINGS` fused rings."""
    if mol.GetNumBonds() <= MAX_FUSED_RINGS:  # so many rings have more bonds
        return False
    num_rings = mol.GetNumBonds() - mol.GetNumAtoms() + len(Chem.GetMolFrags(mol))
    return num_rings > MAX_FUSED_RINGS and _num_fused_rings(mol) > MAX_FUSED_RINGS


def _num_fused_rings(mol: Chem.Mol) -> int:
    """Independent rings of the largest system of rings that share bonds."""
    copy = Chem.Mol(mol)  # RDKit would take these rings for those that it sanitizes by
    Chem.FastFindRings(copy)
    systems: list[tuple[set[int], int]] = []  # bonds and number of rings of each
    for ring in copy.GetRingInfo().BondRings():
        bonds, count = set(ring), 1
        apart = []
        for system, size in systems:
            if bonds.isdisjoint(system):
                apart.append((system, size))
            else:
                bonds, count = bonds | system, count + size
        systems = [*apart, (bonds, count)]
    return max((count for _, count in systems), default=0)
