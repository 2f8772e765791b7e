"""MME's figures (Fu et al. 2023, and its published `eval_tool/calculation.py`).

Each picture of a subtask has two questions, one for yes and one for no. A subtask's score is its accuracy (`acc`) and
the share of pictures with both right (`acc_plus`) in percent, added: at most 200.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from paddle_llava.errors import LlavaError

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


@dataclass(frozen=True)
class MmeAnswer:
    """A model's words on one of a picture's two questions; `label` is whether yes is right."""

    subtask: str
    image: str
    text: str
    label: bool


@dataclass(frozen=True)
class MmeScore:
    """A subtask's `acc` and `acc_plus`, 0 to 1, and how many answers were neither yes nor no."""

    acc: float
    acc_plus: float
    neither: int

    @property
    def score(self) -> float:
        return 100 * (self.acc + self.acc_plus)


def parse_mme_answer(text: str) -> bool | None:
    """MME's rule: `yes`, or else `no`, within the first four characters; None when there is neither."""
    start = text.lower()[:4]
    return True if "yes" in start else False if "no" in start else None


def mme_scores(answers: Iterable[MmeAnswer]) -> dict[str, MmeScore]:
    """Each subtask's score, in the order in which they come.

    Raises `LlavaError` when a picture of a subtask has not exactly two questions.
    """
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    neither: dict[str, int] = defaultdict(int)
    for answer in answers:
        said = parse_mme_answer(answer.text)
        right[answer.subtask][answer.image].append(said is answer.label)
        neither[answer.subtask] += said is None
    scores = {}
    for subtask, pictures in right.items():
        for image, pair in pictures.items():
            if len(pair) != 2:
                raise LlavaError(f"MME {subtask}: {image} has {len(pair)} of its two questions: acc+ needs both")
        count = len(pictures)
        acc = sum(map(sum, pictures.values())) / (2 * count)
        scores[subtask] = MmeScore(acc, sum(map(all, pictures.values())) / count, neither[subtask])
    return scores


def mme_totals(scores: dict[str, MmeScore]) -> dict[str, float]:
    """`perception` (at most 2000) and `cognition` (at most 800): the sums over their subtasks in `scores`."""
    parts = {"perception": PERCEPTION, "cognition": COGNITION}
    return {name: sum(scores[key].score for key in keys if key in scores) for name, keys in parts.items()}
