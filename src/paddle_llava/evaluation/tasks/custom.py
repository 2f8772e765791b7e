"""Your own data: a training file, every answer in it a reference.

Each question is asked after the ones before it with their right answers, as the model was trained. The forms of a
record are those of training (`paddle_llava.data.forms`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from paddle_llava.data.records import RecordFile, Sample
from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.metrics.captions import rouge_l
from paddle_llava.evaluation.metrics.grounding import THRESHOLD
from paddle_llava.evaluation.metrics.vqa import normalise_answer
from paddle_llava.evaluation.records import Prediction, Question, Scores
from paddle_llava.evaluation.tasks.files import Data
from paddle_llava.evaluation.tasks.tables import mean, percent_by
from paddle_llava.processing.boxes import box_iou, find_boxes
from paddle_llava.processing.conversation import IMAGE, Message

LONGEST_ANSWER = 512
_WORDS = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")
_NUMBER_OR_TAG = re.compile(r"\d[\d.]*%?|<[^<>]*>|<?\|[^|]*\|>?")
_CHINESE_SIGNS = str.maketrans("，。！？；：、（）“”‘’", ",.!?;:,()\"\"''")


def read(data: Data) -> list[Question]:
    """Every question of every record; an id is `file/record/turn`. Raises `LlavaError`."""
    files = [RecordFile(path, image_folder=data.image_folder) for path in data.files(".json", ".jsonl")]
    names = [file.path.stem for file in files]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise LlavaError(f"{twice}: two files of that name; rename one, for its name begins its questions' ids")
    return [question for file in files for sample in file for question in _questions(sample, file.path.stem)]


def _questions(sample: Sample, name: str) -> Iterator[Question]:
    history: list[tuple[str, str]] = []
    asked = ""
    for number, message in enumerate(sample.messages):
        if message.role == "user":
            asked = _text(message, 0 if number else len(sample.images), sample)
            continue
        said = str(message.text)
        yield Question(
            f"{name}/{sample.number}/{number // 2 + 1}",
            asked,
            sample.images,
            (said,),
            {"type": "box" if find_boxes(said) else "text"},
            LONGEST_ANSWER,
            tuple(history),
            sample.system,
        )
        history.append((asked, said))


def _text(message: Message, images: int, sample: Sample) -> str:
    """What a user says, its pictures taken off from before it."""
    parts = [message.text] if isinstance(message.text, str) else list(message.text)
    for _ in range(images):
        if parts[:1] == [IMAGE]:
            del parts[0]
        if parts[:1] == ["\n"]:
            del parts[0]
    if any(not isinstance(part, str) for part in parts):
        raise LlavaError(f"{sample.name}: pictures must come before the first question to be evaluated, each on a line")
    return "".join(map(str, parts))


def score(predictions: Sequence[Prediction]) -> Scores:
    """`exact`, the share of answers that are the reference, and `rouge_l`, how much of the words they share; percent.

    Case, punctuation (the Chinese too) and articles are dropped before comparing. Where the reference names boxes, a
    right answer names as many, each with an IoU of at least 0.5 to that in its place, and the same words beside them,
    if there are any. A failed question counts as an empty answer.
    """
    each = {it.id: float(_is_right(it.answer, it.question.references[0])) for it in predictions}
    shared = rouge_l(
        [_words(it.answer) for it in predictions], [[_words(it.question.references[0])] for it in predictions]
    )
    figures = {"exact": 100 * mean(each.values()), "rouge_l": 100 * mean(shared)}
    groups = {"Reference": percent_by(predictions, each, "type")}
    return Scores("exact", figures, each, groups, strata={"rouge_l": [[(100 * value, 1.0) for value in shared]]})


def _is_right(answer: str, reference: str) -> bool:
    found, truth = find_boxes(answer), find_boxes(reference)
    if not truth:
        return _plain(answer) == _plain(reference)
    if len(found) != len(truth) or any(box_iou(*pair) < THRESHOLD for pair in zip(found, truth, strict=True)):
        return False
    words = _beside_boxes(reference)
    return not words or _beside_boxes(answer) == words


def _beside_boxes(text: str) -> str:
    return _plain(_NUMBER_OR_TAG.sub(" ", text))


def _plain(text: str) -> str:
    return normalise_answer(text.translate(_CHINESE_SIGNS))


def _words(text: str) -> str:
    return " ".join(_WORDS.findall(text.lower()))
