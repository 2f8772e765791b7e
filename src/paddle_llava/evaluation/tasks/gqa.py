"""GQA (https://cs.stanford.edu/people/dorarad/gqa): questions about scenes, one right answer each.

File: `testdev_balanced_questions.json` (or another split's); pictures `n161313.jpg`, in the image folder or in
`images` there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddle_llava.evaluation.prompts import short_answer
from paddle_llava.evaluation.records import Prediction, Question, Scores
from paddle_llava.evaluation.tasks.files import Data, as_object, get, read_object, unique
from paddle_llava.evaluation.tasks.tables import mean, percent_by

TYPES = {"structural": "Structural type", "semantic": "Semantic type", "kind": "Kind"}


def read(data: Data) -> list[Question]:
    """The questions of the files, in their order. Raises `LlavaError`."""
    questions = []
    for path in data.files("questions.json"):
        for name, value in read_object(path).items():
            where = f"{path}: question {name}"
            record = as_object(value, where)
            types = as_object(record.get("types", {}), where)
            meta: dict[str, Any] = {key: types[key] for key in ("structural", "semantic") if key in types}
            answer = get(record, "answer", str, where)
            if "structural" in meta:
                meta["kind"] = "binary" if meta["structural"] in ("verify", "logical") else "open"
            picture = f"{get(record, 'imageId', str, where)}.jpg"
            prompt = short_answer(get(record, "question", str, where))
            question = Question(name, prompt, (data.image(picture, path, "images"),), (answer,), meta)
            questions.append((where, question))
    return unique(questions)


def score(predictions: Sequence[Prediction]) -> Scores:
    """Share of answers that are the right one, in percent, also for each type of question.

    As in LLaVA's `convert_gqa_for_eval.py`, final full stops and case are dropped before GQA's own exact comparison. A
    failed question counts as wrong.
    """
    each = {it.id: float(not it.error and _plain(it.answer) == it.question.references[0]) for it in predictions}
    groups = {title: percent_by(predictions, each, key) for key, title in TYPES.items()}
    return Scores("accuracy", {"accuracy": 100 * mean(each.values())}, each, groups)


def _plain(answer: str) -> str:
    return answer.rstrip(".").lower()
