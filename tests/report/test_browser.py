"""Pages in a browser: what is drawn, turned, filtered, and that nothing leaves the page.

``pytest -m browser`` takes ``pip install playwright`` and a Chromium of the system; without a GPU, SwiftShader draws.
"""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.paths import REPOSITORY
from unite.modalities.gallery import Gallery, Item
from unite.modalities.molecule.gallery import molecule_gallery
from unite.report.elements import section
from unite.report.page import Page

pytestmark = pytest.mark.browser

SAMPLES = REPOSITORY / "docs" / "results" / "qm9_two_hours" / "samples.sdf"
HOSTILE = '</script><script>alert(1)</script><img src="https://example.org/x" onerror="alert(2)">'
OPTIONS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PATIENCE = 60_000  # ms, on a busy machine


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium of the system."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as tools:
        found = tools.chromium.launch(executable_path=program, args=OPTIONS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples, samples over themselves, and a hostile item."""
    samples, _ = molecule_gallery([SAMPLES], num_workers=1)
    made, _ = molecule_gallery([SAMPLES], [SAMPLES], most=10, num_workers=1)
    page = Page(HOSTILE)
    page.add(section("Samples", page.gallery({"run": samples})))
    page.add(section("Reconstructions", page.gallery({"one": made, "other": made})))
    hostile = Item(HOSTILE, "", HOSTILE, is_good=False, group=HOSTILE, remarks=[HOSTILE])
    page.add(section(HOSTILE, page.gallery({HOSTILE: Gallery(HOSTILE, [hostile], 1)}), lead=HOSTILE))
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(page.text(), encoding="utf-8")
    return file


@pytest.fixture
def page(browser: Any, page_file: Path) -> Iterator[Any]:
    """The page, opened; at the end nothing has complained, and nothing has been fetched."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(PATIENCE)
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("dialog", lambda dialog: complaints.append(dialog.message))
    opened.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else complaints.append(request.url),
    )
    opened.goto(page_file.as_uri())
    opened.locator("body[data-ready=yes]").wait_for()
    yield opened
    opened.close()
    assert complaints == []


def stage(page: Any, number: int = 0) -> np.ndarray:
    """What stands in the panel of a gallery."""
    page.wait_for_timeout(300)
    content = page.locator(".gallery").nth(number).locator(".stage").screenshot()
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def num_coloured(picture: np.ndarray) -> int:
    return int(((255 - picture).sum(-1) > 60).sum())


def test_a_molecule_is_drawn_and_turns(page: Any) -> None:
    before = stage(page)
    assert num_coloured(before[5:-5, 5:-5]) > 500
    box = page.locator(".stage canvas").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 90, middle[1] + 40, steps=4)
    page.mouse.up()
    after = stage(page)
    assert (np.abs(after - before).sum(-1) > 60).sum() > 300


def test_filters_sorting_and_search(page: Any) -> None:
    gallery = page.locator(".gallery").nth(0)
    cards = gallery.locator(".card")
    everything, valid, *others = gallery.locator(".chip").all()
    assert everything.inner_text() == "all100"
    for chip in (valid, others[-1]):
        chip.click()
        count = chip.locator(".count").inner_text()
        assert gallery.locator(".title").inner_text() == f"{count} of 100 molecules"
        verdicts = cards.evaluate_all("cards => [...new Set(cards.map((card) => card.item.verdict))]")
        assert [verdict + count for verdict in verdicts] == [chip.inner_text()]
    assert cards.count() == int(count)
    gallery.locator(".chip").first.click()
    gallery.locator("select").select_option("atoms")
    first = "document.querySelector('.card').item.numbers.atoms"
    smallest = page.evaluate(first)
    gallery.locator(".sort button").click()
    assert page.evaluate(first) > smallest
    gallery.locator("input").fill("C1")
    names = cards.evaluate_all("cards => cards.map((card) => card.item.name)")
    assert names
    assert all("c1" in name.lower() for name in names)


def test_cards_come_as_they_scroll_into_view(page: Any) -> None:
    gallery = page.locator(".gallery").nth(0)
    assert gallery.locator(".card").count() == 60
    gallery.locator(".scroller").evaluate("place => (place.scrollTop = place.scrollHeight)")
    gallery.locator(".card").nth(99).wait_for(state="attached")


def test_one_canvas_moves_to_where_it_is_wanted(page: Any) -> None:
    assert page.locator(".gallery").nth(0).locator("canvas").count() == 1
    page.locator(".gallery").nth(1).locator(".card").nth(3).click()
    assert page.locator("canvas").count() == page.locator(".gallery").nth(1).locator("canvas").count() == 1
    assert page.locator(".gallery").nth(0).locator(".stage img").count() == 1
    over = stage(page, 1)
    assert ((over[..., 0] - over[..., 2]) > 80).sum() > 300  # the reconstruction is orange
    page.locator(".gallery").nth(1).locator(".buttons button", has_text="original").click()
    assert ((stage(page, 1)[..., 0] - over[..., 0]) != 0).any()
    page.locator(".gallery").nth(0).locator(".stage").click()
    assert page.locator(".gallery").nth(0).locator("canvas").count() == 1


def test_keys_go_from_card_to_card(page: Any) -> None:
    gallery = page.locator(".gallery").nth(0)
    gallery.locator(".card").nth(0).click()
    page.keyboard.press("ArrowRight")
    assert "selected" in gallery.locator(".card").nth(1).get_attribute("class")
    assert "record 2 of" in gallery.locator(".panel").inner_text()


def test_texts_of_a_file_are_texts(page: Any) -> None:
    assert HOSTILE in page.locator(".gallery").nth(2).locator(".panel").inner_text()
    assert page.locator("img[src^='http']").count() == 0


def test_a_narrow_screen_has_no_second_scrollbar(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
