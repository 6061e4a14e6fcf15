"""Captions of digits: the digit in words, in some thousand wordings, of which a part is held out."""

import hashlib
from functools import cache
from itertools import product
from typing import Final

NAMES: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_BEGINNINGS: Final = ("", "draw", "write", "show me", "please write", "this is")
_ARTICLES: Final = ("", "the", "a")
_ADJECTIVES: Final = ("", "handwritten", "small", "clear", "grey")
_NOUNS: Final = ("", "digit", "number", "figure")
_ENDS: Final = ("", "by hand", "on black", "please", "in white")

_HELD_OUT_SHARE: Final = 0.2


@cache
def wordings(held_out: bool) -> tuple[str, ...]:
    """All wordings that captions have, or all of those that they never have; ``{}`` is the place of the digit.

    Held out are a fifth of the combinations of words, each of which occurs in other combinations.
    """
    found = [
        " ".join(part for part in (*parts[:4], "{}", parts[4]) if part)
        for parts in product(_BEGINNINGS, _ARTICLES, _ADJECTIVES, _NOUNS, _ENDS)
    ]
    return tuple(wording for wording in dict.fromkeys(found) if _is_held_out(wording) == held_out)


def phrase(digit: int, number: int, held_out: bool = False) -> str:
    """A caption of a digit, which is written as a word or as a sign.

    Args:
        digit: From 0 to 9.
        number: Chooses the wording, at random but always the same.
        held_out: Whether to take a wording that is held out.
    """
    chosen = wordings(held_out)
    draw = _draw(f"{number} of {digit}")
    name = NAMES[digit] if draw % 2 else str(digit)
    return chosen[draw // 2 % len(chosen)].format(name)


def _is_held_out(wording: str) -> bool:
    if wording == "{}":
        return False  # the shortest is what people type first
    return _draw(wording) % 1000 < 1000 * _HELD_OUT_SHARE


def _draw(text: str) -> int:
    """A number at random that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
