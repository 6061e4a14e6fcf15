"""Drawing until there are enough of what is wanted."""

import pytest

from unite import UserError
from unite.engine.selection import Selection


def draw_all(selection: Selection, is_good: list[bool]) -> list[range]:
    draws = []
    while drawn := selection.next_draw():
        draws.append(drawn)
        backwards = list(reversed(drawn))  # batches come in any order
        selection.add(backwards, [is_good[index] for index in backwards])
    return draws


def test_without_a_wish_all_samples_of_one_draw_are_kept() -> None:
    selection = Selection(5)
    assert selection.most == 5
    assert draw_all(selection, [True] * 5) == [range(5)]
    assert selection.kept == [0, 1, 2, 3, 4]


def test_the_first_accepted_samples_are_kept_and_draws_follow_the_acceptance() -> None:
    is_good = [index % 3 == 0 for index in range(200)]
    selection = Selection(10, "valid")
    draws = draw_all(selection, is_good)
    assert selection.kept == list(range(0, 30, 3))
    assert draws[0] == range(10)
    assert draws[1] == range(10, 27)  # 4 of 10 were accepted and 6 are missing: 15, and a tenth more
    assert selection.summary()["acceptance_rate"] == sum(is_good[: selection.num_drawn]) / selection.num_drawn
    assert f"of {selection.num_drawn} samples drawn are valid" in selection.told()


def test_the_cap_ends_the_drawing_and_is_told() -> None:
    selection = Selection(10, "valid", max_drawn=25)
    draw_all(selection, [index == 7 for index in range(25)])
    assert selection.num_drawn == 25
    assert selection.kept == [7]
    assert "fewer than the 10 asked for: raise max_drawn" in selection.told()


def test_none_accepted_is_an_error() -> None:
    selection = Selection(2, "valid")
    draw_all(selection, [False] * 40)
    assert selection.num_drawn == 40
    with pytest.raises(UserError, match="0 of 40 samples drawn are valid"):
        selection.told()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "num_samples is 0"),
        ((3, "good"), "only is 'good'"),
        ((3, None, 9), "max_drawn is 9, but it goes with only"),
        ((3, "valid", 2), "max_drawn is 2; it must be at least num_samples, 3"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Selection(*arguments)  # type: ignore[arg-type]
