"""A whole evaluation: questions read, asked with their answers kept as they come, scored, reported."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from operator import attrgetter
from pathlib import Path
from typing import Any

from paddle_llava import __version__
from paddle_llava.console import importing_paddle, note
from paddle_llava.data.records import ADDRESS
from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.answering import Answerer
from paddle_llava.evaluation.predictions import PredictionLog, Run
from paddle_llava.evaluation.published import REMARKS, published_score
from paddle_llava.evaluation.records import Prediction, Question, Scores
from paddle_llava.evaluation.report import write_report
from paddle_llava.evaluation.significance import figure_intervals
from paddle_llava.evaluation.tasks import TASKS, load_task
from paddle_llava.evaluation.tasks.files import Data
from paddle_llava.json_file import write_json
from paddle_llava.processing.images import ImageProcessor

PREDICTIONS, RESULTS, REPORT = "predictions.jsonl", "results.json", "report.html"

Progress = Callable[[int, int], object]


def read_questions(
    task: str, data: Data, *, limit: int | None = None, shard: tuple[int, int] = (1, 1)
) -> list[Question]:
    """The first `limit` questions of a task, or of these every n-th from the i-th on (`shard` (i, n)).

    Raises `LlavaError` for what cannot be read, when nothing is left to ask, and when no picture at all is there: then
    the image folder is wrong. A part of them may be missing; that many questions will fail, of which a note is made.
    """
    if task != "street" and not data.paths:
        raise LlavaError(f"--data is missing: {TASKS[task].title} needs {TASKS[task].data}")
    with importing_paddle():  # which the street task does
        module = load_task(task)
    questions = module.read(data)[:limit]
    if not questions:
        raise LlavaError(f"{data.paths[0] if data.paths else '--data'}: no question for {TASKS[task].title} is there")
    number, of = shard
    questions = questions[number - 1 :: of]
    if not questions:
        raise LlavaError(f"--shard {number}/{of}: there are fewer questions than shards")
    pictures = {image: question.id for question in questions for image in question.images}
    missing = [image for image in pictures if not ADDRESS.match(image) and not os.path.isfile(image)]
    if missing and len(missing) == len(pictures):
        raise LlavaError(
            f"{missing[0]}: no such file (question {pictures[missing[0]]}), and no other picture is there either; give "
            "the folder that they are in with --image-folder"
        )
    if missing:
        note(f"{len(missing)} of {len(pictures)} pictures are missing, the first is {missing[0]}: questions will fail")
    return questions


def in_its_frame(questions: Sequence[Question], images: ImageProcessor) -> list[Question]:
    """The questions for a box to a model whose `images` are not padded, which answers in another `frame`."""
    if images.mode not in ("crop", "resize"):
        return list(questions)
    frames = [
        {"frame": list(images.frame(it.meta["width"], it.meta["height"]))} if it.meta.keys() >= {"box", "width"} else {}
        for it in questions
    ]
    return [replace(it, meta=it.meta | frame) for it, frame in zip(questions, frames, strict=True)]


def ask(
    answerer: Answerer, questions: Sequence[Question], log: PredictionLog, progress: Progress | None = None
) -> list[Prediction]:
    """A prediction for each question, in their order; those that `log` holds are not asked again, unless they failed.

    `progress` is told how many of how many are done. Raises `LlavaError` when `log` was written from other questions.
    """
    left = []
    for question in questions:
        before = log.done.get(question.id)
        if before is None or before.error:
            left.append(question)
        elif not _same(before.question, question):
            raise LlavaError(f"{log.path}: question {question.id} was another one then; remove the file to start anew")
    done = len(questions) - len(left)
    if done:
        note(f"{done:,} of {len(questions):,} questions are answered already in {log.path}")
    if progress:
        progress(done, len(questions))
    for predictions in answerer.answer(left):
        log.write(predictions)
        done += len(predictions)
        if progress:
            progress(done, len(questions))
    return [log.done[question.id] for question in questions]


def _same(one: Question, other: Question) -> bool:
    asked = attrgetter("prompt", "images", "references", "history", "system")
    return bool(asked(one) == asked(other))


def finish(run: Run, predictions: Sequence[Prediction], folder: Path) -> Scores:
    """Score predictions, and write `results.json` and `report.html` to `folder`. Raises `LlavaError`."""
    scores = load_task(run.task).score(predictions)
    write_json(folder / RESULTS, results(run, predictions, scores))
    write_report(folder / REPORT, run, scores, predictions)
    return scores


def results(run: Run, predictions: Sequence[Prediction], scores: Scores) -> dict[str, Any]:
    """What `results.json` holds."""
    failed = [prediction for prediction in predictions if prediction.error]
    published = published_score(scores.published_as or run.task, run.model)
    return {
        "task": run.task,
        "model": run.model,
        "headline": {"name": scores.headline, "value": scores.figures.get(scores.headline)},
        "figures": scores.figures,
        "intervals": figure_intervals(scores),
        "groups": scores.groups,
        "notes": list(scores.notes),
        "published": published and {"model": published[0], "value": published[1], "remark": REMARKS.get(run.task, "")},
        "questions": len(predictions),
        "failed": {"count": len(failed), "first": [f"{it.id}: {it.error}" for it in failed[:10]]},
        "run": asdict(run),
        "versions": versions(),
        "per_sample": scores.per_sample,
    }


def versions() -> dict[str, str]:
    """Of what scores may depend on."""
    found = {"paddle_llava": __version__, "python": platform.python_version()}
    for name in ("paddlepaddle", "paddlepaddle-gpu", "openvino", "numpy", "Pillow", "tokenizers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
