"""A page in the output of a cell."""

import html
import re
from html.parser import HTMLParser

from tests.support.pages import Page as ReadPage
from tests.support.samples.graphs import REJECTED, graph_of
from tests.support.samples.qm9_rows import tiny_molecules
from unite.modalities.molecule.perception.distances import unite_hydrogens
from unite.report.notebook import molecules_in_space


class Frame(HTMLParser):
    """The attributes of the frame."""

    attributes: dict[str, str | None]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "iframe"
        self.attributes = dict(attrs)


def test_a_frame_holds_the_page_whatever_the_encoding_around_it() -> None:
    molecules = [unite_hydrogens(molecule) for molecule, _ in tiny_molecules()[10:13]]
    shown = molecules_in_space(molecules, 'a "title" & <more>')
    written = shown._repr_html_()
    assert written.isascii()
    frame = Frame()
    frame.feed(written)
    assert frame.attributes["srcdoc"] == shown.page.text()
    assert frame.attributes["sandbox"] == "allow-scripts"
    page = ReadPage(shown.page.text())
    items = page.galleries[0]["items"]
    assert len(items) == 3
    assert all(item["scene"]["symbols"].count("H") > 0 for item in items)  # placed
    assert html.escape('a "title" & <more>') in shown.page.text()
    assert not re.search(r'(src|href)="http', written)


def test_graphs_are_shown_as_well() -> None:
    page = ReadPage(molecules_in_space([graph_of("CCO"), REJECTED["valence"]]).page.text())
    assert [item["is_good"] for item in page.galleries[0]["items"]] == [True, False]
