"""Reading back the pages that `unite report` writes."""

import base64
import gzip
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


class Page(HTMLParser):
    """A page, read as a browser does: its elements and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.headings: list[str] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open != "style":
            self.words.append(data)
            if self._open == "h2":
                self.headings.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def attributes(self, tag: str) -> list[dict[str, str]]:
        """Attributes of all elements with a tag."""
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        """All that is read."""
        return " ".join(" ".join(self.words).split())

    @property
    def galleries(self) -> list[dict[str, Any]]:
        """What the page's script is given."""
        packed = [
            script
            for script, attributes in zip(self.scripts, self.attributes("script"), strict=True)
            if attributes.get("id") == "galleries"
        ]
        found: list[dict[str, Any]] = json.loads(gzip.decompress(base64.b64decode(packed[0])))
        return found


def read_page(path: Path) -> Page:
    """The page in a file."""
    return Page(path.read_text(encoding="utf-8"))
