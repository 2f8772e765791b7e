"""The gallery of an evaluation's report: which answers are shown, and a card of each with its pictures and boxes."""

from __future__ import annotations

import base64
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from paddle_llava.data.pictures import local_source
from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.metrics.grounding import answered_box
from paddle_llava.evaluation.records import Prediction, Question
from paddle_llava.processing.boxes import Box, box_iou, find_boxes, from_padded_frame
from paddle_llava.processing.loading import load_image

CARDS = 120
PICTURES_OF_A_CARD = 4
LONGEST_TEXT = 2000
THUMBNAIL = 320
HEIGHT = 210


@dataclass(frozen=True)
class Card:
    """An answer, its score from 0 to 1, its type, and whether that score counts as right."""

    prediction: Prediction
    score: float
    type: str
    is_right: bool


def chosen(
    predictions: Sequence[Prediction], scores: Mapping[str, float], key: str, right_from: float = 0.5
) -> list[Card]:
    """At most `CARDS` scored answers in their order: wrong and right by halves, and of each as many of every type.

    A type is the value of a question's `meta[key]`. The answers of a type are taken from all over.
    """
    cards = [
        Card(it, scores[it.id], str(it.question.meta.get(key, "")), scores[it.id] >= right_from)
        for it in predictions
        if it.id in scores
    ]
    wrong, right = ([card for card in cards if card.is_right is kind] for kind in (False, True))
    half = max(CARDS // 2, CARDS - len(right))
    shown = _spread(wrong, half)
    shown += _spread(right, CARDS - len(shown))
    places = {id(card): place for place, card in enumerate(cards)}
    return sorted(shown, key=lambda card: places[id(card)])


def _spread(cards: Sequence[Card], count: int) -> list[Card]:
    types: dict[str, list[Card]] = defaultdict(list)
    for card in cards:
        types[card.type].append(card)
    taken: list[Card] = []
    for left, several in zip(range(len(types), 0, -1), sorted(types.values(), key=len), strict=True):
        share = min(len(several), (count - len(taken)) // left)
        taken += [several[number * len(several) // share] for number in range(share)]
    return taken


def draw_card(card: Card, *, with_pictures: bool) -> str:
    """The card as HTML, everything in it escaped; a picture that cannot be read is told in its place."""
    prediction, question = card.prediction, card.prediction.question
    pictures = [_picture(prediction, source) for source in question.images[:PICTURES_OF_A_CARD] if with_pictures]
    answer = _text(prediction.answer) or "<em>nothing</em>"
    if prediction.error:
        answer = f"<em>no answer: {_text(prediction.error)}</em>"
    kind = "right" if card.is_right else "wrong"
    about = " · ".join(escape(part[:200]) for part in (question.id, card.type) if part)
    return (
        f'<article data-answer="{kind}" data-type="{escape(card.type)}"><div class="pictures">{"".join(pictures)}</div>'
        f'<p class="question">{_text(question.prompt)}</p>'
        f'<p class="{"good" if card.is_right else "bad"}"><b>model · {card.score:.2f}</b>{answer}</p>'
        f'<p><b>reference</b>{_references(question)}</p><p class="record">{about}</p></article>'
    )


def _references(question: Question) -> str:
    counts = Counter(question.references)
    told = [each if count == 1 else f"{each} ×{count}" for each, count in counts.most_common()]
    return _text(" · ".join(told)) or "<em>none</em>"


def _text(text: str) -> str:
    return escape(text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "…")


def _picture(prediction: Prediction, source: str) -> str:
    try:
        image = load_image(local_source(source))
    except LlavaError as error:
        return f'<em class="empty">{_text(str(error))}</em>'
    said, truth = _boxes(prediction, image) if source == prediction.question.images[0] else (None, None)
    drawn = f'<img alt="" loading="lazy" src="data:image/jpeg;base64,{_thumbnail(image)}">'
    for kind, box in (("truth", truth), ("said", said)):
        drawn += _frame(kind, box, image) if box else ""
    if said and truth:
        left, top = _percent(said, image)[:2]
        above = ";transform:translateY(-100%)" if top > 12 else ""
        place = f"left:{min(left, 72):.2f}%;top:{min(top, 88):.2f}%{above}"
        drawn += f'<span class="iou" style="{place}">IoU {box_iou(said, truth):.2f}</span>'
    width = round(HEIGHT * min(max(image.width / image.height, 0.2), 5))
    return f'<span class="shot" style="width:{width}px">{drawn}</span>'


def _boxes(prediction: Prediction, image: Image.Image) -> tuple[Box | None, Box | None]:
    """The boxes of the answer and of the truth in the picture's pixels, when the truth is a box."""
    question = prediction.question
    truth = question.meta.get("box")
    if isinstance(truth, (list, tuple)) and len(truth) == 4:
        true_box: Box | None = (float(truth[0]), float(truth[1]), float(truth[2]), float(truth[3]))
    else:
        found = find_boxes(question.references[0]) if len(question.references) == 1 else []
        true_box = from_padded_frame(found[0], *image.size) if found else None
    frame = question.meta.get("frame")
    return (answered_box(prediction.answer, *image.size, frame) if true_box else None), true_box


def _frame(kind: str, box: Box, image: Image.Image) -> str:
    left, top, right, bottom = _percent(box, image)
    place = f"left:{left:.2f}%;top:{top:.2f}%;width:{right - left:.2f}%;height:{bottom - top:.2f}%"
    return f'<i class="box {kind}" style="{place}"></i>'


def _percent(box: Box, image: Image.Image) -> tuple[float, float, float, float]:
    """A box cut to the picture, in percent of its width and height."""
    x1, x2 = (100 * min(max(x / image.width, 0.0), 1.0) for x in (box[0], box[2]))
    y1, y2 = (100 * min(max(y / image.height, 0.0), 1.0) for y in (box[1], box[3]))
    return x1, y1, x2, y2


def _thumbnail(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=75, optimize=True)
    return base64.b64encode(file.getvalue()).decode()
