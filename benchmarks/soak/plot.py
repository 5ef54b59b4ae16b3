"""Curves as a small SVG, and as a line of blocks for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, PANEL, GAP, LEFT, RIGHT, TOP = 960, 190, 54, 74, 20, 46
TICKS = 4
MINUTES = 12
"""Ticks at most below a panel."""
COLOURS = ("#1f6feb", "#d1710b", "#2da44e")
BLOCKS = "▁▂▃▄▅▆▇█"

Point = tuple[float, float]
Curve = tuple[str, Sequence[Sequence[Point]]]
"""Its name, and its pieces: between two pieces there is nothing to draw."""


class Panel:
    """A plot with an axis of its own, under the time that all panels share."""

    def __init__(self, title: str, unit: str, curves: Sequence[Curve]) -> None:
        self.title, self.unit, self.curves = title, unit, curves


def svg(
    title: str, panels: Sequence[Panel], minutes: float, marks: Sequence[tuple[float, str]]
) -> str:
    """All panels under one another; `marks` are (minute, colour) of what happened when."""
    height = TOP + len(panels) * (PANEL + GAP)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        f' viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" font-size="15" fill="#1f2328">{escape(title)}</text>',
    ]
    for n, panel in enumerate(panels):
        out += _panel(panel, TOP + n * (PANEL + GAP), minutes, marks)
    return "\n".join([*out, "</svg>", ""])


def _panel(
    panel: Panel, top: float, minutes: float, marks: Sequence[tuple[float, str]]
) -> list[str]:
    most = max((y for _, ps in panel.curves for piece in ps for _, y in piece), default=0.0)
    step = round_up(most / TICKS)
    bottom, wide = top + PANEL, WIDTH - LEFT - RIGHT

    def x(minute: float) -> float:
        return LEFT + wide * minute / max(minutes, 1e-9)

    def y(value: float) -> float:
        return bottom - (PANEL - 24) * value / (step * TICKS)

    out = [f'<text x="{LEFT}" y="{top + 12:g}" fill="#1f2328">{escape(panel.title)}</text>']
    for minute, colour in marks:
        out.append(stroke(x(minute), top + 24, x(minute), bottom, colour, 0.7))
    for n in range(TICKS + 1):
        at = y(n * step)
        out.append(stroke(LEFT, at, WIDTH - RIGHT, at, "#d0d7de", 0.8))
        out.append(words(LEFT - 6, at + 4, "end", f"{n * step:g} {panel.unit}"))
    every = round_up(minutes / MINUTES)
    for n in range(int(minutes / every) + 1):
        minute = n * every
        out.append(words(x(minute), bottom + 16, "middle", f"{minute:g} min"))
    beside = WIDTH - RIGHT
    for n, (name, pieces) in reversed(list(enumerate(panel.curves))):
        out.append(words(beside, top + 12, "end", name, COLOURS[n]))
        beside -= 7 * len(name) + 18
        for piece in pieces:
            points = " ".join(f"{x(m):.1f},{y(v):.1f}" for m, v in piece)
            style = f'fill="none" stroke="{COLOURS[n]}" stroke-width="1.6"'
            out.append(f'<polyline points="{points}" {style}/>')
    return out


def stroke(x1: float, y1: float, x2: float, y2: float, colour: str, wide: float) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{wide}"/>'


def words(x: float, y: float, anchor: str, text: str, colour: str = "#57606a") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{colour}">{escape(text)}</text>'


def round_up(value: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    size = 1e-3
    while True:
        for factor in (1, 2, 2.5, 5):
            if factor * size >= value:
                return factor * size
        size *= 10


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """The largest value of each of `width` parts, from zero to the largest of all."""
    if not values:
        return ""
    count = min(width, len(values))
    parts = [
        max(values[n * len(values) // count : (n + 1) * len(values) // count]) for n in range(count)
    ]
    top = max(parts) or 1.0
    return "".join(BLOCKS[min(int(v / top * len(BLOCKS)), len(BLOCKS) - 1)] for v in parts)
