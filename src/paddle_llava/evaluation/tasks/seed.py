"""SEED-Bench (https://github.com/AILab-CVC/SEED-Bench), the questions about single pictures: one of four options each.

File: `SEED-Bench.json`; pictures by their `data_id`, in the image folder or in `SEED-Bench-image` there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddle_llava.evaluation.metrics.choices import seed_choice
from paddle_llava.evaluation.prompts import multiple_choice
from paddle_llava.evaluation.records import Prediction, Question, Scores
from paddle_llava.evaluation.tasks.files import Data, get, get_id, letter_place, listed, read_object, unique
from paddle_llava.evaluation.tasks.tables import mean, percent_by


def read(data: Data) -> list[Question]:
    """The questions about pictures; those about videos are left out. Raises `LlavaError`."""
    questions = []
    for path in data.files(".json"):
        content = read_object(path)
        types = {number: name for name, number in get(content, "question_type", dict, path).items()}
        for where, record in listed(content, "questions", path):
            if record.get("data_type") != "image":
                continue
            options = [get(record, f"choice_{letter}", str, where) for letter in "abcd"]
            answer = get(record, "answer", str, where)
            letter_place(answer, len(options), where)
            number = record.get("question_type_id")
            meta: dict[str, Any] = {"options": options, "type": types.get(number, str(number))}
            picture = data.image(get(record, "data_id", str, where), path, "SEED-Bench-image")
            prompt = multiple_choice(get(record, "question", str, where), options)
            question = Question(get_id(record, "question_id", where), prompt, (picture,), (answer,), meta)
            questions.append((where, question))
    return unique(questions)


def score(predictions: Sequence[Prediction]) -> Scores:
    """Share of right letters, in percent, also for each type of question; a failed question counts as wrong."""
    each = {it.id: float(seed_choice(it.answer) == it.question.references[0]) for it in predictions}
    return Scores(
        "accuracy", {"accuracy": 100 * mean(each.values())}, each, {"Type": percent_by(predictions, each, "type")}
    )
