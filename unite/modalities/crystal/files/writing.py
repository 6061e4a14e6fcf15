"""Crystals as CIF and extended XYZ. Written by hand, so that sampling needs neither pymatgen nor ASE."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from unite.files import write_whole
from unite.modalities.crystal.crystal import Crystal
from unite.modalities.crystal.elements import SYMBOLS

CELL_NAMES = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")


def write_crystals(crystals: Sequence[Crystal], folder: Path) -> list[Path]:
    """Write ``samples.cif`` and ``samples.extxyz`` into a folder; return both."""
    written = [folder / "samples.cif", folder / "samples.extxyz"]
    write_whole(written[0], "\n".join(cif_lines(crystals)).encode())
    write_whole(written[1], "\n".join(extxyz_lines(crystals)).encode() + b"\n")
    return written


def cif_lines(crystals: Iterable[Crystal]) -> list[str]:
    """Lines of a CIF with a block for each crystal, all atoms written out (space group P 1)."""
    lines = []
    for number, crystal in enumerate(crystals, 1):
        lines += [f"data_{number}", f"_chemical_formula_sum '{_spaced(crystal)}'"]
        lines += [f"_cell_{name} {value:.6f}" for name, value in zip(CELL_NAMES, crystal.cell, strict=True)]
        lines += [f"_cell_volume {crystal.volume:.6f}", "_space_group_name_H-M_alt 'P 1'", "_space_group_IT_number 1"]
        lines += ["loop_", "_space_group_symop_operation_xyz", "'x, y, z'", "loop_"]
        lines += [f"_atom_site_{name}" for name in ("label", "type_symbol", "fract_x", "fract_y", "fract_z")]
        lines += ["_atom_site_occupancy"]
        for place, (element, fractional) in enumerate(zip(_symbols(crystal), crystal.fractional % 1.0, strict=True), 1):
            lines.append(f"{element}{place} {element} {' '.join(f'{value:.6f}' for value in fractional)} 1.0")
        lines.append("")
    return lines


def extxyz_lines(crystals: Iterable[Crystal]) -> list[str]:
    """Lines of an extended XYZ file, with the cell vectors and Cartesian positions in Å."""
    lines = []
    for crystal in crystals:
        lattice = " ".join(f"{value:.8f}" for value in crystal.matrix.flatten())
        header = f'Lattice="{lattice}" Properties=species:S:1:pos:R:3 pbc="T T T"'
        lines += [str(crystal.num_atoms), header]
        lines += [
            f"{element} {' '.join(f'{value:.8f}' for value in position)}"
            for element, position in zip(_symbols(crystal), crystal.positions, strict=True)
        ]
    return lines


def _symbols(crystal: Crystal) -> list[str]:
    return [SYMBOLS[number] or "X" for number in crystal.atomic_numbers]


def _spaced(crystal: Crystal) -> str:
    numbers, counts = np.unique(crystal.atomic_numbers, return_counts=True)
    return " ".join(f"{SYMBOLS[number]}{count}" for number, count in zip(numbers, counts, strict=True))
