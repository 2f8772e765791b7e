"""Bar charts as a picture of its own, an SVG that reads on light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

WIDTH, LABEL, VALUE = 720, 170, 70
BAR, GAP, TITLE = 18, 6, 30
COLOURS = {"openvino": "#2a78d6", "paddle": "#1baf7a", "transformers": "#eb6834", "llama.cpp": "#8a63d2"}


class Panel(NamedTuple):
    """A bar for each name, all to one scale."""

    title: str
    values: Mapping[str, float]


def bar_charts(title: str, panels: Sequence[Panel]) -> str:
    """All `panels`, one below another; a bar's colour is that of the library its name begins with."""
    height = TITLE + sum(TITLE + len(panel.values) * (BAR + GAP) for panel in panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fcfcfb"/>',
        f'<text x="10" y="21" font-size="16" font-weight="600" fill="#0b0b0b">{escape(title)}</text>',
    ]
    y = TITLE
    for panel in panels:
        parts.append(f'<text x="10" y="{y + 21}" font-weight="600" fill="#0b0b0b">{escape(panel.title)}</text>')
        y += TITLE
        greatest = max(panel.values.values())
        for name, value in panel.values.items():
            length = (WIDTH - LABEL - VALUE) * value / greatest
            colour = COLOURS[name.rpartition("-")[0]]
            shown = f"{value:.0f}" if value >= 100 else f"{value:.1f}"
            parts += [
                f'<text x="{LABEL - 8}" y="{y + 14}" text-anchor="end" fill="#52514e">{escape(name)}</text>',
                f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR}" rx="3" fill="{colour}"/>',
                f'<text x="{LABEL + length + 6:.1f}" y="{y + 14}" fill="#0b0b0b">{shown}</text>',
            ]
            y += BAR + GAP
    return "\n".join([*parts, "</svg>\n"])
