"""Balls and sticks against what geometry says."""

import numpy as np
import pytest
import torch
from rdkit import Chem

from tests.support.samples.qm9_rows import tiny_molecules
from unite.modalities.molecule.files.shapes import MAX_STICKS, Shape, draw_shape, onto, shape_of
from unite.modalities.molecule.metrics.reconstruction import kabsch_rmsd
from unite.modalities.molecule.perception.distances import unite_hydrogens


def alone(number: int, colour: tuple[int, int, int] | None = None) -> Shape:
    return Shape(np.array([number]), np.zeros((1, 3)), [], colour)


def painted(shape: Shape, size: tuple[int, int] = (200, 100)) -> np.ndarray:
    painted: np.ndarray = np.asarray(draw_shape(shape, size))[:, :, 1] < 140  # about half covered, or more
    return painted


@pytest.mark.parametrize("number", [1, 6, 9])
def test_a_ball_is_a_disc_of_its_radius_in_the_middle(number: int) -> None:
    is_ball = painted(alone(number, colour=(0, 0, 200)))
    radius = 26 * 0.42 * Chem.GetPeriodicTable().GetRcovalent(number)  # pixels
    assert is_ball.sum() == pytest.approx(np.pi * radius**2, rel=0.15)
    np.testing.assert_allclose(np.argwhere(is_ball).mean(0), [49.5, 99.5], atol=0.5)


def test_the_nearer_ball_hides_the_other_and_both_fit_in() -> None:
    # Spread in x and y, so that these are the axes of the picture; the last two lie behind one another.
    places = np.array([[-4.0, 0, 0], [4, 0, 0], [0, 2, 0], [0, -2, 0], [0, 0, 0.9], [0, 0, -0.9]])
    shape = Shape(np.array([6, 6, 6, 6, 8, 7]), places, [])
    picture = np.asarray(draw_shape(shape, (300, 200))).astype(int)
    assert not (picture[[0, -1]] < 250).any()
    assert not (picture[:, [0, -1]] < 250).any()
    colours = [(picture[..., channel] - picture.mean(-1) > 40).sum() for channel in (0, 2)]
    assert max(colours) > 50


def test_a_stick_joins_its_atoms() -> None:
    pair = np.array([[-2.0, 0, 0], [2, 0, 0]])
    apart, joined = (Shape(np.array([6, 6]), pair, pairs) for pairs in ([], [(0, 1)]))
    middle = (slice(45, 55), slice(95, 105))
    assert not painted(apart)[middle].any()
    assert painted(joined)[middle].any(0).all()


def test_onto_finds_the_rotation_of_the_metric_and_no_mirror_image() -> None:
    generator = np.random.default_rng(3)
    points, other = generator.normal(size=(2, 9, 3))
    for target in (other, points * [1, 1, -1], points[:, [1, 2, 0]] + 3):
        moved = onto(points, target)
        rmsd = np.sqrt(((moved - target) ** 2).sum(-1).mean())
        expected = kabsch_rmsd(torch.from_numpy(points)[None], torch.from_numpy(target)[None])
        assert rmsd == pytest.approx(float(expected), abs=1e-6)
        before, after = (np.linalg.norm(item[:, None] - item[None], axis=-1) for item in (points, moved))
        np.testing.assert_allclose(before, after, atol=1e-9)


def test_united_atoms_have_their_hydrogens_placed_where_they_belong() -> None:
    for molecule, _ in tiny_molecules()[10:30]:
        whole, united = shape_of(molecule), shape_of(unite_hydrogens(molecule))
        assert whole is not None
        assert united is not None
        assert sorted(whole.atomic_numbers) == sorted(united.atomic_numbers)
        assert len(whole.pairs) == len(united.pairs)


def test_very_many_sticks_are_left_out() -> None:
    places = np.random.default_rng(0).normal(size=(100, 3))
    pairs = [(first, second) for second in range(100) for first in range(second)]
    assert len(pairs) > MAX_STICKS
    numbers = np.full(100, 6)
    all_, some = (
        np.asarray(draw_shape(Shape(numbers, places, sticks), (80, 80))) for sticks in (pairs, pairs[:MAX_STICKS])
    )
    np.testing.assert_array_equal(all_, some)
