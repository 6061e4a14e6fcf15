"""Tables of pictures, and what adapters make of them."""

import numpy as np
import pytest
from PIL import Image

from unite.modalities.base import CLASS_COLUMNS
from unite.modalities.image.adapter import ImageAdapter
from unite.modalities.pictures import SCREEN_WIDTH, draw_table, shown_of, with_note


def digits(number: int, size: int = 8) -> list[np.ndarray]:
    return [np.full((size, size, 1), 20 * index % 256, dtype=np.uint8) for index in range(number)]


def adapter(image_size: int = 8, num_classes: int = 10) -> ImageAdapter:
    return ImageAdapter(image_size=image_size, patch_size=2, channels=1, num_classes=num_classes, perceptual_weight=0.0)


def test_a_table_has_room_for_titles_and_captions() -> None:
    cell = Image.new("RGB", (50, 30))
    bare = draw_table([[cell, cell], [cell]])
    titled = draw_table([[cell, cell], [cell]], ["a", "b"])
    captioned = draw_table([[cell, cell], [cell]], captions=[["a", "b"], ["c"]])
    assert bare.width == titled.width == captioned.width >= 100
    assert captioned.height - bare.height == 2 * (titled.height - bare.height) > 0
    ink = np.asarray(captioned)[:, :, 0] < 128
    assert ink.sum() > (np.asarray(bare)[:, :, 0] < 128).sum()


def test_classes_stand_in_ten_columns_under_their_names() -> None:
    images = digits(64)
    by_class = adapter().draw_samples(images, [index % 10 for index in range(64)])
    without = adapter().draw(images)
    single = adapter().draw(images[:1])
    assert CLASS_COLUMNS * single.width <= by_class.width <= SCREEN_WIDTH
    assert by_class.height > 7 * single.height > without.height * 0.8
    # In turn, the names stand once on top; otherwise below each image.
    mixed = adapter().draw_samples(images, [0, 3, 3, 7] * 16)
    assert mixed.height > by_class.height + 5 * 20


def test_large_images_stand_in_fewer_columns() -> None:
    picture = adapter(256).draw_samples(digits(10, 256), list(range(10)))
    assert picture.width <= SCREEN_WIDTH


def test_a_difference_is_grey_where_nothing_differs() -> None:
    original = np.full((8, 8, 1), 100, dtype=np.uint8)
    made = original.copy()
    made[0, 0], made[7, 7] = 110, 20
    picture = np.asarray(adapter().draw_difference(original, made))[:, :, 0]
    assert picture[36, 36] == 128
    assert picture[5, 5] == 128 + 40
    assert picture[60, 60] == 0
    table = adapter().draw_reconstructions([original] * 5, [made] * 5)
    assert table.width <= SCREEN_WIDTH
    assert adapter().draw_reconstructions([], [made]).size == adapter().draw([made]).size


@pytest.mark.parametrize(("shown", "number", "note"), [(64, 1000, "64 of 1,000 shown"), (3, 3, "3 of 3 shown")])
def test_a_note_stands_below(shown: int, number: int, note: str) -> None:
    assert shown_of(shown, number) == note
    picture = Image.new("RGB", (300, 40), "white")
    noted = np.asarray(with_note(picture, note))
    assert noted.shape[1] == 300
    assert (noted[:40] == 255).all()
    assert (noted[40:] < 150).any()
    assert with_note(Image.new("RGB", (10, 10)), note).width > 60
