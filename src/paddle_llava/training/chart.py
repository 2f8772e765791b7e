"""Line charts as SVG text, in the colours of the page that they stand on (`--series-1`, `--grid`, ...)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 400, 200
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 30
MOST_POINTS = 500

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """A line through `points`; with `faint` only a background for another, with `marks` a dot at each point."""

    name: str
    points: Points
    color: str = "--series-1"
    faint: bool = False
    marks: bool = False


def line_chart(title: str, series: Sequence[Series], *, from_zero: bool = False) -> str:
    """An `<svg>` of the finite points of `series` over the step, the axis `from_zero` or from their least; it has a
    text for those who cannot see it."""
    drawn = [(each, _thinned([p for p in each.points if math.isfinite(p[1])])) for each in series]
    drawn = [(each, points) for each, points in drawn if points]
    if not drawn:
        return '<p class="empty">nothing was recorded</p>'
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points] + [0.0] * from_zero
    x_ticks, y_ticks = _ticks(min(xs), max(xs), whole=True), _ticks(min(ys), max(ys))
    x_range = min(*xs, x_ticks[0]), max(*xs, x_ticks[-1], min(xs) + 1)
    y_range = min(*ys, y_ticks[0]), max(*ys, y_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_range[0]) / (x_range[1] - x_range[0])
        up = (y - y_range[0]) / (y_range[1] - y_range[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    last = "; ".join(f"{each.name} ends at {points[-1][1]:.4g}" for each, points in drawn if not each.faint)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}: {last}")}">']
    for tick in y_ticks:
        _, y = place(x_range[0], tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in x_ticks:
        x, _ = place(tick, y_range[0])
        anchor = "end" if x > WIDTH - RIGHT - 20 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="{anchor}">{_number(tick)}</text>')
    for each, points in drawn:
        places = [place(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        kind = "faint" if each.faint else "line"
        parts.append(f'<polyline class="{kind}" style="stroke:var({each.color})" points="{path}"/>')
        if each.marks or len(points) == 1:
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" style="fill:var({each.color})">'
                f"<title>step {point[0]:g}: {point[1]:.4g}</title></circle>"
                for (x, y), point in zip(places, points, strict=True)
            ]
    return "".join([*parts, "</svg>"])


def smoothed(points: Points) -> list[tuple[float, float]]:
    """Exponential moving average of finite values over about a fifteenth of them, without the pull to zero at its
    start."""
    weight = 1 - 1 / max(2.0, min(len(points) / 15, 40.0))
    mean = total = 0.0
    result = []
    for x, y in points:
        if math.isfinite(y):
            mean, total = weight * mean + (1 - weight) * y, weight * total + (1 - weight)
            result.append((x, mean / total))
    return result


def _thinned(points: Points) -> list[tuple[float, float]]:
    """At most `MOST_POINTS`, each the mean of neighbours, the last one as it is."""
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return list(points)
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    means = [(group[0][0], sum(y for _, y in group) / len(group)) for group in groups]
    return [*means[:-1], points[-1]]


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Four to seven round numbers that span `low` to `high`."""
    if high <= low:
        margin = abs(low) / 2 or 1.0
        low, high = (low, low + 1) if whole else (low - margin if low < 0 else max(0.0, low - margin), high + margin)
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
    if whole:
        step = max(1.0, math.floor(step))
        first = math.ceil(low / step)
        return [step * n for n in range(first, math.floor(high / step) + 1)] or [low]
    return [step * n for n in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def _number(value: float) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.10g}" if abs(value) >= 1000 else f"{value:.4g}"
