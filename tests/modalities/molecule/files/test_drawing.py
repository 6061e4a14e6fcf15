"""Pictures of molecules: cells, what is marked, what differs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.modalities.molecule.files.test_writing import EMPTY, INVALID, METHANE, NAN, REALS
from tests.support.samples.graphs import HARD_SMILES, REJECTED, graph_of
from unite.modalities.molecule.files import drawing
from unite.modalities.molecule.files.drawing import (
    CELL,
    INVALID_COLOUR,
    draw_difference,
    draw_grid,
    draw_grid_in_space,
    draw_molecule,
)
from unite.modalities.molecule.perception.distances import unite_hydrogens
from unite.modalities.molecule.perception.molecule import Molecule

MARK = (255, 168, 158)  # MARK_COLOUR in bytes


def count(image: Image.Image, colour: tuple[int, int, int], tolerance: int = 3) -> int:
    distance = abs(np.asarray(image).astype(int) - np.array(colour)).max(-1)
    return int((distance <= tolerance).sum())


@pytest.mark.parametrize(
    ("molecules", "columns", "cells"),
    [(REALS[:7], 3, (3, 3)), (REALS[:2], 6, (2, 1)), ([], 4, (1, 1)), (INVALID, 6, (6, 1)), (REALS, 8, (8, 5))],
)
def test_grid_has_a_cell_for_each_molecule(molecules: list[Molecule], columns: int, cells: tuple[int, int]) -> None:
    image = draw_grid(molecules, columns=columns, max_molecules=40)
    assert image.mode == "RGB"
    assert image.size == (cells[0] * CELL[0], cells[1] * CELL[1])


def test_valid_molecules_are_drawings_and_invalid_ones_have_a_reason_in_red() -> None:
    assert count(draw_grid(REALS), INVALID_COLOUR) == 0
    for molecule in INVALID:
        assert count(draw_grid([molecule]), INVALID_COLOUR) > 50
        assert count(draw_grid([REALS[0], molecule]), INVALID_COLOUR) == count(draw_grid([molecule]), INVALID_COLOUR)
    drawn = [np.asarray(draw_grid([molecule])) for molecule in (REALS[0], REALS[20], METHANE)]
    assert all((picture < 100).any() for picture in drawn)  # ink
    assert not np.array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[0], drawn[2])  # methane, explicit and united


def test_atoms_that_are_to_blame_are_marked_and_no_others() -> None:
    square = np.array([[0.0, 0, 0], [1.2, 0, 0], [1.2, 1.2, 0], [0, 1.2, 0]])
    overvalent = draw_molecule(Molecule(np.array([9, 9, 9, 9]), square))  # four of four
    places = np.array([[0.0, 0, 0], [1.4, 0, 0], [9, 0, 0]])
    apart = draw_molecule(Molecule(np.array([6, 6, 8]), places, np.array([3, 2, 1])))
    assert count(overvalent, MARK) > 3 * count(apart, MARK) > 100
    assert count(draw_molecule(REALS[20]), MARK) == 0


@pytest.mark.parametrize("is_counted", [False, True])
def test_the_same_atoms_give_the_same_drawing_with_hydrogens_counted_or_not(is_counted: bool) -> None:
    ethanol = next(real for real in REALS if real.atomic_numbers.tolist() == [6, 6, 8, 1, 1, 1, 1, 1, 1])
    without = Molecule(ethanol.atomic_numbers[:-1], ethanol.positions[:-1])  # one hydrogen too few
    picture = draw_molecule(unite_hydrogens(without) if is_counted else without)
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(draw_molecule(without)))
    assert count(picture, MARK) > 100


@pytest.mark.parametrize("num_atoms", [9, 29, pytest.param(200, marks=pytest.mark.slow)])
def test_a_clump_is_drawn_whatever_rdkit_would_do(num_atoms: int) -> None:
    generator = np.random.default_rng(0)
    for spread in (0.3, 1.0):
        numbers = generator.choice([1, 6, 7, 8, 9], num_atoms)
        picture = draw_molecule(Molecule(numbers, spread * generator.normal(size=(num_atoms, 3))))
        assert (np.asarray(picture)[: -CELL[1] // 5] < 200).any()
    dense = 1 - np.eye(num_atoms, dtype=np.int64)
    graph = replace(REJECTED["empty"], atomic_numbers=numbers, bonds=dense, charges=np.zeros(num_atoms, np.int64))
    assert count(draw_molecule(graph), INVALID_COLOUR) > 50


def test_valid_and_invalid_graphs_are_drawn() -> None:
    for graph in map(graph_of, HARD_SMILES):
        assert count(draw_molecule(graph), INVALID_COLOUR) == count(draw_molecule(graph), MARK) == 0
    for reason, graph in REJECTED.items():
        picture = draw_molecule(graph)
        assert count(picture, INVALID_COLOUR) > 50
        assert (count(picture, MARK) > 100) == (reason != "empty"), reason


def legends(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written below cells from now on."""
    written: list[str] = []
    cell = drawing._cell

    def recorded(picture: Any, legend: str, *colour: Any) -> Image.Image:
        written.append(legend)
        return cell(picture, legend, *colour)

    monkeypatch.setattr(drawing, "_cell", recorded)
    return written


def test_an_overlay_tells_the_rmsd_after_turning_and_shifting(monkeypatch: pytest.MonkeyPatch) -> None:
    written = legends(monkeypatch)
    real = unite_hydrogens(REALS[30])
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    moved = replace(real, positions=real.positions @ turn + 5)
    picture = draw_difference(real, moved)
    assert picture.size == CELL
    draw_difference(
        real, replace(moved, atomic_numbers=np.where(np.arange(len(real.positions)) == 1, 9, real.atomic_numbers))
    )
    mirrored = replace(real, positions=real.positions * [1, 1, -1])
    draw_difference(real, mirrored)
    draw_difference(real, replace(real, positions=real.positions * np.nan))
    assert written[0] == "RMSD 0.000 Å\n"
    assert written[1] == f"RMSD 0.000 Å\n1 of {len(real.positions)} atoms of another type"
    assert written[3] == ""


def test_atoms_of_a_graph_that_changed_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    written = legends(monkeypatch)
    acid, aldehyde = graph_of("OCC=O"), graph_of("OC=CO")
    assert count(draw_difference(acid, acid), MARK) == 0
    assert count(draw_difference(acid, aldehyde), MARK) > 100
    assert written == ["the same", "3 of 4 atoms differ"]


def test_grid_in_space_has_balls_for_all_but_what_has_no_place() -> None:
    picture = np.asarray(draw_grid_in_space([REALS[20], unite_hydrogens(REALS[20]), *INVALID, EMPTY, NAN], columns=2))
    assert picture.shape == (5 * CELL[1], 2 * CELL[0], 3)
    grey = (abs(picture.astype(int) - picture.mean(-1, keepdims=True)).max(-1) < 3) & (picture.mean(-1) < 130)
    first, second = grey[: CELL[1], : CELL[0]], grey[: CELL[1], CELL[0] :]
    assert min(first.sum(), second.sum()) > 200  # carbon
    assert abs(int(first.sum()) - int(second.sum())) < 0.2 * first.sum()  # placed hydrogens are where they were


@pytest.mark.parametrize("arguments", [{"columns": 0}, {"max_molecules": 0}])
def test_grid_refuses_nothing_per_row(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        draw_grid(REALS, **arguments)
