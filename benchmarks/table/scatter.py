"""AP against speed and against memory as an SVG of plain text, the same for the same metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 860, 400
_LEFT, _TOP, _PANEL_WIDTH, _PANEL_HEIGHT, _GAP = 52, 64, 350, 270, 64
_RADIUS = 5.0
_LETTER = 6.2  # width of a letter of a label, about
_STYLE = """
text { font: 11px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 12px }
.ground { fill: #ffffff }
.grid { stroke: #d0d7de; stroke-width: 1 }
.m0 { fill: #0969da; stroke: #0969da } .m1 { fill: #bc4c00; stroke: #bc4c00 } .m2 { fill: #1a7f37; stroke: #1a7f37 }
polyline { fill: none !important; stroke-width: 1.5; stroke-opacity: 0.5 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.ground { fill: #0d1117 }
.grid { stroke: #30363d }
.m0 { fill: #58a6ff; stroke: #58a6ff } .m1 { fill: #f0883e; stroke: #f0883e } .m2 { fill: #3fb950; stroke: #3fb950 }
}
"""
_ALONG = ("FPN", "FPG-chn128", "FPG")  # the line through a method's points, from little to much


class Point(NamedTuple):
    """A model: `method` decides its marker, `neck` is written beside it, `ap` in percent is its height."""

    method: str
    neck: str
    ap: float
    x: float


class Panel(NamedTuple):
    """A scatter of AP against `axis`."""

    title: str
    axis: str
    points: Sequence[Point]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` or below to `high` or above, `most` of them or one or two more."""
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 6) for number in range(first, last + 1)]


def drawn(panels: Sequence[Panel], note: str) -> str:
    """The image: panels side by side, a legend of the methods above, a note below."""
    methods = list(dict.fromkeys(point.method for panel in panels for point in panel.points))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img">',
        f"<title>{escape('; '.join(panel.title for panel in panels))}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="ground" width="{_WIDTH}" height="{_HEIGHT}"/>',
    ]
    for place, method in enumerate(methods):
        x = _LEFT + place * 120.0
        parts += [_marker(place, x + 6, 20), _text(x + 18, 24, method)]
    for place, panel in enumerate(panels):
        parts += _panel(panel, methods, _LEFT + place * (_PANEL_WIDTH + _GAP))
    parts += [_text(_LEFT, _HEIGHT - 10, note), "</svg>"]
    return "\n".join(parts) + "\n"


def _panel(panel: Panel, methods: Sequence[str], left: float) -> list[str]:
    right, bottom = left + _PANEL_WIDTH, _TOP + _PANEL_HEIGHT
    parts = [_text(left, _TOP - 14, panel.title, kind="title")]
    if not panel.points:
        return [*parts, _text(left, _TOP + 20, "not measured yet")]
    across = ticks(0, max(point.x for point in panel.points))
    upward = ticks(min(point.ap for point in panel.points) - 0.5, max(point.ap for point in panel.points) + 0.5, most=8)

    def place(x: float, ap: float) -> tuple[float, float]:
        return (
            left + _PANEL_WIDTH * (x - across[0]) / (across[-1] - across[0]),
            bottom - _PANEL_HEIGHT * (ap - upward[0]) / (upward[-1] - upward[0]),
        )

    for value in across:
        x, _ = place(value, upward[0])
        parts += [_line(x, _TOP, x, bottom), _text(x, bottom + 16, f"{value:g}", anchor="middle")]
    for value in upward:
        _, y = place(0, value)
        parts += [_line(left, y, right, y), _text(left - 6, y + 4, f"{value:g}", anchor="end")]
    parts.append(_text(left + _PANEL_WIDTH / 2, bottom + 34, panel.axis, anchor="middle"))
    for number, method in enumerate(methods):
        by_neck = {point.neck: point for point in panel.points if point.method == method}
        corners = [place(by_neck[neck].x, by_neck[neck].ap) for neck in _ALONG if neck in by_neck]
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        parts.append(f'<polyline class="m{number}" points="{text}"/>')
    taken = [_box(*place(point.x, point.ap), 0, "middle") for point in panel.points]
    for point in panel.points:
        x, y = place(point.x, point.ap)
        parts.append(_marker(methods.index(point.method), x, y))
        label_x, label_y, anchor = _free(x, y, len(point.neck), taken, (left, right))
        taken.append(_box(label_x, label_y - 4, len(point.neck), anchor))
        parts.append(_text(label_x, label_y, point.neck, anchor=anchor))
    return parts


_Box = tuple[float, float, float, float]


def _box(x: float, y: float, letters: int, anchor: str) -> _Box:
    """What a label, or a marker if it has no letters, covers about (x, y)."""
    width = letters * _LETTER
    begin = {"start": x, "end": x - width, "middle": x - width / 2}[anchor]
    margin = _RADIUS if not letters else 0
    return begin - margin, y - 6, begin + width + margin, y + 6


def _free(
    x: float, y: float, letters: int, taken: Sequence[_Box], ends: tuple[float, float]
) -> tuple[float, float, str]:
    """Where a label covers nothing: right of its marker, left, above, below; right if nowhere."""
    options = [(x + 9, y + 4, "start"), (x - 9, y + 4, "end"), (x, y - 10, "middle"), (x, y + 18, "middle")]
    for option in options:
        low_x, low_y, high_x, high_y = _box(option[0], option[1] - 4, letters, option[2])
        inside = ends[0] <= low_x and high_x <= ends[1] + _GAP / 3
        if inside and not any(low_x < b[2] and b[0] < high_x and low_y < b[3] and b[1] < high_y for b in taken):
            return option
    return options[0]


def _marker(number: int, x: float, y: float) -> str:
    """A circle, a square or a triangle, so that methods differ in more than color."""
    r, side = _RADIUS, 2 * _RADIUS - 1
    shapes = (
        f'<circle class="m0" cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"/>',
        f'<rect class="m1" x="{x - side / 2:.1f}" y="{y - side / 2:.1f}" width="{side:.1f}" height="{side:.1f}"/>',
        f'<path class="m2" d="M{x:.1f} {y - r:.1f} L{x + r:.1f} {y + r - 1:.1f} L{x - r:.1f} {y + r - 1:.1f} Z"/>',
    )
    return shapes[number]


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
