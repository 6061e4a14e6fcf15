"""Curves as small pictures side by side, each with its own axis, drawn as SVG."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from unite.report.elements import Html, element, joined
from unite.runs.definitions import definition, written
from unite.runs.headlines import headlines

COLOURS: Final = ("#1f6f78", "#d08a2e", "#7b5ea7", "#5a8f3c", "#b4485a", "#4a6fb0")
"""Of the runs, in turn."""

MAX_POINTS: Final = 200
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 340, 170, 46, 10, 10, 24

Rows = Sequence[tuple[int, Mapping[str, float]]]


def curves(runs: Mapping[str, Rows]) -> list[Html]:
    """Metrics of validations and losses over the steps, a panel each; the runs in colours.

    Args:
        runs: Step and logged values, in order of the steps, by name of the run.
    """
    names = list(dict.fromkeys(name for rows in runs.values() for _, values in rows for name in values))
    groups = {
        "Validation": [name for name in headlines(names) if name.startswith("val/") and definition(name).words],
        "Training losses": [name for name in names if name.startswith("train/") and name.count("/") == 2],
    }
    is_alone = len({name.split("/")[1] for group in groups.values() for name in group}) == 1
    parts = [legend(list(runs))] if len(runs) > 1 else []
    for title, chosen in groups.items():
        panels = [panel(name, {run: points_of(rows, name) for run, rows in runs.items()}, is_alone) for name in chosen]
        if panels:
            parts += [element("h3", title), element("div", *panels, class_="panels")]
    return parts


def legend(names: Sequence[str]) -> Html:
    """Which colour is which run."""
    entries = [
        element("li", element("span", class_="swatch", style=f"background:{colour_of(number)}"), name)
        for number, name in enumerate(names)
    ]
    return element("ul", *entries, class_="runs")


def colour_of(number: int) -> str:
    """The colour of a run."""
    return COLOURS[number % len(COLOURS)]


def points_of(rows: Rows, name: str) -> list[tuple[float, float]]:
    """Step, counted from 1, and value wherever it was logged and is finite."""
    return [(step + 1, values[name]) for step, values in rows if math.isfinite(values.get(name, math.nan))]


def panel(name: str, lines: Mapping[str, Sequence[tuple[float, float]]], is_alone: bool) -> Html:
    """One metric of all runs over the steps; its modality is named unless it is the only one."""
    title = name.split("/", 2 if is_alone else 1)[-1].replace("/", ": ").replace("_", " ")
    points = [point for line in lines.values() for point in line]
    lasts = [written(name, line[-1][1]) if line else "" for line in lines.values()]
    caption = [element("figcaption", title, element("b", ", ".join(filter(None, lasts)) if len(lines) < 4 else ""))]
    if not points:
        return element("figure", *caption, class_="curve")
    scale = _Scale(points, definition(name).is_share)
    drawn = [
        _line(scale, _thinned(line), colour_of(number), name) for number, line in enumerate(lines.values()) if line
    ]
    picture = element(
        "svg",
        *_axes(scale, name),
        *drawn,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=f"{title} over the steps",
    )
    return element("figure", *caption, picture, class_="curve")


class _Scale:
    """From step and value to pixels."""

    def __init__(self, points: Sequence[tuple[float, float]], is_share: bool) -> None:
        self.last = max(step for step, _ in points)
        low, high = min(value for _, value in points), max(value for _, value in points)
        if is_share:
            low, high = 0.0, min(1.0, max(high * 1.1, 0.01))
        margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
        self.low, self.high = (low, high) if is_share else (low - margin, high + margin)

    def x(self, step: float) -> float:
        return _LEFT + step / self.last * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _TOP + (self.high - value) / (self.high - self.low) * (_HEIGHT - _TOP - _BOTTOM)


def _axes(scale: _Scale, name: str) -> list[Html]:
    parts = []
    for value in _ticks(scale.low, scale.high):
        y = f"{scale.y(value):.1f}"
        text = f"{100 * value:g} %" if definition(name).is_share else f"{value:g}"
        parts.append(element("line", x1=str(_LEFT), x2=str(_WIDTH - _RIGHT), y1=y, y2=y, class_="grid"))
        parts.append(element("text", text, x=str(_LEFT - 6), y=y, class_="tick left"))
    for step in _ticks(0, scale.last):
        parts.append(element("text", f"{step:,.0f}", x=f"{scale.x(step):.1f}", y=str(_HEIGHT - 6), class_="tick"))
    return parts


def _ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round numbers within an interval."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step = next(step * factor for factor in (1, 2, 2.5, 5, 10) if (high - low) / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _thinned(line: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most :data:`MAX_POINTS` points, the last among them."""
    stride = -(-len(line) // MAX_POINTS)
    return [*line[:-1:stride], line[-1]]


def _line(scale: _Scale, line: Sequence[tuple[float, float]], colour: str, name: str) -> Html:
    path = " ".join(f"{scale.x(step):.1f},{scale.y(value):.1f}" for step, value in line)
    parts = [element("polyline", points=path, stroke=colour)]
    if len(line) <= 40:
        parts += [
            element(
                "circle",
                element("title", f"step {step:,.0f}: {written(name, value)}"),
                cx=f"{scale.x(step):.1f}",
                cy=f"{scale.y(value):.1f}",
                r="3",
                fill=colour,
            )
            for step, value in line
        ]
    return joined(*parts)
