from pathlib import Path

import numpy as np
import pytest

from tests.support.samples.crystals import PEROVSKITE, ROCK_SALT, crystal
from unite.modalities.crystal.files.drawing import draw_cells
from unite.modalities.crystal.files.gallery import gallery_of, scene_of
from unite.modalities.crystal.files.writing import write_crystals

pytest.importorskip("pymatgen")
pytest.importorskip("smact")


def test_gallery_of_written_crystals(tmp_path: Path) -> None:
    overlapping = crystal([11, 17], [[0, 0, 0], [0.01, 0, 0]], 4)
    write_crystals([PEROVSKITE, ROCK_SALT, overlapping], tmp_path)
    gallery = gallery_of(tmp_path, originals=tmp_path, most=10)
    assert gallery is not None
    assert (gallery.noun, gallery.total) == ("crystals", 3)
    assert [item.name for item in gallery.items] == ["1: SrTiO3", "2: NaCl", "3: NaCl"]
    assert [item.is_good for item in gallery.items] == [True, True, False]
    assert all(item.original == item.scene for item in gallery.items)
    first = gallery_of(tmp_path, most=1)
    assert first is not None
    assert (len(first.items), first.total) == (1, 3)
    assert gallery_of(tmp_path / "nothing") is None


def test_a_cell_in_space_is_closed() -> None:
    scene = scene_of(PEROVSKITE)
    assert scene is not None
    assert sorted(scene.symbols) == sorted(["Sr"] * 8 + ["Ti"] + ["O"] * 6)  # corners, centre, faces
    assert len(scene.edges) == 12
    lengths = [np.linalg.norm(np.subtract(*edge)) for edge in scene.edges]
    assert lengths == pytest.approx([3.905] * 12)
    bonded = {frozenset((scene.symbols[first], scene.symbols[second])) for first, second, _ in scene.bonds}
    assert frozenset(("Ti", "O")) in bonded


def test_pictures_of_anything_can_be_drawn() -> None:
    broken = [crystal([], [], 4), crystal([8], [[np.nan] * 3], 4), crystal([8] * 300, [[0, 0, 0]] * 300, 4)]
    flat = crystal([8], [[0, 0, 0]], 4, 4, 4, 90, 90, 0)
    picture = draw_cells([PEROVSKITE, *broken, flat, crystal([0], [[0, 0, 0]], 4), ROCK_SALT])
    assert picture.size == (6 * 190, 2 * 190)
