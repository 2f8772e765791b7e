"""Two models on the same questions: which answers changed, and how sure their difference is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from paddle_llava.console import CONTROLS
from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.predictions import read_predictions
from paddle_llava.evaluation.significance import CONFIDENCE, Difference, mcnemar, paired_bootstrap
from paddle_llava.evaluation.tasks import load_task
from paddle_llava.json_file import read_json

RESULTS, PREDICTIONS = "results.json", "predictions.jsonl"
SHOWN = 20
_LONGEST = 60


@dataclass(frozen=True)
class Change:
    """A question whose score is not the same; the answers are None where only scores were given."""

    id: str
    score_a: float
    score_b: float
    prompt: str | None = None
    answer_a: str | None = None
    answer_b: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Of the questions that both answered: the means of their scores (0 to 1), `difference` being b - a.

    `better` and `worse` are numbers of questions. `test` says where `p` is from: McNemar's exact test when all scores
    are 0 or 1, else the paired bootstrap. `reworded` answers differ though their scores do not, `only_a` and `only_b`
    are numbers of questions that the other has not. `changes` are those of a score, the worse first.
    """

    task: str
    model_a: str
    model_b: str
    questions: int
    mean_a: float
    mean_b: float
    difference: Difference
    test: str
    p: float
    better: int
    worse: int
    reworded: int
    only_a: int
    only_b: int
    changes: tuple[Change, ...]

    @property
    def is_significant(self) -> bool:
        return self.p < 1 - CONFIDENCE


@dataclass(frozen=True)
class _Results:
    """A run's scores by id, and its questions' prompts and answers where its predictions are there."""

    task: str
    model: str
    scores: Mapping[str, float]
    answers: Mapping[str, tuple[str, str]]


def compare(a: Path, b: Path) -> Comparison:
    """Compare two `results.json` of `llava eval`, or two of its `predictions.jsonl` (or folders of either).

    Raises `LlavaError` when one cannot be read, they are of different tasks, or have no question in common.
    """
    one, other = _read(a), _read(b)
    if one.task != other.task:
        raise LlavaError(f"{a} is of the task {one.task} and {b} of {other.task}; give two of the same")
    both = [id for id in one.scores if id in other.scores]
    if not both:
        raise LlavaError(f"{a} and {b} have no question in common")
    for id in both:
        if id in one.answers and id in other.answers and one.answers[id][0] != other.answers[id][0]:
            raise LlavaError(f"question {id} is another one in {a} than in {b}: they are of different data")
    before, after = [one.scores[id] for id in both], [other.scores[id] for id in both]
    changes = [_change(id, one, other) for id in both if one.scores[id] != other.scores[id]]
    better = sum(change.score_b > change.score_a for change in changes)
    difference = paired_bootstrap(before, after)
    binary = {*before, *after} <= {0.0, 1.0}
    return Comparison(
        task=one.task,
        model_a=one.model,
        model_b=other.model,
        questions=len(both),
        mean_a=sum(before) / len(both),
        mean_b=sum(after) / len(both),
        difference=difference,
        test="McNemar" if binary else "paired bootstrap",
        p=mcnemar(len(changes) - better, better) if binary else difference.p,
        better=better,
        worse=len(changes) - better,
        reworded=sum(one.scores[id] == other.scores[id] and _is_reworded(id, one, other) for id in both),
        only_a=len(one.scores) - len(both),
        only_b=len(other.scores) - len(both),
        changes=tuple(sorted(changes, key=lambda it: it.score_b - it.score_a)),
    )


def _change(id: str, one: _Results, other: _Results) -> Change:
    scores = one.scores[id], other.scores[id]
    if id not in one.answers or id not in other.answers:
        return Change(id, *scores)
    (prompt, answer_a), (_, answer_b) = one.answers[id], other.answers[id]
    return Change(id, *scores, prompt, answer_a, answer_b)


def _is_reworded(id: str, one: _Results, other: _Results) -> bool:
    return id in one.answers and id in other.answers and one.answers[id] != other.answers[id]


def _read(path: Path) -> _Results:
    if path.is_dir():
        path = path / RESULTS
    if path.suffix == ".jsonl":
        run, predictions = read_predictions(path)
        scores = load_task(run.task).score(predictions)
        answers = {it.id: (it.question.prompt, it.answer) for it in predictions}
        return _Results(run.task, run.model, scores.per_sample, answers)
    value = read_json(path)
    scores_by_id = value.get("per_sample")
    names = value.get("task"), value.get("model")
    if not isinstance(scores_by_id, dict) or not all(isinstance(name, str) for name in names):
        raise LlavaError(f"{path}: not a results.json that `llava eval` wrote: task, model or per_sample is missing")
    for id, score in scores_by_id.items():
        if type(score) not in (int, float) or not math.isfinite(score):
            raise LlavaError(f"{path}: per_sample, question {id}: a number is expected, found {str(score)[:40]!r}")
    beside = path.with_name(PREDICTIONS)
    said = read_predictions(beside)[1] if beside.is_file() else []
    return _Results(str(names[0]), str(names[1]), scores_by_id, {it.id: (it.question.prompt, it.answer) for it in said})


def run_compare(a: Path, b: Path, *, as_json: bool = False) -> int:
    """Print the comparison, as a table or with `as_json` whole; returns the exit code 0. Raises `LlavaError`."""
    comparison = compare(a, b)
    if as_json:
        values = asdict(comparison) | {"significant": comparison.is_significant}
        print(json.dumps(values, indent=2, ensure_ascii=False))
    else:
        print(as_text(comparison))
    return 0


def as_text(it: Comparison) -> str:
    """The comparison to read, with at most 20 of the answers that changed, half of them worse."""
    difference = it.difference
    verdict = "a difference" if it.is_significant else "no difference that could not be chance"
    lines = [
        f"{it.task}, {it.questions:,} questions",
        f"  a  {it.model_a:40} {100 * it.mean_a:7.2f}",
        f"  b  {it.model_b:40} {100 * it.mean_b:7.2f}",
        f"  b - a {'':37} {100 * difference.mean:+7.2f}"
        f"   95% interval {100 * difference.low:+.2f} to {100 * difference.high:+.2f}",
        f"  {it.test}: p = {it.p:.2g}: {verdict} (at 5%)",
        f"  b is better on {it.better:,}, worse on {it.worse:,}; {it.reworded:,} more are worded otherwise",
    ]
    if it.only_a or it.only_b:
        lines.append(f"  not compared: {it.only_a:,} questions that only a has, {it.only_b:,} that only b has")
    worse = it.changes[: it.worse][: max(SHOWN // 2, SHOWN - it.better)]
    better = it.changes[it.worse :][::-1][: SHOWN - len(worse)]
    for title, changes in (("worse", worse), ("better", better)):
        lines += [f"  {title}:"] if changes else []
        lines += [f"    {_brief(each.id)}: {_told(each)}" for each in changes]
    return "\n".join(lines)


def _told(change: Change) -> str:
    scores = f"{change.score_a:.2f} -> {change.score_b:.2f}"
    if change.prompt is None or change.answer_a is None or change.answer_b is None:
        return scores
    asked, a, b = map(_brief, (change.prompt, change.answer_a, change.answer_b))
    return f"{scores}  {asked} | {a} -> {b}"


def _brief(text: str) -> str:
    text = CONTROLS.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
