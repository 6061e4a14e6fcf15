"""Generated molecules as files and pictures: SDF, extended XYZ, and a picture.

Nothing is left out: what is no molecule is written and drawn too, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
from rdkit import Chem, rdBase

from unite.files import replacing
from unite.modalities.molecule.files.graphs import FLAT_REMARK, graph_mol_block, graph_properties
from unite.modalities.molecule.files.structures import fits_sdf, loose_atoms, symbol_of, with_positions
from unite.modalities.molecule.graph import MolecularGraph
from unite.modalities.molecule.perception.molecule import Molecule, Perception, molecule_key
from unite.modalities.molecule.perception.perceive import perceive_all


def write_sdf(molecules: Sequence[Molecule | MolecularGraph], path: str | Path) -> None:
    """Write molecules with their bonds to an SDF file, which appears only once it is complete.

    Bonds are those predicted where there are any, and otherwise those perceived from the positions.

    The properties of each entry are ``valid`` (True or False), ``reject_reason`` (empty if valid) and
    ``smiles`` (empty if invalid).

    Positions are those generated, to 0.0001 Å, with one exception: for united atoms that form a valid
    molecule, RDKit places the counted hydrogens by ideal geometry. These *added* atoms follow behind the
    generated ones, and the property ``num_hydrogens`` lists the generated numbers, one per heavy atom.

    Invalid molecules are written as loose atoms without bonds (united atoms without their hydrogens, which
    stand in ``num_hydrogens``). Coordinates that an SDF cannot hold, non-finite or beyond 9999 Å, become zero
    there; the property ``positions`` then has them as they were generated.

    Molecules with predicted bonds have them even if they are no molecule, and the further properties ``valid_bonds``,
    ``reject_reason_bonds`` and ``smiles_bonds``. Graphs without positions are laid out in the plane; the property
    ``coordinates`` says so, and ``valid`` and its like are left out.

    Args:
        molecules: Molecules to write, in this order; all of one kind.
        path: File to write; replaced if it exists.
    """
    with _text_replacing(path) as file, rdBase.BlockLogs():
        perceptions = iter(perceive_all([molecule for molecule in molecules if isinstance(molecule, Molecule)]))
        for index, molecule in enumerate(molecules):
            name = f"molecule {index}"
            if isinstance(molecule, MolecularGraph):
                file.write(graph_mol_block(molecule, name, None))
                properties = {"coordinates": FLAT_REMARK, **graph_properties(molecule)}
            else:
                found = next(perceptions)
                file.write(_mol_block(molecule, found, name))
                properties = _properties(found)
                if molecule.graph is not None:
                    properties |= graph_properties(molecule.graph)
                if not fits_sdf(molecule).all():
                    properties["positions"] = " ".join(map(repr, molecule.positions.ravel().tolist()))
            if molecule.num_hydrogens is not None:
                properties["num_hydrogens"] = " ".join(map(str, molecule.num_hydrogens.tolist()))
            for name, value in properties.items():
                file.write(f">  <{name}>\n{value}\n\n")
            file.write("$$$$\n")


def write_xyz(molecules: Sequence[Molecule], path: str | Path) -> None:
    """Write molecules exactly as generated to an extended XYZ file, which appears only once it is complete.

    The comment line of each molecule carries ``valid`` (T or F), and ``smiles`` or ``reject_reason``. United
    atoms are heavy atoms with a further column ``num_hydrogens``; no hydrogen is added. Elements that do not
    exist are ``X``.

    Args:
        molecules: Molecules to write, in this order.
        path: File to write; replaced if it exists.
    """
    with _text_replacing(path) as file:
        for molecule, found in zip(molecules, perceive_all(molecules), strict=True):
            columns = "species:S:1:pos:R:3"
            rows = [
                f"{symbol_of(atomic_number):<2s} " + " ".join(f"{coordinate:16.8f}" for coordinate in position)
                for atomic_number, position in zip(
                    molecule.atomic_numbers.tolist(), molecule.positions.tolist(), strict=True
                )
            ]
            if molecule.num_hydrogens is not None:
                columns += ":num_hydrogens:I:1"
                counts = molecule.num_hydrogens.tolist()
                rows = [f"{row} {count}" for row, count in zip(rows, counts, strict=True)]
            properties = _properties(found)
            # Without the empty ones: readers, such as ASE's, take `a="" b="c"` for one value.
            texts = [f' {name}="{properties[name]}"' for name in ("reject_reason", "smiles") if properties[name]]
            comment = f"Properties={columns} valid={properties['valid'][0]}{''.join(texts)}"
            file.write("\n".join([str(len(rows)), comment, *rows]) + "\n")


def _mol_block(molecule: Molecule, found: Perception, name: str) -> str:
    if molecule.graph is not None:
        return graph_mol_block(molecule.graph, name, np.where(fits_sdf(molecule), molecule.positions, 0.0))
    mol = loose_atoms(molecule) if found.mol is None else with_positions(found.mol, molecule)
    mol.SetProp("_Name", name)
    return str(Chem.MolToMolBlock(mol, includeStereo=False))


def _properties(found: Perception) -> dict[str, str]:
    return {
        "valid": str(found.mol is not None),
        "reject_reason": found.reason or "",
        "smiles": "" if found.mol is None else molecule_key(found.mol),
    }


@contextmanager
def _text_replacing(path: str | Path) -> Iterator[TextIO]:
    """Text file that takes the place of ``path`` when all has gone well."""
    with replacing(Path(path)) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        yield file
