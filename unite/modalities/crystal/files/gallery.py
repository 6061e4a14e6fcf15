"""Written crystals for a report: a picture, a verdict, numbers to sort by, and the cell in space."""

import base64
import io
from itertools import islice
from pathlib import Path

from unite.modalities.crystal.crystal import Crystal, UnusableCrystalError
from unite.modalities.crystal.elements import SYMBOLS
from unite.modalities.crystal.files.drawing import CORNERS, EDGES, MAX_DRAWN_ATOMS, bonds, draw_cell, with_faces
from unite.modalities.crystal.files.reading import parse, read_records
from unite.modalities.crystal.metrics.counts import verdict
from unite.modalities.gallery import Gallery, Item, Scene


def gallery_of(folder: Path, originals: Path | None = None, most: int = 1000) -> Gallery | None:
    """The crystals of ``samples.cif`` in a folder; None if there is no such file.

    Args:
        folder: Where the file is.
        originals: Folder of what they were reconstructed from, in the same order; None for samples.
        most: Crystals to show, from the first.

    Raises:
        UserError: pymatgen or smact is not installed.
    """
    file = folder / "samples.cif"
    if not file.is_file():
        return None
    made, total = _read(file, most)
    before = _read(originals / "samples.cif", most)[0] if originals else [None] * len(made)
    pairs = zip(made, before, strict=False)
    items = [_item(number, crystal, original) for number, (crystal, original) in enumerate(pairs, 1) if crystal]
    return Gallery("crystals", items, total)


def _read(file: Path, most: int) -> tuple[list[Crystal | None], int]:
    """The first crystals of a file, None for one that cannot be read, and how many records there are."""
    records = read_records([file])
    found: list[Crystal | None] = []
    for record in islice(records, most):
        try:
            found.append(parse(record))
        except UnusableCrystalError:
            found.append(None)
    return found, len(found) + sum(1 for _ in records)


def _item(number: int, crystal: Crystal, original: Crystal | None) -> Item:
    content = io.BytesIO()
    draw_cell(crystal).save(content, format="PNG")
    reason = verdict(crystal)
    lengths = ", ".join(f"{length:.2f}" for length in crystal.cell[:3])
    angles = ", ".join(f"{angle:.1f}" for angle in crystal.cell[3:])
    return Item(
        name=f"{number}: {crystal.formula}",
        picture=f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}",
        verdict=(reason or "valid").replace("_", " "),
        is_good=reason is None,
        numbers={
            "atoms": crystal.num_atoms,
            "elements": len(crystal.composition),
            "density (g/cm³)": round(crystal.density, 3),
            "volume of an atom (Å³)": round(crystal.volume / crystal.num_atoms, 2),
        },
        remarks=[f"a, b, c: {lengths} Å", f"angles: {angles}°"],
        scene=scene_of(crystal),
        original=None if original is None else scene_of(original),
    )


def scene_of(crystal: Crystal) -> Scene | None:
    """The cell in space: atoms, those on its faces on the opposite ones as well, bonds and edges; None if too large."""
    if crystal.num_atoms > MAX_DRAWN_ATOMS:
        return None
    numbers, fractional = with_faces(crystal)
    places = fractional @ crystal.matrix
    corners = (CORNERS @ crystal.matrix).tolist()
    return Scene(
        symbols=[SYMBOLS[number] for number in numbers],
        positions=places.tolist(),
        bonds=[(first, second, 1) for first, second in bonds(numbers, places)],
        edges=[(corners[first], corners[second]) for first, second in EDGES],
    )
