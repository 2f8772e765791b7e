"""TextVQA (https://textvqa.org): questions about words in pictures, ten people's answers to each.

Files: `TextVQA_0.5.1_val.json`, and for prompts with OCR tokens either `TextVQA_Rosetta_OCR_v0.2_val.json` or LLaVA's
question file `llava_textvqa_val_v051_ocr.jsonl`, whose prompts are then taken as they stand. Pictures
`003a8ae2ef43b901.jpg`, in the image folder or in `train_images` there.

LLaVA 1.5's published score is with OCR tokens; which way was taken stands in the result.
"""

from __future__ import annotations

from collections.abc import Sequence

from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.metrics.vqa import textvqa_accuracy
from paddle_llava.evaluation.prompts import short_answer
from paddle_llava.evaluation.records import Prediction, Question, Scores
from paddle_llava.evaluation.tasks.files import (
    Data,
    as_object,
    get,
    get_id,
    listed,
    read_object,
    read_records,
    texts,
    unique,
)
from paddle_llava.evaluation.tasks.tables import mean

OCR = "\nReference OCR token: "
WITH = "with OCR tokens in the prompt, as LLaVA 1.5's published score"
WITHOUT = "without OCR tokens in the prompt"


def read(data: Data) -> list[Question]:
    """The questions, with OCR tokens where a file gives them. Raises `LlavaError`."""
    annotations, prompts, tokens = [], dict[tuple[str, str], str](), dict[str, list[str]]()
    for path in data.files(".json", ".jsonl"):
        if path.suffix == ".jsonl":
            for where, record in read_records(path):
                prompt = get(record, "text", str, where)
                prompts[get_id(record, "question_id", where), prompt.split("\n")[0].lower()] = prompt
            continue
        for where, record in listed(read_object(path), "data", path):
            if "ocr_info" in record:
                found = (as_object(it, where).get("word") for it in get(record, "ocr_info", list, where))
                tokens[get(record, "image_id", str, where)] = list(texts(found, where, "words"))
            else:
                annotations.append((path, where, record))
    if not annotations:
        raise LlavaError(f"{data.paths[0]}: TextVQA's questions (TextVQA_0.5.1_val.json) are not there")
    questions = []
    for path, where, record in annotations:
        image, asked = get(record, "image_id", str, where), get(record, "question", str, where)
        prompt = short_answer(asked.capitalize())
        if tokens:
            prompt = short_answer(f"{asked.capitalize()}{OCR}{', '.join(tokens.get(image, []))}")
        if prompts:
            if (image, asked.lower()) not in prompts:
                raise LlavaError(f"{where}: the question file has no prompt for picture {image} with this question")
            prompt = prompts[image, asked.lower()]
        picture = data.image(f"{image}.jpg", path, "train_images")
        answers = texts(get(record, "answers", list, where), where, "answers")
        meta = {"ocr": OCR in prompt}
        question = Question(get_id(record, "question_id", where), prompt, (picture,), answers, meta)
        questions.append((where, question))
    return unique(questions)


def score(predictions: Sequence[Prediction]) -> Scores:
    """Accuracy against ten people, in percent; a failed question counts as wrong."""
    each = {it.id: 0.0 if it.error else textvqa_accuracy(it.answer, it.question.references) for it in predictions}
    with_tokens = any(it.question.meta.get("ocr") for it in predictions)
    note = WITH if with_tokens else WITHOUT
    return Scores("accuracy", {"accuracy": 100 * mean(each.values())}, each, notes=(note,))
