"""Figures whose drawing has arithmetic of its own."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from unite.analysis import figures
from unite.analysis.figures import draw_probes, draw_shapes
from unite.modalities.molecule.files.shapes import principal_axes


def test_principal_axes_keep_distances_and_handedness_and_sort_the_spread() -> None:
    random = np.random.default_rng(0)
    positions = random.normal(size=(12, 3)) * [1, 5, 2] + 7
    turned = principal_axes(positions)
    np.testing.assert_allclose(turned @ turned.T, (positions - positions.mean(0)) @ (positions - positions.mean(0)).T)
    assert np.all(np.diff(turned.std(axis=0)) < 0)
    # The signed volume of three edges changes its sign in a mirror.
    before, after = (np.linalg.det(x[1:4] - x[0]) for x in (positions, turned))
    assert after == pytest.approx(before)


def test_single_atoms_and_pairs_have_axes() -> None:
    np.testing.assert_allclose(principal_axes(np.ones((1, 3))), 0)
    np.testing.assert_allclose(abs(principal_axes(np.array([[0, 0, 0], [0, 0, 2.0]]))), [[1, 0, 0]] * 2, atol=1e-12)


def test_shapes_are_drawn_with_and_without_bonds(tmp_path: Path) -> None:
    bonded = Chem.AddHs(Chem.MolFromSmiles("CO"))
    rdDistGeom.EmbedMolecule(bonded, randomSeed=0)
    loose = Chem.RWMol(bonded)
    for bond in list(bonded.GetBonds()):
        loose.RemoveBond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
    path = draw_shapes([bonded, loose], ["bonded", "loose"], "methanol", tmp_path / "shapes.png")
    with Image.open(path) as picture:
        left, right = (
            np.asarray(picture.convert("RGB").crop((x, 0, x + picture.width // 2, picture.height)))
            for x in (0, picture.width // 2)
        )
    grey = [int((side == 128).all(axis=-1).sum()) for side in (left, right)]
    assert grey[0] > 5 * max(grey[1], 1)


def test_bars_of_probes_say_what_was_found_and_nothing_where_nothing_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def keep(figure: Figure, title: str, path: Path) -> Path:
        written.extend(text.get_text() for text in figure.axes[0].texts)
        return path

    monkeypatch.setattr(figures, "save", keep)
    scores = {"mean of training samples": {"r2": -0.01}, "latents": {"r2": -0.25}}
    result = {
        "num_train": 10,
        "num_test": 5,
        "classes": {"most frequent class": {"accuracy": 0.5}, "latents": {"accuracy": 0.75}},
        "properties": {"gap": {"unit": "eV", "scores": scores}},
    }
    draw_probes(result, "a run", tmp_path / "probes.png")
    assert written == ["0.50", "", "0.75", "-0.25"]
