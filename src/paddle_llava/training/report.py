"""`report.html`: a run on one page that needs nothing else, neither network nor script."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields
from html import escape
from pathlib import Path
from typing import Any

from paddle_llava import __version__
from paddle_llava.data.encoding import with_system
from paddle_llava.data.mixture import Mixture
from paddle_llava.data.pictures import local_source
from paddle_llava.data.records import Sample
from paddle_llava.errors import LlavaError
from paddle_llava.generation.sampling import SamplingParams
from paddle_llava.generation.session import ChatSession
from paddle_llava.llava import LlavaForConditionalGeneration
from paddle_llava.processing.conversation import Segment
from paddle_llava.processing.loading import load_image
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.templates import Template
from paddle_llava.training.chart import Series, line_chart, smoothed
from paddle_llava.training.checkpoint import TrainerState
from paddle_llava.training.config import TrainingConfig
from paddle_llava.training.log import duration, read_log
from paddle_llava.training.plan import Plan

FILE = "report.html"
PREDICTIONS = 6
ANSWER_TOKENS = 64
SECONDS_FOR_PREDICTIONS = 120
THUMBNAIL = 320
STYLE = Path(__file__).with_name("report.css")


@dataclass(frozen=True)
class Prediction:
    """The first exchange of a sample, what the model now says, and the pictures as JPEG."""

    record: str
    question: str
    reference: str
    answer: str
    pictures: tuple[bytes, ...]


def write_report(
    config: TrainingConfig,
    plan: Plan,
    state: TrainerState,
    total_steps: int,
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    samples: Mixture | None,
) -> Path:
    """Write `report.html` to the run's `output_dir`, with the model's answers on some of `samples`; gives its path."""
    output_dir = Path(config.output_dir).expanduser()
    shown = [] if samples is None else predict(model, processor, samples)
    page = render_report(config, plan, state, total_steps, read_log(output_dir), shown)
    path = output_dir / FILE
    part = path.with_suffix(".tmp")
    part.write_text(page, encoding="utf-8", errors="replace")  # half a surrogate pair, a folder named otherwise
    os.replace(part, path)
    return path


def predict(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, samples: Mixture, count: int = PREDICTIONS
) -> list[Prediction]:
    """Greedy answers to the first questions of up to `count` samples, fewer when they take long.

    A sample that cannot be used is left out.
    """
    was_training, end = model.training, time.monotonic() + SECONDS_FOR_PREDICTIONS
    model.eval()
    made: list[Prediction] = []
    for sample, template in _chosen(samples, count):
        if time.monotonic() > end:
            break
        question, reference = sample.messages[:2]
        pictures = [segment for segment in question.text if isinstance(segment, Segment) and segment.kind == "image"]
        sources = sample.images[: question.images + len(pictures)]
        try:
            images = [load_image(local_source(source)) for source in sources]
            session = ChatSession(
                model,
                processor,
                template=with_system(template, sample),
                params=SamplingParams(max_new_tokens=ANSWER_TOKENS, temperature=0.0),
                notice=lambda _: None,
            )
            text = _text(question.text)
            answer = "".join(session.ask(text, images or None))
            made.append(Prediction(sample.name, text, _text(reference.text), answer, tuple(map(_jpeg, images))))
        except LlavaError:
            continue
    if was_training:
        model.train()
    return made


def _chosen(samples: Mixture, count: int) -> list[tuple[Sample, Template]]:
    """Up to `count` samples from all over, those with pictures first."""
    looked_at = min(len(samples), 4 * count)
    found = []
    for number in range(looked_at):
        with suppress(LlavaError):
            found.append(samples[number * len(samples) // looked_at])
    with_pictures = [pair for pair in found if pair[0].images] or found
    spread = min(count, len(with_pictures))
    chosen = [with_pictures[number * len(with_pictures) // spread] for number in range(spread)]
    return (chosen + [pair for pair in found if not pair[0].images and pair not in chosen])[:count]


def _text(parts: str | Sequence[str | Segment]) -> str:
    if isinstance(parts, str):
        return parts
    return "".join(part for part in parts if isinstance(part, str)).strip()


def _jpeg(image: Any) -> bytes:
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80)
    return file.getvalue()


def render_report(
    config: TrainingConfig,
    plan: Plan,
    state: TrainerState,
    total_steps: int,
    log: Sequence[dict[str, Any]],
    predictions: Sequence[Prediction],
) -> str:
    """The page. What comes from data or model is escaped."""
    steps = [line for line in log if "loss" in line]
    evaluations = [(line["step"], line["eval_loss"]) for line in log if "eval_loss" in line]
    done = state.step >= total_steps
    status = "finished" if done else f"stopped after step {state.step:,} of {total_steps:,}"
    name = escape(config.model_name_or_path)
    title = f"{'LoRA' if config.lora else 'Training'} of {name}"
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head><body><main>",
            f'<header><h1>{title}</h1><p><span class="{"good" if done else "open"}">{status}</span> '
            f"{escape(time.strftime('%Y-%m-%d %H:%M'))} · paddle-llava {__version__} · "
            f"{escape(str(config.output_dir))}</p></header>",
            _tiles(steps, evaluations, state),
            '<section class="charts">',
            *_charts(steps, evaluations),
            "</section>",
            *_predictions(predictions),
            _parameters(plan),
            _settings(config),
            "</main></body></html>\n",
        ]
    )


def _tiles(steps: Sequence[dict[str, Any]], evaluations: Sequence[tuple[int, float]], state: TrainerState) -> str:
    seconds = sum(line.get("seconds", 0) for line in steps)
    tokens = sum(line.get("tokens_per_second", 0) * line.get("seconds", 0) for line in steps)
    useful = [line["useful"] for line in steps if "useful" in line]
    tiles = {"steps": f"{state.step:,}"}
    if losses := smoothed([(line["step"], line["loss"]) for line in steps if line["loss"] is not None]):
        tiles["loss at the end"] = f"{losses[-1][1]:.4f}"
    if evaluations:
        tiles["eval loss at the end"] = f"{evaluations[-1][1]:.4f}"
    if finite := [pair for pair in evaluations if math.isfinite(pair[1])]:
        best = min(finite, key=lambda pair: pair[1])
        tiles[f"best eval loss, step {best[0]:,}"] = f"{best[1]:.4f}"
    if seconds:
        tiles["time in steps"] = duration(seconds)
        tiles["tokens a second"] = f"{tokens / seconds:,.0f}"
    if useful:
        tiles["tokens that are not padding"] = f"{100 * sum(useful) / len(useful):.1f}%"
    peak = max((line.get("peak_memory_gib", 0) for line in steps), default=0)
    if peak:
        tiles["peak memory"] = f"{peak:.2f} GiB"
    tiles["skipped"] = f"{state.skipped:,}"
    cells = "".join(f"<div><dd>{escape(value)}</dd><dt>{escape(key)}</dt></div>" for key, value in tiles.items())
    return f'<dl class="tiles">{cells}</dl>'


def _charts(steps: Sequence[dict[str, Any]], evaluations: Sequence[tuple[int, float]]) -> Iterator[str]:
    def points(key: str) -> list[tuple[float, float]]:
        return [(line["step"], line[key]) for line in steps if isinstance(line.get(key), (int, float))]

    loss = [Series("each step", points("loss"), faint=True), Series("training loss", smoothed(points("loss")))]
    key = '<i style="background:var(--series-1)"></i>training, smoothed'
    if evaluations:
        loss.append(Series("eval loss", evaluations, color="--series-2", marks=True))
        key += ' <i style="background:var(--series-2)"></i>evaluation'
    yield _figure("Loss", loss, key)
    yield _figure("Learning rate", [Series("learning rate", points("learning_rate"))])
    yield _figure("Tokens a second", [Series("tokens a second", points("tokens_per_second"))], from_zero=True)
    norm = points("grad_norm")
    yield _figure(
        "Norm of the gradient", [Series("each step", norm, faint=True), Series("gradient norm", smoothed(norm))]
    )
    yield _figure("Peak memory, GiB", [Series("peak memory", points("peak_memory_gib"))], from_zero=True)


def _figure(title: str, series: Sequence[Series], key: str = "", *, from_zero: bool = False) -> str:
    legend = f'<span class="key">{key}</span>' if key else ""
    return f"<figure><figcaption>{title} {legend}</figcaption>{line_chart(title, series, from_zero=from_zero)}</figure>"


def _predictions(predictions: Sequence[Prediction]) -> Iterator[str]:
    if not predictions:
        return
    yield '<h2>What it says now</h2><section class="samples">'
    for each in predictions:
        pictures = "".join(
            f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">'
            for picture in each.pictures
        )
        same = "good" if each.answer.strip() == each.reference.strip() else "open"
        yield (
            f'<article><div class="pictures">{pictures}</div><p class="question">{escape(each.question)}</p>'
            f'<p class="{same}"><b>model</b>{escape(each.answer) or "<em>nothing</em>"}</p>'
            f"<p><b>reference</b>{escape(each.reference)}</p>"
            f'<p class="record">{escape(os.path.basename(each.record))}</p></article>'
        )
    yield "</section>"


def _parameters(plan: Plan) -> str:
    rows = "".join(
        f'<tr><td>{escape(part)}</td><td class="number">{in_all / 1e6:,.2f} M</td>'
        f'<td class="number">{learn / 1e6:,.2f} M</td>'
        f'<td class="bar"><span style="width:{100 * learn / max(in_all, 1):.1f}%"></span></td></tr>'
        for part, (learn, in_all) in plan.parameters.items()
    )
    return (
        '<h2>Parameters</h2><div class="wide"><table><tr><th>part</th><th class="number">in all</th>'
        f'<th class="number">learn</th><th>share</th></tr>{rows}</table></div>'
    )


def _settings(config: TrainingConfig) -> str:
    """Those that were set first, and the others on demand."""
    values = asdict(config)
    defaults = {
        f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(TrainingConfig)
    }
    chosen = [key for key in values if values[key] != defaults[key]]
    others = [key for key in values if key not in chosen]
    return (
        f'<h2>Settings</h2><div class="wide"><table>{_rows(values, chosen)}</table></div>'
        f'<details><summary>{len(others)} settings at their defaults</summary><div class="wide"><table>'
        f"{_rows(values, others)}</table></div></details>"
    )


def _rows(values: dict[str, Any], keys: Sequence[str]) -> str:
    return "".join(
        f"<tr><td>{escape(key)}</td><td><code>{escape(json.dumps(values[key], ensure_ascii=False))}</code></td></tr>"
        for key in keys
    )
