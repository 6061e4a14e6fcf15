"""A summary of molecule files: numbers, elements, sizes, what was left out, and the bonds that perception finds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from rdkit import Chem, rdBase
from rdkit.Chem import Draw
from torch import Tensor

from unite.modalities.atoms import ATOMIC_NUMBERS
from unite.modalities.molecule.data.files.datamodule import MoleculeFilesDataModule
from unite.modalities.molecule.data.files.selection import elements_of, reason_in_words
from unite.modalities.molecule.data.files.table import FileTable
from unite.modalities.molecule.perception.molecule import Molecule, hash_key, molecule_key
from unite.modalities.molecule.perception.perceive import perceive_all

NOTES = {
    "hydrogens_added": "hydrogens added to a shape without all of them",
    "conformers_made": "shapes made by ETKDG and MMFF94 (UFF for atoms that MMFF94 lacks)",
    "not_relaxed": "shapes of ETKDG alone: no force field knows an atom",
    "bonds_perceived": "bonds perceived: the file has none",
}
_CELL = (200, 160)
_COLUMNS = 6
_PANEL_HEIGHT = 170
_BAR_COLOUR = (70, 110, 170)


@dataclass(frozen=True)
class Perceived:
    """Result of perception for the first shapes of some molecules.

    Attributes:
        looked_at: Molecules.
        valid: Share that it accepts.
        same_bonds: Share of which it finds the bonds of the file; None where no file has bonds.
        reasons: Rejected ones, by reason.
    """

    looked_at: int
    valid: float
    same_bonds: float | None
    reasons: dict[str, int]


def findings(datamodule: MoleculeFilesDataModule, num_perceived: int) -> dict[str, Any]:
    """The whole summary in plain values.

    Args:
        datamodule: The files, hydrogens explicit.
        num_perceived: Molecules to perceive at most, drawn by a fixed seed.
    """
    table, report = datamodule.table, datamodule.report
    charges = table.per_molecule(table.charge)
    elements = {
        symbol: int((table.per_molecule(table.z == ATOMIC_NUMBERS[symbol]) > 0).sum()) for symbol in elements_of(table)
    }
    keys = table.key[table.key != 0]
    return {
        "files": report["files"],
        "records": report["num_records"],
        "molecules": len(table),
        "conformers": int(table.num_conformers.sum()),
        "left_out": report["refused"],
        "molecules_with_element": elements,
        "molecules_by_charge": _counts(charges),
        "atoms": _spread(table.num_atoms),
        "heavy_atoms": _spread(table.per_molecule(table.z > 1)),
        "duplicates": len(keys) - len(keys.unique()),
        "scaffolds": len(table.scaffold[table.scaffold != 0].unique()),
        "notes": report["notes"],
        "properties": {name: _known(table.y[:, column]) for column, name in enumerate(table.properties)},
        "perception": asdict(_perceived(table, num_perceived)),
    }


def _counts(values: Tensor) -> dict[str, int]:
    numbers, counts = values.unique(return_counts=True)
    return {
        f"{number:+d}" if number else "0": count for number, count in zip(*map(_list, (numbers, counts)), strict=True)
    }


def _list(values: Tensor) -> list[int]:
    return [int(value) for value in values]


def _spread(values: Tensor) -> dict[str, float]:
    if not len(values):
        return {}
    return {"smallest": int(values.min()), "median": int(values.median()), "largest": int(values.max())}


def _known(values: Tensor) -> dict[str, float]:
    known = values[values.isfinite()]
    if not len(known):
        return {"known": 0}
    return {
        "known": len(known),
        "smallest": float(known.min()),
        "mean": float(known.mean()),
        "largest": float(known.max()),
    }


def _perceived(table: FileTable, most: int) -> Perceived:
    rows = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))[:most]
    rows = rows[table.num_conformers[rows] > 0].sort().values
    charges = table.per_molecule(table.charge)
    molecules = []
    for row in rows.tolist():
        atoms = slice(*table.ptr[[row, row + 1]].tolist())
        start = int(table.position_ptr[row])
        positions = table.pos[start : start + int(table.num_atoms[row])]
        numbers = table.z[atoms].long().numpy()
        molecules.append(Molecule(numbers, positions.numpy(), charge=int(charges[row])))
    reasons: dict[str, int] = {}
    num_same = num_valid = 0
    given = table.key[rows].tolist()
    for key, found in zip(given, perceive_all(molecules), strict=True):
        if found.mol is None:
            reasons[str(found.reason)] = reasons.get(str(found.reason), 0) + 1
            continue
        num_valid += 1
        num_same += hash_key(molecule_key(found.mol)) == key
    num_known = sum(key != 0 for key in given)
    total = max(len(molecules), 1)
    return Perceived(len(molecules), num_valid / total, num_same / num_known if num_known else None, reasons)


def as_screen(found: Mapping[str, Any]) -> str:
    """The findings as lines of a terminal."""
    files = f"{found['files'][0]}" + (f" and {len(found['files']) - 1} more files" if len(found["files"]) > 1 else "")
    molecules, perception = found["molecules"], found["perception"]
    left_out = {f"{reason_in_words(reason)} ({reason})": number for reason, number in found["left_out"].items()}
    lines = [
        f"{files}: {found['records']:,} records, {molecules:,} molecules, {found['conformers']:,} shapes",
        f"left out    {_listed(left_out)}",
        f"elements    {_listed(found['molecules_with_element'], turned=True)} (molecules with each)",
        f"charge      {_listed(found['molecules_by_charge'], turned=True)}",
        f"atoms       {_range(found['atoms'])}; without hydrogens {_range(found['heavy_atoms'])}",
        f"duplicates  {found['duplicates']:,} with the bonds of an earlier one; {found['scaffolds']:,} scaffolds",
    ]
    if found["notes"]:
        lines.append(f"done        {_listed({NOTES[note]: number for note, number in found['notes'].items()})}")
    for number, (name, values) in enumerate(found["properties"].items()):
        span = (
            f"{values['smallest']:.4g} to {values['largest']:.4g}, mean {values['mean']:.4g}" if values["known"] else ""
        )
        lines.append(f"{'' if number else 'properties':<12}{name}: {values['known']:,} known, {span}")
    if perception["looked_at"]:
        same = perception["same_bonds"]
        lines.append(
            f"perception  of {perception['looked_at']:,} looked at, {perception['valid']:.1%} are valid by their shape"
            + ("" if same is None else f", {same:.1%} with the bonds of the file")
            + (f"; rejected: {_listed(perception['reasons'], turned=True)}" if perception["reasons"] else "")
        )
    return "\n".join(lines)


def _listed(counts: Mapping[str, int], turned: bool = False) -> str:
    parts = [f"{name} {number:,}" if turned else f"{number:,} {name}" for name, number in counts.items()]
    return ", ".join(parts) or "nothing"


def _range(spread: Mapping[str, float]) -> str:
    return f"{spread['smallest']} to {spread['largest']}, median {spread['median']}" if spread else "none"


def as_picture(found: Mapping[str, Any], table: FileTable) -> Image.Image:
    """Some molecules, and bars of elements and sizes.

    Args:
        found: The findings.
        table: The molecules, of which 18 are drawn by a fixed seed.
    """
    width = _COLUMNS * _CELL[0]
    rows = torch.randperm(len(table), generator=torch.Generator().manual_seed(0)).tolist()
    smiles = [text for row in rows[: 10 * _COLUMNS] if (text := table.smiles(row))][: 3 * _COLUMNS]
    with rdBase.BlockLogs():
        read: list[Chem.Mol | None] = [Chem.MolFromSmiles(text) for text in smiles]
    mols = [mol for mol in read if mol is not None]
    height = -(-len(mols) // _COLUMNS) * _CELL[1]
    picture = Image.new("RGB", (width, _PANEL_HEIGHT + height), "white")
    elements = found["molecules_with_element"]
    sizes = table.per_molecule(table.z > 1).bincount()
    _draw_bars(picture, (0, width // 2), list(elements), list(elements.values()), "molecules with each element")
    first = int((sizes > 0).nonzero()[0]) if sizes.any() else 0
    labels = [str(size) if size % 5 == 0 else "" for size in range(first, len(sizes))]
    _draw_bars(picture, (width // 2, width), labels, sizes[first:].tolist(), "molecules by number of heavy atoms")
    if mols:
        grid = Draw.MolsToGridImage(mols, molsPerRow=_COLUMNS, subImgSize=_CELL, returnPNG=False)
        picture.paste(grid.convert("RGB"), (0, _PANEL_HEIGHT))
    return picture


def _draw_bars(
    picture: Image.Image, span: tuple[int, int], labels: Sequence[str], values: Sequence[int], title: str
) -> None:
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=12)
    left, right = span[0] + 16, span[1] - 16
    base, top = _PANEL_HEIGHT - 24, 38
    draw.text(((left + right) / 2, 14), title, (0, 0, 0), font, anchor="mm")
    step = (right - left) / max(len(values), 1)
    for number, (label, value) in enumerate(zip(labels, values, strict=True)):
        x = left + number * step
        height = (base - top) * value / max(*values, 1)
        draw.rectangle((x + 0.1 * step, base - height, x + 0.9 * step, base), fill=_BAR_COLOUR)
        draw.text((x + step / 2, base + 10), label, (0, 0, 0), font, anchor="mm")
        if step > 24:
            draw.text((x + step / 2, base - height - 8), f"{value:,}", (0, 0, 0), font, anchor="mm")
    draw.line((left, base, right, base), fill=(120, 120, 120))
