"""What passes between a task, a run, a report and a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paddle_llava.processing.conversation import Message

Stratum = Sequence[tuple[float, float]]
"""Of each of some questions (or pictures) what it adds above and below a fraction's line: together its two sums."""


@dataclass(frozen=True)
class Question:
    """One thing to ask a model.

    `prompt` is the user's text as the benchmark's published prompt has it, without any placeholder of a picture;
    `images` are paths or URLs in order and may be empty; `references` are the right answers as published. `meta` holds
    what scoring and grouping need beyond that and can be written as JSON: `{"type": "yes/no"}`, `{"options": [...]}`,
    `{"box": [x1, y1, x2, y2]}` in pixels of the picture.

    `max_new_tokens` bounds the answer. `history` are exchanges (question, answer) that went before, the pictures
    belonging to the first of all questions, and `system` replaces the template's system text.
    `messages`, if any, are asked instead of history and prompt, with the pictures where they place them.
    """

    id: str
    prompt: str
    images: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    max_new_tokens: int = 128
    history: tuple[tuple[str, str], ...] = ()
    system: str | None = None
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """A question with a model's answer: a line of `predictions.jsonl`.

    It carries the whole question, so that scoring again, reports and comparisons need no dataset. `error` says in one
    line why there is no answer (a picture that cannot be read); `answer` is then empty.
    """

    question: Question
    answer: str
    error: str | None = None

    @property
    def id(self) -> str:
        return self.question.id


@dataclass(frozen=True)
class Scores:
    """What a task makes of predictions.

    `figures` are the benchmark's numbers as they are published (percent where it publishes percent), `headline` the key
    in them that stands for the whole. `per_sample` gives each question's id 0 to 1, for bootstrap intervals and
    comparisons. `groups` are tables: title -> row -> figure. `notes` are lines to print with the result.

    `strata` tell where a figure that is not the mean of `per_sample` is from, for its interval: it is the sum of its
    strata's fractions, and that of nothing is 0. `right_from` is the score of a question that counts as right in the
    report. `published_as` is the name of the published score where that of the task is of other questions.
    """

    headline: str
    figures: dict[str, float]
    per_sample: dict[str, float]
    groups: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    strata: Mapping[str, Sequence[Stratum]] = field(default_factory=dict)
    right_from: float = 0.5
    published_as: str | None = None
