"""Answers of yes or no, and POPE's figures of them (Li et al. 2023, and its published `evaluate.py`)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from paddle_llava.errors import LlavaError

_FIRST_WORD = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


def parse_yes_no(text: str) -> bool | None:
    """Whether an answer begins with yes or with no; None when with neither."""
    first = _FIRST_WORD.match(text)
    return None if first is None else first[1].lower() == "yes"


def pope_answer(text: str) -> bool:
    """POPE's rule: no when the first sentence holds the word `No`, `no` or `not`, and else yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def pope_scores(answers: Sequence[str], labels: Sequence[bool]) -> dict[str, float]:
    """`accuracy`, `precision`, `recall`, `f1` and `yes_share` of a model's words, 0 to 1, yes being the positive.

    A ratio of nothing is 0, where the reference fails. Raises `LlavaError` when there is nothing to score.
    """
    if not answers or len(answers) != len(labels):
        raise LlavaError(f"POPE: {len(answers)} answers for {len(labels)} labels; there must be one for each")
    said = [pope_answer(text) for text in answers]
    pairs = list(zip(said, labels, strict=True))
    hits = pairs.count((True, True))
    precision, recall = _ratio(hits, said.count(True)), _ratio(hits, list(labels).count(True))
    return {
        "accuracy": _ratio(hits + pairs.count((False, False)), len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_share": _ratio(said.count(True), len(said)),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
