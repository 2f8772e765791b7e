"""The curves of a whole training of the street model as one picture, from the logs of its stages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from paddle_llava.training.chart import HEIGHT, WIDTH, Series, line_chart, smoothed

FILE = "curves.svg"
COLUMNS, TITLE, MARGIN = 2, 34, 12
FIGURES = {
    "eye": ("kind", "colour", "iou", "rank"),
    "tongue": ("count", "yes_no", "relation", "where"),
    "together": ("count", "yes_no", "relation", "where"),
}
"""Held-out figures of a stage that are drawn, all between 0 and 1."""
COLOURS = ("#2a78d6", "#1baf7a", "#eb6834", "#8a63d2")
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#52514e}.title{font-size:14px;font-weight:600;fill:#0b0b0b}"
    ".grid{stroke:#e3e2de}polyline{fill:none;stroke-width:2}.faint{opacity:.35;stroke-width:1}"
    f"svg{{{''.join(f'--series-{number}:{colour};' for number, colour in enumerate(COLOURS, 1))}}}"
)


def write_curves(output_dir: Path) -> Path:
    """`curves.svg` in the folder of a training: the loss of each stage over its steps, and some held-out figures."""
    panels = list(_panels(output_dir))
    rows = -(-len(panels) // COLUMNS)
    width, height = COLUMNS * (WIDTH + MARGIN) + MARGIN, rows * (HEIGHT + TITLE) + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f'<style>{STYLE}</style><rect width="{width}" height="{height}" fill="#fcfcfb"/>',
    ]
    for number, (title, series, from_zero) in enumerate(panels):
        x = MARGIN + number % COLUMNS * (WIDTH + MARGIN)
        y = number // COLUMNS * (HEIGHT + TITLE)
        parts.append(f'<text class="title" x="{x}" y="{y + 24}">{escape(title)}</text>')
        parts += _legend(series, x + WIDTH, y + 24)
        chart = line_chart(title, series, from_zero=from_zero)
        parts.append(chart.replace("<svg ", f'<svg x="{x}" y="{y + TITLE}" width="{WIDTH}" height="{HEIGHT}" ', 1))
    path = output_dir / FILE
    path.write_text("\n".join([*parts, "</svg>\n"]), encoding="utf-8")
    return path


def _panels(output_dir: Path) -> Iterator[tuple[str, list[Series], bool]]:
    """Of each stage that has a log, in their order: a title, what is drawn, and whether the axis begins at 0."""
    rounds = sorted(output_dir.glob("together-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    names = ("eye", "tongue", "alignment", "pretrain", *(folder.name for folder in rounds), "finetune")
    for name in names:
        lines = [line for file in ("log.jsonl", "trainer_log.jsonl") for line in _lines(output_dir / name / file)]
        losses = [(line["step"], line["loss"]) for line in lines if isinstance(line.get("loss"), float)]
        if losses:
            yield f"{name}: loss", [Series("loss", losses, faint=True), Series("loss", smoothed(losses))], False
        figures = FIGURES.get(name.partition("-")[0], ())
        series = [
            Series(key.replace("_", " "), points, f"--series-{number}", marks=len(points) < 8)
            for number, key in enumerate(figures, 1)
            if (points := [(line["step"], line[key]) for line in lines if key in line])
        ]
        if series:
            yield f"{name}: held-out", series, True


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _legend(series: Sequence[Series], right: int, y: int) -> Iterator[str]:
    """The names of `series` in their colours, ending at `right`."""
    if len({each.name for each in series}) < 2:
        return
    names = "".join(f'<tspan dx="8" style="fill:var({each.color})">{escape(each.name)}</tspan>' for each in series)
    yield f'<text x="{right}" y="{y}" text-anchor="end">{names}</text>'
