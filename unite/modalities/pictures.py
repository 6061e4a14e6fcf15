"""Tables of pictures, with text."""

from collections.abc import Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

SCREEN_WIDTH = 1400
"""Pixels that a screen shows side by side; wider pictures are shown smaller, and their writing with them."""

_LINE_HEIGHT = 22
_GAP = 4


@cache
def font(size: int = 15) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """The font of all writing."""
    return ImageFont.load_default(size=size)


def draw_table(
    cells: Sequence[Sequence[Image.Image]], titles: Sequence[str] = (), captions: Sequence[Sequence[str]] = ()
) -> Image.Image:
    """Pictures in rows and columns.

    Args:
        cells: Rows of pictures; a row may be shorter than the others.
        titles: Title of each column; none for no line of titles.
        captions: What stands below each picture, in rows as ``cells``; none for no captions.
    """
    width = max(cell.width for row in cells for cell in row) + _GAP
    below = _LINE_HEIGHT if captions else 0
    height = max(cell.height for row in cells for cell in row) + _GAP + below
    top = _LINE_HEIGHT if titles else 0
    table = Image.new("RGB", (max(map(len, cells)) * width, top + len(cells) * height), "white")
    draw = ImageDraw.Draw(table)
    for column, title in enumerate(titles):
        draw.text((column * width + width / 2, top / 2), title, "black", font(), anchor="mm")
    for number, row in enumerate(cells):
        for column, cell in enumerate(row):
            table.paste(cell, (column * width + _GAP // 2, top + number * height))
    for number, line in enumerate(captions):
        for column, text in enumerate(line):
            place = (column * width + width / 2, top + (number + 1) * height - below / 2 - 2)
            draw.text(place, text, "black", font(), anchor="mm")
    return table


def with_note(picture: Image.Image, note: str) -> Image.Image:
    """A picture with a line of writing below."""
    width = max(picture.width, int(font().getlength(note)) + 2 * _GAP)
    noted = Image.new("RGB", (width, picture.height + _LINE_HEIGHT), "white")
    noted.paste(picture, (0, 0))
    ImageDraw.Draw(noted).text((_GAP, picture.height + _LINE_HEIGHT / 2), note, (90, 90, 90), font(), anchor="lm")
    return noted


def shown_of(num_shown: int, num_all: int) -> str:
    """How much of all is in a picture, for instance ``64 of 1,000 shown``."""
    return f"{num_shown:,} of {num_all:,} shown"
