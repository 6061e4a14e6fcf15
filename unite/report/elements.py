"""HTML put together from elements; whatever is not HTML already is escaped."""

import html


class Html(str):
    """Text that is HTML, and put into a page as it is."""


def element(name: str, *children: str, **attributes: str | None) -> Html:
    """An element of HTML.

    Args:
        name: Its tag.
        children: What is in it; text that is no :class:`Html` is escaped.
        attributes: Its attributes, ``class_`` for ``class`` and ``data_x`` for ``data-x``; those that are None are left
            out.
    """
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{words}>{joined(*children)}</{name}>")


def joined(*parts: str) -> Html:
    """Elements and texts one after another."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts))


def table(header: list[str], rows: list[list[str]], class_: str | None = None) -> Html:
    """A table; the first column names the rows."""
    head = element("tr", *[element("th", cell, scope="col") for cell in header])
    body = [
        element("tr", element("th", row[0], scope="row"), *[element("td", cell) for cell in row[1:]]) for row in rows
    ]
    inner = element("table", element("thead", head), element("tbody", *body), class_=class_)
    return element("div", inner, class_="wide")


def section(title: str, *children: str, id: str | None = None, lead: str = "") -> Html:
    """A part of a page under its title, with a sentence that says what it shows."""
    return element(
        "section", element("h2", title), element("p", lead, class_="lead") if lead else Html(), *children, id=id
    )
