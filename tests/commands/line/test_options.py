"""Functions as commands: what a signature and a docstring become on the command line."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from unite.commands.line.options import parser_of, run_as_command, run_one_of
from unite.errors import UserError

CALLS: list[dict[str, Any]] = []


def bake(
    recipes: list[Path],
    *,
    heat: int,
    times: list[float] = [0.5, 1.0],  # noqa: B006
    oven: Literal["gas", "wood"] = "gas",
    name: str | None = None,
    config: list[str] = [],  # noqa: B006
    overwrite: bool = False,
) -> None:
    """Bake bread.

    With 100 % flour.

    Args:
        recipes: What to bake.
        heat: Of the oven, in degrees.
        times: When to look.
        oven: The kind of oven.
        name: Of the bread; default: none.
        config: Settings.
        overwrite: Replace other bread.
    """
    CALLS.append(locals())


def eat(*, others: list[str], much: int = 1) -> None:
    """Eat bread.

    Args:
        others: Whatever goes with it.
        much: Slices.
    """
    CALLS.append(locals())


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


def test_words_become_arguments_of_their_types() -> None:
    typed = "a b --heat 200 --times 1 2.5 --oven wood -c x -c y --overwrite"
    run_as_command(bake, "bake", typed.split())
    assert [
        {
            "recipes": [Path("a"), Path("b")],
            "heat": 200,
            "times": [1.0, 2.5],
            "oven": "wood",
            "name": None,
            "config": ["x", "y"],
            "overwrite": True,
        }
    ] == CALLS


def test_defaults_are_those_of_the_function_and_stay_as_they_are() -> None:
    run_as_command(bake, "bake", ["a", "--heat", "1", "--config", "x"])
    run_as_command(bake, "bake", ["a", "--heat", "1"])
    assert [call["config"] for call in CALLS] == [["x"], []]
    assert CALLS[1]["times"] == [0.5, 1.0]


def test_help_is_the_docstring() -> None:
    text = " ".join(parser_of(bake, "bake").format_help().split())
    for words in (
        "usage: unite bake RECIPE ... --heat N [options]",
        "Bake bread. With 100 % flour.",
        "RECIPE",
        "When to look (default: 0.5 1.0)",
    ):
        assert words in text
    assert "--name TEXT Of the bread; default: none " in text  # None is not a default that one could type
    assert "Further options: Whatever goes with it." in parser_of(eat, "eat").format_help()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("a", "the following arguments are required: --heat; see unite bake --help"),
        ("--heat 1", "the following arguments are required: RECIPE"),
        ("a --heat hot", "argument --heat: invalid int value: 'hot'"),
        ("a --heat 1 --ovn gas", "unrecognized arguments: --ovn; did you mean --oven?"),
        ("a --ovn=gas", "unrecognized arguments: --ovn=gas; did you mean --oven?"),
        ("a --heat 1 --oven gass", "invalid choice: 'gass' (choose from 'gas', 'wood'); did you mean gas?"),
        ("a --he 1", "unrecognized arguments: --he"),
    ],
)
def test_wrong_words_are_one_line_that_names_the_right_one(typed: str, words: str) -> None:
    with pytest.raises(UserError) as refused:
        run_as_command(bake, "bake", typed.split())
    assert words in str(refused.value)
    assert not CALLS


def test_what_a_function_does_not_know_goes_to_others() -> None:
    run_as_command(eat, "eat", ["--data.init_args.butter", "3", "--much", "2", "--salt"])
    assert CALLS == [{"others": ["--data.init_args.butter", "3", "--salt"], "much": 2}]


def test_the_first_word_names_the_function(capsys: pytest.CaptureFixture[str]) -> None:
    functions: dict[str, Callable[..., object]] = {"bake": bake, "eat": eat}
    run_one_of(functions, "bread", ["eat", "--much", "3"])
    assert CALLS[0]["much"] == 3
    for args, words in ((["beak"], "did you mean bake?"), ([], "required: WHAT")):
        with pytest.raises(UserError, match="bread: ") as refused:
            run_one_of(functions, "bread", args)
        assert words in str(refused.value)
    with pytest.raises(SystemExit):
        run_one_of(functions, "bread", ["--help"])
    assert "Eat bread" in capsys.readouterr().out


@dataclass(frozen=True, kw_only=True)
class Oven:
    """What bakes.

    Attributes:
        heat: Degrees. At most 300.
        doors: Which of them are open.
        is_big: For two loaves.
    """

    heat: int
    doors: list[str] = field(default_factory=lambda: ["left"])
    is_big: bool = False


def roast(*, oven: Oven, minutes: int = 5) -> None:
    """Roast.

    Args:
        oven: The oven.
        minutes: How long.
    """
    CALLS.append({"oven": oven, "minutes": minutes})


def test_a_dataclass_is_one_option_for_each_attribute() -> None:
    run_as_command(roast, "roast", ["--heat", "200", "--is_big"])
    run_as_command(roast, "roast", ["--doors", "a", "b", "--heat", "100", "--minutes", "6"])
    assert [
        {"oven": Oven(heat=200, is_big=True), "minutes": 5},
        {"oven": Oven(heat=100, doors=["a", "b"]), "minutes": 6},
    ] == CALLS
    text = " ".join(parser_of(roast, "roast").format_help().split())
    assert "--heat N Degrees. At most 300 --doors TEXT [TEXT ...] Which of them are open (default: left)" in text
    with pytest.raises(UserError, match="required: --heat"):
        run_as_command(roast, "roast", [])
