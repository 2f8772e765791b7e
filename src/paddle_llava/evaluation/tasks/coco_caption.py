"""COCO captions (https://cocodataset.org): a sentence for a picture, about five people's to compare with.

File: `captions_val2014.json` (or another split's), or Karpathy's `dataset_coco.json`, of which the split `test` is
asked. Pictures in the image folder, or in `val2014` or `val2017` there.

LLaVA publishes no COCO score; the prompt is that of the captions in its training mixture.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from paddle_llava.console import note
from paddle_llava.evaluation.metrics.captions import caption_scores
from paddle_llava.evaluation.metrics.ptb import java_tokenizer
from paddle_llava.evaluation.prompts import CAPTION
from paddle_llava.evaluation.records import Prediction, Question, Scores
from paddle_llava.evaluation.tasks.files import Data, as_object, get, get_id, listed, read_object, texts, unique

MOST_CIDER = 10.0
GOOD_CIDER = 1.0
MEANS = ("ROUGE-L", "CIDEr")


def read(data: Data) -> list[Question]:
    """A question for each picture that has captions. Raises `LlavaError`."""
    questions = []
    for path in data.files(".json"):
        content = read_object(path)
        records = _coco(content, path) if "annotations" in content else _karpathy(content, path)
        for where, name, file, captions in records:
            picture = data.image(file, path, "val2014", "val2017")
            questions.append((where, Question(name, CAPTION, (picture,), captions)))
    return unique(questions)


Record = tuple[str, str, str, tuple[str, ...]]  # its name for a person, id, file of the picture, captions


def _coco(content: dict[str, Any], path: Path) -> Iterator[Record]:
    captions: dict[str, list[str]] = defaultdict(list)
    for where, record in listed(content, "annotations", path):
        captions[get_id(record, "image_id", where)].append(get(record, "caption", str, where))
    for where, record in listed(content, "images", path):
        name = get_id(record, "id", where)
        if name in captions:
            yield where, name, get(record, "file_name", str, where), tuple(captions[name])


def _karpathy(content: dict[str, Any], path: Path) -> Iterator[Record]:
    for where, record in listed(content, "images", path):
        if record.get("split") == "test":
            said = (as_object(it, where).get("raw") for it in get(record, "sentences", list, where))
            captions = texts(said, where, "sentences")
            yield where, get_id(record, "cocoid", where), get(record, "filename", str, where), captions


def score(predictions: Sequence[Prediction]) -> Scores:
    """CIDEr, BLEU-1 to 4, ROUGE-L and, where its Java is, METEOR: times 100, as they are published.

    Weights of CIDEr come from the captions of the very pictures that were asked about. A failed question counts as an
    empty caption. Each picture's score is its CIDEr as a share of the greatest, 10; from a CIDEr of 1 on it counts as
    right.
    """
    if java_tokenizer():
        note("the captions are scored by the official Java programs, which takes a while")
    scores = caption_scores(
        {it.id: it.answer for it in predictions}, {it.id: list(it.question.references) for it in predictions}
    )
    each = {name: min(values["CIDEr"] / MOST_CIDER, 1.0) for name, values in scores.per_image.items()}
    notes = ["LLaVA publishes no COCO score; the prompt is that of the captions in its training mixture"]
    if scores.tokenizer != "java":
        notes.append("words by this package's tokenizer: without Java there is neither Stanford's nor METEOR")
    strata = {name: [[(100 * values[name], 1.0) for values in scores.per_image.values()]] for name in MEANS}
    figures = {name: 100 * value for name, value in scores.corpus.items()}
    return Scores("CIDEr", figures, each, notes=tuple(notes), strata=strata, right_from=GOOD_CIDER / MOST_CIDER)
