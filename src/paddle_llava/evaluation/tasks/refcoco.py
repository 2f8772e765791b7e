"""RefCOCO, RefCOCO+ and RefCOCOg (https://github.com/lichengunc/refer): where is what a phrase describes?

Files, as refer publishes them: `refs(unc).p` (`refs(umd).p` for RefCOCOg) and `instances.json`; all splits but `train`
are asked. Or the common JSONL, one file a split (`refcoco_val.jsonl`): `image`, `sent`, `bbox` (x1, y1, x2, y2),
`width`, `height`. Pictures by the last part of their name, in the image folder or in `train2014` there.

LLaVA publishes no RefCOCO score; the prompt is that of the boxes in its training mixture.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.metrics.grounding import THRESHOLD, answer_iou, grounding_scores
from paddle_llava.evaluation.prompts import BOX
from paddle_llava.evaluation.records import Prediction, Question, Scores
from paddle_llava.evaluation.tasks.files import (
    Data,
    as_object,
    by_id,
    get,
    get_box,
    get_id,
    listed,
    read_object,
    read_records,
    unique,
)
from paddle_llava.processing.boxes import Box, format_box, to_padded_frame

MAX_PICKLE = 1 << 30
LONGEST_ANSWER = 64


class _Phrase(NamedTuple):
    where: str
    id: str
    split: str
    text: str
    image: str
    box: Box
    width: int
    height: int


def read(data: Data) -> list[Question]:
    """A question for each phrase. Raises `LlavaError`."""
    files = data.files(".jsonl", ".p", "instances.json")
    pickles = [path for path in files if path.suffix == ".p"]
    if len(pickles) > 1:
        raise LlavaError(f"{pickles[1]}: a second list of phrases; give refs(unc).p or another, and instances.json")
    instances = [path for path in files if path.suffix == ".json"]
    if bool(pickles) != bool(instances):
        have, need = ("refs(...).p", "instances.json") if pickles else ("instances.json", "refs(...).p")
        raise LlavaError(f"{(pickles or instances)[0]}: {have} needs {need} beside it; give both with --data")
    phrases = [(path, it) for path in files if path.suffix == ".jsonl" for it in _from_jsonl(path)]
    phrases += [(path, it) for path in pickles for it in _from_refer(path, instances[0])]
    questions = []
    for path, it in phrases:
        picture = data.image(os.path.basename(it.image), path, "train2014")
        meta = {"split": it.split, "phrase": it.text, "box": list(it.box), "width": it.width, "height": it.height}
        right = format_box(to_padded_frame(it.box, it.width, it.height))
        question = Question(it.id, BOX.format(it.text), (picture,), (right,), meta, LONGEST_ANSWER)
        questions.append((it.where, question))
    return unique(questions)


def _from_jsonl(path: Path) -> Iterator[_Phrase]:
    for number, (where, record) in enumerate(read_records(path), 1):
        width, height = get(record, "width", int, where), get(record, "height", int, where)
        image, text = get(record, "image", str, where), get(record, "sent", str, where)
        box = _checked(get_box(record, "bbox", where), width, height, where)
        yield _Phrase(where, f"{path.stem}/{number}", path.stem, text, image, box, width, height)


def _from_refer(path: Path, instances: Path) -> Iterator[_Phrase]:
    content = read_object(instances)
    images = by_id(content, "images", "id", instances)
    things = by_id(content, "annotations", "id", instances)
    for number, value in enumerate(_read_pickle(path), 1):
        where = f"{path}: record {number}"
        record = as_object(value, where)
        if record.get("split") == "train":
            continue
        thing_id, image_id = get_id(record, "ann_id", where), get_id(record, "image_id", where)
        if thing_id not in things or image_id not in images:
            raise LlavaError(f"{where}: {instances} has no annotation {thing_id} or no image {image_id}")
        (place, thing), (there, image) = things[thing_id], images[image_id]
        width, height = get(image, "width", int, there), get(image, "height", int, there)
        left, top, across, down = get_box(thing, "bbox", place)
        box = _checked((left, top, left + across, top + down), width, height, place)
        for at, sentence in listed(record, "sentences", where):
            split, text = get(record, "split", str, where), get(sentence, "sent", str, at)
            name = f"{split}/{get_id(sentence, 'sent_id', at)}"
            yield _Phrase(at, name, split, text, get(image, "file_name", str, there), box, width, height)


def _checked(box: Box, width: int, height: int, where: str) -> Box:
    if width < 1 or height < 1 or box[2] <= box[0] or box[3] <= box[1]:
        raise LlavaError(f"{where}: no box in a picture of {width}x{height} pixels: {', '.join(f'{x:g}' for x in box)}")
    return box


class _PlainData(pickle.Unpickler):
    """Lists, dictionaries, texts and numbers; whatever a pickle names beyond them is refused, not looked up."""

    def find_class(self, module: str, name: str) -> Any:
        raise LlavaError(f"it names {module[:40]}.{name[:40]}, which plain data has no need of")


def _read_pickle(path: Path) -> list[Any]:
    try:
        if path.stat().st_size > MAX_PICKLE:
            raise LlavaError(f"{path}: larger than {MAX_PICKLE >> 30} GiB")
        with path.open("rb") as file:
            content = _PlainData(io.BytesIO(file.read()), encoding="utf-8", errors="replace").load()
    except LlavaError as error:
        raise LlavaError(f"{path}: refused: {error}") from None
    except OSError as error:
        raise LlavaError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise LlavaError(f"{path}: not a pickle of plain data ({type(error).__name__})") from None
    if not isinstance(content, list):
        raise LlavaError(f"{path}: a list of phrases is expected, as refer publishes it")
    return content


def score(predictions: Sequence[Prediction]) -> Scores:
    """Share of boxes with an IoU of at least 0.5, and the mean IoU, in percent: of each split, and of all phrases.

    The first box of an answer counts, mapped back from the padded square, or from the `frame` in a question's `meta`,
    which is there for a model that is shown another. A failed question counts as IoU 0.
    """
    ious = {it.id: _iou(it) for it in predictions}
    splits = dict.fromkeys(it.question.meta["split"] for it in predictions)
    tables = {
        split: _percent([ious[it.id] for it in predictions if it.question.meta["split"] == split]) for split in splits
    }
    each = {name: float(iou >= THRESHOLD) for name, iou in ious.items()}
    notes = ("LLaVA publishes no RefCOCO score; the prompt is that of the boxes in its training mixture",)
    strata = {"mean_iou": [[(100 * iou, 1.0) for iou in ious.values()]]}
    return Scores("accuracy", _percent(list(ious.values())), each, tables, notes, strata)


def _iou(prediction: Prediction) -> float:
    meta = prediction.question.meta
    return answer_iou(prediction.answer, tuple(meta["box"]), meta["width"], meta["height"], meta.get("frame"))


def _percent(ious: Sequence[float]) -> dict[str, float]:
    return {name: 100 * value for name, value in grounding_scores(ious).items()}
