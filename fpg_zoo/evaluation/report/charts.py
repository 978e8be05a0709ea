"""The page's curves and bars as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fpg_zoo.evaluation.report.confusion import MIDDLE
from fpg_zoo.evaluation.report.html import coordinate, escaped

# Of a chart, in its own pixels.
WIDTH, HEIGHT = 440, 300
LEFT, TOP, ACROSS, DOWN = 46, 14, 380, 238
_TICKS = 5
_MOST_BESIDE = 4  # letters of the last text under a chart, half of which are beyond it
FRACTIONS = tuple(f"{tick / _TICKS:.1f}" for tick in range(_TICKS + 1))


def line(values: Sequence[float] | np.ndarray, name: str) -> str:
    """A curve of 101 values 0..1, evenly across; NaN leaves a gap. `name` is its class in the style sheet."""
    return f'<path class="curve {name}" d="{path_of(values)}"/>'


def path_of(values: Sequence[float] | np.ndarray) -> str:
    """SVG path data of such a curve; page.js draws the same."""
    points, pen = [], "M"
    for place, value in enumerate(values):
        if np.isnan(value):
            pen = "M"
            continue
        x, y = LEFT + ACROSS * place / (len(values) - 1), TOP + DOWN * (1 - value)
        points.append(f"{pen}{coordinate(x)} {coordinate(y)}")
        pen = "L"
    return "".join(points)


def line_through(points: Sequence[tuple[float, float]], name: str) -> str:
    """A curve through points, each of (across, up) 0..1; a dot where there is one alone. `name` as of `line`."""
    placed = [(coordinate(LEFT + ACROSS * x), coordinate(TOP + DOWN * (1 - y))) for x, y in points]
    path = "L".join(f"{x} {y}" for x, y in placed)
    dot = "h.01" if len(placed) == 1 else ""
    return f'<path class="curve {name}" stroke-linecap="round" d="M{path}{dot}"/>'


def chart(
    label: str, across: str, up: str, ticks: Sequence[str], drawing: str, up_ticks: Sequence[str] = FRACTIONS
) -> str:
    """A chart with axes.

    Args:
        label: what it shows, for those who do not see it.
        across, up: names of the axes.
        ticks: texts at even distances along the first.
        drawing: SVG.
        up_ticks: texts at even distances along the second, from below; 0 to 1 by default.
    """
    lines, texts = [], []
    for place, text in enumerate(up_ticks):
        y = TOP + DOWN * (1 - place / (len(up_ticks) - 1))
        lines.append(f"M{LEFT} {coordinate(y)}h{ACROSS}")
        texts.append(f'<text x="{LEFT - 8}" y="{coordinate(y + 4)}" text-anchor="end">{escaped(text)}</text>')
    for place, text in enumerate(ticks):
        x = LEFT + ACROSS * place / (len(ticks) - 1)
        # The last one ends with the axis where it is wider than the margin.
        anchor = "end" if place == len(ticks) - 1 and len(text) > _MOST_BESIDE else "middle"
        texts.append(f'<text x="{coordinate(x)}" y="{TOP + DOWN + 18}" text-anchor="{anchor}">{escaped(text)}</text>')
    texts.append(f'<text class="axis" x="{LEFT + ACROSS / 2}" y="{HEIGHT - 10}" text-anchor="middle">{across}</text>')
    upright = f'transform="translate(12 {TOP + DOWN / 2}) rotate(-90)"'
    texts.append(f'<text class="axis" {upright} text-anchor="middle">{up}</text>')
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escaped(label)}">'
        f'<path class="grid" d="{"".join(lines)}"/>{"".join(texts)}{drawing}</svg>'
    )


def marker() -> str:
    """A line upwards at the threshold; page.js moves it."""
    x = coordinate(LEFT + ACROSS * MIDDLE / 100)
    return f'<path class="marker" id="marker" d="M{x} {TOP}v{DOWN}"/>'


def sample(name: str) -> str:
    """A bit of a curve, for a legend."""
    return f'<svg class="sample" viewBox="0 0 28 8" aria-hidden="true"><path class="curve {name}" d="M1 4h26"/></svg>'


def bar(value: float | None, name: str) -> str:
    """A bar of 0..1; empty where there is no value. `name` is its class in the style sheet."""
    width = coordinate(100 * (value or 0.0))
    return (
        f'<svg class="bar {name}" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="ground" width="100" height="6"/><rect width="{width}" height="6"/></svg>'
    )
