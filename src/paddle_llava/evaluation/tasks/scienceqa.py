"""ScienceQA-IMG (https://scienceqa.github.io): school questions with a picture, one of a few options each.

Files: `problems.json` and `pid_splits.json`, of which the split `test` is asked; pictures `5/image.png`, in the image
folder, or in `test` or `images/test` there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.metrics.choices import science_qa_choice
from paddle_llava.evaluation.prompts import LETTERS, multiple_choice
from paddle_llava.evaluation.records import Prediction, Question, Scores
from paddle_llava.evaluation.tasks.files import Data, as_object, get, read_object, texts, unique
from paddle_llava.evaluation.tasks.tables import mean, percent_by


def read(data: Data) -> list[Question]:
    """The test questions that have a picture. Raises `LlavaError`."""
    problems, splits = None, None
    for path in data.files(".json"):
        content = read_object(path)
        if isinstance(content.get("test"), list):
            splits = path, content
        else:
            problems = path, content
    if problems is None or splits is None:
        missing = "problems.json" if problems is None else "pid_splits.json"
        raise LlavaError(f"{data.paths[0]}: ScienceQA's {missing} is missing; give problems.json and pid_splits.json")
    path, content = problems
    questions = []
    for name in texts(splits[1]["test"], f"{splits[0]}: test", "its items"):
        where = f"{path}: problem {name}"
        record = as_object(content.get(name), where)
        if record.get("image") is None:
            continue
        options = texts(get(record, "choices", list, where), where, "choices")
        right = get(record, "answer", int, where)
        if not 0 <= right < len(options) <= len(LETTERS):
            raise LlavaError(f"{where}: answer {right} is none of its {len(options)} choices")
        picture = data.image(f"{name}/{get(record, 'image', str, where)}", path, "test", "images/test")
        meta: dict[str, Any] = {"options": list(options)}
        meta |= {key: record[key] for key in ("subject", "grade") if isinstance(record.get(key), str)}
        question = Question(name, _prompt(record, options, where), (picture,), (LETTERS[right],), meta)
        questions.append((where, question))
    return unique(questions)


def _prompt(record: dict[str, Any], options: Sequence[str], where: str) -> str:
    hint = get(record, "hint", str, where) if record.get("hint") is not None else ""
    prompt = multiple_choice(get(record, "question", str, where), options, f"Context: {hint}" if hint else "")
    return prompt.replace("  ", " ")  # as LLaVA's question file has it


def score(predictions: Sequence[Prediction]) -> Scores:
    """Share of right letters, in percent, also by subject and grade; a failed question counts as wrong."""
    each = {it.id: float(not it.error and _letter(it) == it.question.references[0]) for it in predictions}
    groups = {"Subject": percent_by(predictions, each, "subject"), "Grade": percent_by(predictions, each, "grade")}
    return Scores("accuracy", {"accuracy": 100 * mean(each.values())}, each, groups)


def _letter(prediction: Prediction) -> str | None:
    return science_qa_choice(prediction.answer, len(prediction.question.meta["options"]))
