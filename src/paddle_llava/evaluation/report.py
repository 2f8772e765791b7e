"""An evaluation's `report.html`: one page that needs nothing else. What it quotes is data, never markup or script."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import time
from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path

from paddle_llava import __version__
from paddle_llava.evaluation.gallery import chosen, draw_card
from paddle_llava.evaluation.predictions import Run
from paddle_llava.evaluation.published import REMARKS, published_score
from paddle_llava.evaluation.records import Prediction, Scores
from paddle_llava.evaluation.significance import figure_intervals, mean_interval
from paddle_llava.evaluation.tasks import TASKS

_HERE = Path(__file__).parent
STYLES = (_HERE.parent / "training" / "report.css", _HERE / "report.css")
SCRIPT = _HERE / "report.js"
SECONDS_FOR_PICTURES = 60


def write_report(path: Path, run: Run, scores: Scores, predictions: Sequence[Prediction]) -> None:
    """Write the page to `path`, whole or not at all.

    Pictures are shown of a bounded number of answers, as far as they can be read within a minute. Nothing that answers
    or pictures hold makes it fail.
    """
    page = render_report(run, scores, predictions)
    part = path.with_suffix(".tmp")
    part.write_text(page, encoding="utf-8", errors="replace")
    os.replace(part, path)


def render_report(run: Run, scores: Scores, predictions: Sequence[Prediction]) -> str:
    """The page as text; everything from data or model is escaped, and no script but its own may run."""
    style = "".join(file.read_text(encoding="utf-8") for file in STYLES)
    script = SCRIPT.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    name = TASKS[run.task].title
    title = escape(f"{name[:1].upper()}{name[1:]}: {run.model}")
    published = published_score(scores.published_as or run.task, run.model)
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
            f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title><style>{style}</style></head><body><main>",
            f"<header><h1>{title}</h1><p>{time.strftime('%Y-%m-%d %H:%M')} · paddle-llava {__version__}</p></header>",
            _tiles(scores, predictions, published),
            f"<p>Of the published figure: {escape(REMARKS[run.task])}.</p>"
            if published and run.task in REMARKS
            else "",
            *(f"<p>{escape(note)}</p>" for note in scores.notes),
            _figures(scores, published),
            _groups(scores, predictions),
            _gallery(scores, predictions),
            _settings(run),
            f"</main><script>{script}</script></body></html>\n",
        ]
    )


def _tiles(scores: Scores, predictions: Sequence[Prediction], published: tuple[str, float] | None) -> str:
    failed = sum(prediction.error is not None for prediction in predictions)
    headline = scores.figures.get(scores.headline, math.nan)
    tiles = {scores.headline: _number(headline)}
    if published:
        name, figure = published
        tiles[f"published, {name}"] = _number(figure)
        tiles["difference"] = f"{headline - figure:+.2f}"
    tiles["answers"] = f"{len(predictions) - failed:,}"
    if failed:
        tiles["without an answer"] = f"{failed:,}"
    cells = "".join(f"<div><dd>{escape(value)}</dd><dt>{escape(key)}</dt></div>" for key, value in tiles.items())
    return f'<dl class="tiles">{cells}</dl>'


def _figures(scores: Scores, published: tuple[str, float] | None) -> str:
    """With the mean of all questions' scores where no figure is that."""
    values = list(scores.per_sample.values())
    figures = dict(scores.figures)
    intervals = figure_intervals(scores)
    if values and not intervals:
        percent = 100 if max(figures.values(), default=0.0) > 1 else 1
        name, mean = "mean score of a question", percent * sum(values) / len(values)
        figures[name] = mean
        intervals |= {name: interval} if (interval := mean_interval(mean, values)) else {}
    rows = []
    for name, figure in figures.items():
        theirs = _number(published[1]) if published and name == scores.headline else ""
        rows.append(
            f'<tr><td>{escape(name)}</td><td class="number">{_number(figure)}</td>'
            f'<td class="interval">{_range(intervals.get(name))}</td><td class="number">{theirs}</td></tr>'
        )
    last = '<th class="number">published</th>' if published else "<td></td>"
    heads = f'<th>figure</th><th class="number">measured</th><th>95% interval</th>{last}'
    return f'<h2>Scores</h2><div class="wide"><table><tr>{heads}</tr>{"".join(rows)}</table></div>'


def _range(interval: tuple[float, float] | None) -> str:
    return f"{_number(interval[0])} to {_number(interval[1])}" if interval else ""


def _groups(scores: Scores, predictions: Sequence[Prediction]) -> str:
    tables = [_table(several, scores, predictions) for several in _alike(scores.groups)]
    return f'<h2>By type</h2><section class="tables">{"".join(tables)}</section>' if tables else ""


def _alike(groups: Mapping[str, Mapping[str, float]]) -> list[dict[str, Mapping[str, float]]]:
    """Neighbouring groups that have rows in common stand in one table."""
    tables: list[dict[str, Mapping[str, float]]] = []
    for title, figures in groups.items():
        if tables and any(figures.keys() & column.keys() for column in tables[-1].values()):
            tables[-1][title] = figures
        elif figures:
            tables.append({title: figures})
    return tables


def _table(groups: Mapping[str, Mapping[str, float]], scores: Scores, predictions: Sequence[Prediction]) -> str:
    """Groups as columns and their figures as rows, or the other way round when the groups are the types."""
    names = list(dict.fromkeys(name for figures in groups.values() for name in figures))
    across, down = list(groups), names
    cells = {(name, title): figure for title, figures in groups.items() for name, figure in figures.items()}
    key = group_key(down, predictions)
    if key is None and (group_key(across, predictions) or len(across) > len(down)):
        across, down = down, across
        cells = {(title, name): figure for (name, title), figure in cells.items()}
        key = group_key(down, predictions)
    is_counted = "asked" in across  # by the task itself
    counts = {title for title in across if _are_counts([cells.get((name, title), 0.0) for name in down])}
    rows = []
    for name in down:
        values = _values(name, key, scores, predictions)
        columns = "".join(_cell(cells.get((name, title)), values, whole=title in counts) for title in across)
        if not is_counted:
            columns += f'<td class="number">{len(values):,}</td>' if values else "<td></td>"
        rows.append(f"<tr><td>{escape(name)}</td>{columns}</tr>")
    heads = "".join(f'<th class="number">{escape(title)}</th>' for title in across)
    heads += "" if is_counted else '<th class="number">questions</th>'
    return f'<div class="wide" tabindex="0"><table><tr><td></td>{heads}</tr>{"".join(rows)}</table></div>'


def _are_counts(figures: Sequence[float]) -> bool:
    return max(figures, default=0.0) > 1 and all(figure % 1 == 0 for figure in figures)


def _values(name: str, key: str | None, scores: Scores, predictions: Sequence[Prediction]) -> list[float]:
    """The scores of the questions whose `meta[key]` is `name`."""
    own = (it.id for it in predictions if key and str(it.question.meta.get(key)) == name)
    return [scores.per_sample[id] for id in own if id in scores.per_sample]


def _cell(figure: float | None, values: Sequence[float], *, whole: bool) -> str:
    if figure is None:
        return "<td></td>"
    interval = _range(mean_interval(figure, values))
    told = f"{figure:,.0f}" if whole else _number(figure)
    return f'<td class="number">{told}{f"<small>{interval}</small>" if interval else ""}</td>'


def group_key(names: Collection[str], predictions: Sequence[Prediction]) -> str | None:
    """The key of the questions' `meta` whose values are most of `names`; None when there is none."""
    found: dict[str, set[str]] = {}
    for prediction in predictions:
        for key, value in prediction.question.meta.items():
            if isinstance(value, (str, int)) and str(value) in names:
                found.setdefault(key, set()).add(str(value))
    return max(found, key=lambda key: len(found[key]), default=None)


def _gallery(scores: Scores, predictions: Sequence[Prediction]) -> str:
    tables = (names for figures in scores.groups.values() for names in (figures, scores.groups))
    key = next((key for names in tables if (key := group_key(names, predictions))), "type")
    cards = chosen(predictions, scores.per_sample, key, scores.right_from)
    end = time.monotonic() + SECONDS_FOR_PICTURES
    articles = [draw_card(card, with_pictures=time.monotonic() < end) for card in cards]
    types = sorted({card.type for card in cards if card.type})
    options = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in types)
    select = f'<select id="type" aria-label="type"><option value="">every type</option>{options}</select>'
    buttons = "".join(
        f'<button type="button" data-show="{show}" aria-pressed="{str(show == "all").lower()}">{show}</button>'
        for show in ("all", "right", "wrong")
    )
    framed = any('<i class="box' in article for article in articles)
    legend = '<p class="legend"><i class="box said"></i>answer <i class="box truth"></i>truth</p>'
    return (
        f'<h2>Answers</h2><div class="filters">{buttons}{select if types else ""}'
        '<input id="search" type="search" placeholder="search in questions and answers" aria-label="search">'
        f'<output id="count">{len(cards)} of {len(cards)}</output></div>{legend if framed else ""}'
        f'<section class="samples">{"".join(articles)}</section>'
    )


def _settings(run: Run) -> str:
    settings = {"model": run.model, **run.settings, "shard": "{}/{}".format(*run.shard)}
    rows = "".join(
        f"<tr><td>{escape(str(key))}</td><td><code>{escape(json.dumps(value, ensure_ascii=False))}</code></td></tr>"
        for key, value in settings.items()
    )
    return f'<h2>Settings</h2><div class="wide"><table>{rows}</table></div>'


def _number(value: float) -> str:
    return f"{value:,.2f}" if abs(value) >= 2 or value == 0 else f"{value:.4f}"
