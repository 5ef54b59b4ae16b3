"""A result's plots as small SVGs: bars for throughput, curves for what goes with size or load."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.soak.plot import COLOURS, TICKS, round_up, stroke, words

WIDTH, LEFT, RIGHT, TOP = 860, 210, 90, 56
BAR, GAP, BETWEEN = 20, 6, 22
HEIGHT, MARGIN, BELOW = 300, 74, 52
OTHERS, OURS = "#8c959f", COLOURS[0]
GRID = "#d0d7de"

LOOPS = {
    "throughput": "one-time pages of 1,000, 8 accounts",
    "avaamo-pages": "avaamo pages of 100, one after the other",
    "bulksms-polls": "one-row polls, 16 at once",
    "bulksms-tls": "one-row polls over TLS, 16 at once",
}

Point = tuple[float, float]
Bars = list[tuple[str, float, str]]  # a bar's name, its length, and what stands at its end


def draw(cases: dict[str, Any], folder: Path, stem: str) -> list[Path]:
    """What the result has plots for; each into `folder` under the result's name."""
    made = {
        "throughput": _ratios(cases),
        "rivals": _rivals(cases),
        "growth": _curves(
            cases, "growth", "What a report costs as the state fills", "messages in the state", "us"
        ),
        "memory": _curves(
            cases, "memory", "Peak memory over the size of one answer", "MiB of body", "MiB"
        ),
        "lateness": _curves(
            cases, "lateness", "Lateness over load", "% of the achievable poll rate", "ms"
        ),
    }
    files = []
    for name, drawing in made.items():
        if drawing:
            file = folder / (f"{stem}.svg" if stem == name else f"{stem}-{name}.svg")
            file.write_text(drawing, encoding="utf-8")
            files.append(file)
    return files


def _ratios(cases: dict[str, Any]) -> str:
    """Each case beside its bare loop, which is 1."""
    groups: list[tuple[str, Bars]] = []
    for name, title in LOOPS.items():
        if name in cases:
            rows = [row for row in cases[name]["rows"] if "ratio" in row["values"]]
            groups.append((title, [_bar(row) for row in rows]))
    return bars("Throughput beside a bare loop that keeps nothing (= 1)", groups) if groups else ""


def _bar(row: dict[str, Any]) -> tuple[str, float, str]:
    values = row["values"]
    return row["name"], values["ratio"], f"{values['ratio']:.2f}  ({values['records/s']:,.0f}/s)"


def _rivals(cases: dict[str, Any]) -> str:
    if "rivals" not in cases:
        return ""
    found = [row for row in cases["rivals"]["rows"] if "until ended/s" in row["values"]]
    shown: Bars = []
    for row in sorted(found, key=lambda row: -row["values"]["until ended/s"]):
        rate = row["values"]["until ended/s"]
        shown.append((row["name"], rate, f"{rate:,.0f}/s"))
    title = "The same one-time pages of 1,000 (8 accounts) into JSON lines, records a second"
    return bars(title, [("", shown)])


def bars(title: str, groups: Sequence[tuple[str, Bars]]) -> str:
    """Horizontal bars from zero, in groups; the engine's stand out."""
    most = max((length for _, shown in groups for _, length, _ in shown), default=0.0) or 1.0
    wide = WIDTH - LEFT - RIGHT - 60
    out: list[str] = []
    at = float(TOP)
    for name, shown in groups:
        if name:
            out.append(words(LEFT, at + 4, "start", name, "#1f2328"))
            at += 14
        for label, length, end in shown:
            colour = OURS if label.startswith("engine") else OTHERS
            out.append(words(LEFT - 8, at + BAR - 6, "end", label))
            size = max(1.0, wide * length / most)
            out.append(
                f'<rect x="{LEFT}" y="{at:g}" width="{size:.1f}" height="{BAR}" fill="{colour}"/>'
            )
            out.append(words(LEFT + size + 6, at + BAR - 6, "start", end))
            at += BAR + GAP
        at += BETWEEN
    return _page(title, round(at), out)


def _curves(cases: dict[str, Any], case: str, title: str, below: str, unit: str) -> str:
    if case not in cases:
        return ""
    for row in cases[case]["rows"]:
        if row["series"]:
            return curves(title, row["series"], below, unit)
    return ""


def curves(title: str, series: dict[str, Sequence[Sequence[float]]], below: str, unit: str) -> str:
    """Curves over one axis, both from zero."""
    points = [point for curve in series.values() for point in curve]
    step_x = round_up(max(x for x, _ in points) / TICKS)
    step_y = round_up(max(y for _, y in points) / TICKS)
    bottom, wide = TOP + HEIGHT, WIDTH - MARGIN - RIGHT

    def x(value: float) -> float:
        return MARGIN + wide * value / (step_x * TICKS)

    def y(value: float) -> float:
        return bottom - HEIGHT * value / (step_y * TICKS)

    out = []
    for n in range(TICKS + 1):
        out.append(stroke(MARGIN, y(n * step_y), MARGIN + wide, y(n * step_y), GRID, 0.8))
        out.append(words(MARGIN - 6, y(n * step_y) + 4, "end", f"{n * step_y:g} {unit}"))
        out.append(words(x(n * step_x), bottom + 18, "middle", f"{n * step_x:,.10g}"))
    out.append(words(MARGIN + wide / 2, bottom + 38, "middle", below))
    beside = float(MARGIN + wide)
    for n, (name, curve) in reversed(list(enumerate(series.items()))):
        out.append(words(beside, TOP - 12, "end", name, COLOURS[n]))
        beside -= 7 * len(name) + 18
        places = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in curve)
        style = f'fill="none" stroke="{COLOURS[n]}" stroke-width="1.8"'
        out.append(f'<polyline points="{places}" {style}/>')
        for at, value in curve if len(curve) <= 12 else ():
            out.append(f'<circle cx="{x(at):.1f}" cy="{y(value):.1f}" r="3" fill="{COLOURS[n]}"/>')
    return _page(title, bottom + BELOW, out)


def _page(title: str, height: int, inside: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        f' viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">'
    )
    ground = f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
    name = f'<text x="16" y="24" font-size="15" fill="#1f2328">{escape(title)}</text>'
    return "\n".join([head, ground, name, *inside, "</svg>", ""])
