"""VQAv2 (https://visualqa.org): open questions about COCO's pictures, ten people's answers to each.

Files: `v2_OpenEnded_mscoco_val2014_questions.json` and `v2_mscoco_val2014_annotations.json`, told apart by what is in
them; pictures `COCO_val2014_000000262148.jpg`, in the image folder or in `val2014` there. The test splits' answers are
not public, so that they cannot be scored here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.metrics.vqa import normalise_textvqa_answer, vqa_accuracy
from paddle_llava.evaluation.prompts import short_answer
from paddle_llava.evaluation.records import Prediction, Question, Scores
from paddle_llava.evaluation.tasks.files import Data, as_object, by_id, get, get_id, listed, read_object, texts, unique
from paddle_llava.evaluation.tasks.tables import mean, percent_by


def read(data: Data) -> list[Question]:
    """The questions of one split. Raises `LlavaError`."""
    asked, answered = None, dict[str, tuple[str, dict[str, Any]]]()
    for path in data.files(".json"):
        content = read_object(path)
        if "questions" in content:
            if asked is not None:
                raise LlavaError(f"{path}: a second file of questions; give those of one split")
            asked = path, content
        elif "annotations" in content:
            if answered:
                raise LlavaError(f"{path}: a second file of annotations; give those of one split")
            answered = by_id(content, "annotations", "question_id", path)
        else:
            raise LlavaError(f"{path}: it holds neither questions nor annotations, as VQAv2's files do")
    if asked is None or not answered:
        missing = "questions" if asked is None else "annotations, without which nothing can be scored"
        raise LlavaError(f"{data.paths[0]}: VQAv2's file of {missing}, is missing; give both with --data")
    path, content = asked
    split = content.get("data_subtype", "val2014")
    questions = []
    for where, record in listed(content, "questions", path):
        name = get_id(record, "question_id", where)
        if name not in answered:
            raise LlavaError(f"{where}: question {name} has no annotation; are the two files of one split?")
        place, annotation = answered[name]
        answers = get(annotation, "answers", list, place)
        picture = f"COCO_{split}_{get(record, 'image_id', int, where):012}.jpg"
        question = Question(
            name,
            short_answer(get(record, "question", str, where)),
            (data.image(picture, path, str(split)),),
            texts((as_object(answer, place).get("answer") for answer in answers), place, "answers"),
            {"type": str(annotation.get("answer_type", "other")), "starts": str(annotation.get("question_type", ""))},
        )
        questions.append((where, question))
    return unique(questions)


def score(predictions: Sequence[Prediction]) -> Scores:
    """Accuracy against ten people, in percent, also for each type of answer; a failed question counts as wrong.

    As LLaVA does before it submits (`convert_vqav2_for_submission.py`), answers are normalised first: VQA's own rule
    takes them as they stand, capitals included, where all ten people agree.
    """
    each = {it.id: 0.0 if it.error else _accuracy(it) for it in predictions}
    groups = {"Answer type": percent_by(predictions, each, "type"), "Question": percent_by(predictions, each, "starts")}
    return Scores("accuracy", {"accuracy": 100 * mean(each.values())}, each, groups)


def _accuracy(prediction: Prediction) -> float:
    return vqa_accuracy(normalise_textvqa_answer(prediction.answer), prediction.question.references)
