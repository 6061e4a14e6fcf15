"""The page: one file with its style, its scripts and its data, which asks no network for anything.

A Content-Security-Policy names the scripts of the page by their hashes: no other one runs, whatever stands in a file
that is reported on, and nothing is fetched.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from unite.files.version import __version__
from unite.modalities.gallery import Gallery, Item, Scene
from unite.report.elements import Html, element, joined
from unite.vendor import viewer_script

SCRIPTS = ("viewer.js", "gallery.js")


class Page:
    """A page in the making.

    Args:
        title: Its title.
        subtitle: A line below.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self.sections: list[Html] = []
        self._galleries: list[dict[str, Any]] = []

    def add(self, *sections: Html) -> None:
        """Add parts, one below the other."""
        self.sections += sections

    def gallery(self, galleries: dict[str, Gallery]) -> Html:
        """The place of one gallery, or of several side by side, by the name of the run that each is of."""
        first = len(self._galleries)
        self._galleries += [as_json(name, gallery) for name, gallery in galleries.items()]
        places = " ".join(str(number) for number in range(first, len(self._galleries)))
        return element("div", class_="gallery", data_galleries=places)

    def text(self) -> str:
        """The page as the text of an HTML file."""
        has_scenes = any(item["scene"] for gallery in self._galleries for item in gallery["items"])
        scripts = [_resource(name) for name in SCRIPTS] if self._galleries else []
        if has_scenes:
            scripts.insert(0, viewer_script())
        style = _resource("page.css")
        head = joined(
            Html('<meta charset="utf-8">'),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Html(f'<meta name="generator" content="unite {__version__}">'),
            element("title", self.title),
            element("style", Html(style)),
        )
        header = element(
            "header", element("h1", self.title), element("p", self.subtitle, class_="lead") if self.subtitle else Html()
        )
        credit = " In space: 3Dmol.js (Rego and Koes 2015), BSD-3-Clause." if has_scenes else ""
        footer = element("footer", f"Made by unite report, version {__version__}.{credit}")
        packed = base64.b64encode(gzip.compress(json.dumps(self._galleries).encode(), 9, mtime=0)).decode()
        body = joined(
            header,
            element("main", *self.sections),
            footer,
            element("script", Html(packed), type="text/plain", id="galleries") if self._galleries else Html(),
            *[element("script", Html(script)) for script in scripts],
        )
        return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def as_json(name: str, gallery: Gallery) -> dict[str, Any]:
    """A gallery as the page's script takes it."""
    return {
        "name": name,
        "noun": gallery.noun,
        "total": gallery.total,
        "pixels": gallery.pixels,
        "items": [_item(item) for item in gallery.items],
    }


def _item(item: Item) -> dict[str, Any]:
    # Not asdict, which takes a second for the scenes of a thousand molecules.
    values = {name: getattr(item, name) for name in item.__dataclass_fields__}
    return values | {"scene": _scene(item.scene), "original": _scene(item.original)}


def _scene(scene: Scene | None) -> dict[str, Any] | None:
    return None if scene is None else dict(vars(scene))


def _policy(scripts: Sequence[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


def _resource(name: str) -> str:
    return (files("unite.report") / name).read_text(encoding="utf-8")
