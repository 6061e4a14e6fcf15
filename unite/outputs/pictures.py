"""Pictures put together from pictures."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_TITLE_HEIGHT = 18
_GAP = 4


def draw_table(cells: Sequence[Sequence[Image.Image]], titles: Sequence[str]) -> Image.Image:
    """Pictures in rows and columns, each column under its title.

    Args:
        cells: Rows of pictures; a row may be shorter than the others.
        titles: Title of each column.
    """
    width = max(cell.width for row in cells for cell in row) + _GAP
    height = max(cell.height for row in cells for cell in row) + _GAP
    table = Image.new("RGB", (len(titles) * width, _TITLE_HEIGHT + len(cells) * height), "white")
    font = ImageFont.load_default(size=11)
    for column, title in enumerate(titles):
        place = (column * width + width / 2, _TITLE_HEIGHT / 2)
        ImageDraw.Draw(table).text(place, title, "black", font, anchor="mm")
    for number, row in enumerate(cells):
        for column, cell in enumerate(row):
            table.paste(cell, (column * width, _TITLE_HEIGHT + number * height))
    return table
