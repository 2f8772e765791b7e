"""Boxes in a picture: the frame that answers speak of, the ways models write them, and drawing them.

A box is (x1, y1, x2, y2), x to the right and y down. LLaVA 1.5 pads a picture to a square before it looks at it,
so its answers are fractions of that square, written with two decimals: `0.23, 0.33, 0.79, 0.78`. A checkpoint that cuts
the middle out of pictures instead is shown another square, and its answers are fractions of that: the frame is a box
itself, in pixels of the picture (`ImageProcessor.frame`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from paddle_llava.errors import LlavaError

Box = tuple[float, float, float, float]

_NUMBER = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)%?")
_COMMAS = {"", ",", ";", "，", "、"}
_CORNERS = {")(", "),(", ")，("}
_OPENINGS = ("[", "(", "<box>", "|>")
_STROKES = ("#e6194b", "#4363d8", "#3cb44b", "#f58231", "#911eb4", "#008080")


def to_padded_frame(box: Box, width: int, height: int) -> Box:
    """A box in pixels of a `width` x `height` picture as fractions of its square-padded frame.

    The picture stands where `ImageProcessor` puts it: in the middle, the odd pixel of padding after it.
    Raises `LlavaError` for an empty picture.
    """
    side, left, top = _square(width, height)
    x1, y1, x2, y2 = box
    return (x1 + left) / side, (y1 + top) / side, (x2 + left) / side, (y2 + top) / side


def from_padded_frame(box: Box, width: int, height: int) -> Box:
    """The way back from `to_padded_frame`: fractions of the padded square to pixels of the picture.

    A box that reaches into the padding has coordinates outside of the picture.
    """
    return in_picture(box, padded_frame(width, height))


def padded_frame(width: int, height: int) -> Box:
    """The square around a picture, in its pixels; what is outside of the picture is padding."""
    side, left, top = _square(width, height)
    return -left, -top, side - left, side - top


def in_picture(box: Box, frame: Box) -> Box:
    """A box of fractions of `frame` in the pixels that `frame` is in."""
    x1, y1, x2, y2 = box
    left, top, width, height = frame[0], frame[1], frame[2] - frame[0], frame[3] - frame[1]
    return left + x1 * width, top + y1 * height, left + x2 * width, top + y2 * height


def _square(width: int, height: int) -> tuple[int, int, int]:
    """Side of the padded square, and the picture's left and top in it."""
    if width < 1 or height < 1:
        raise LlavaError(f"a picture of {width}x{height} pixels has no boxes: it is empty")
    side = max(width, height)
    return side, (side - width) // 2, (side - height) // 2


def format_box(box: Box) -> str:
    """`0.23, 0.33, 0.79, 0.78`."""
    return ", ".join(f"{value:.2f}" for value in box)


def find_boxes(text: str) -> list[Box]:
    """The boxes that `text` names, as fractions, in their order.

    Known ways: four numbers `0.23, 0.33, 0.79, 0.78`, bare or in any brackets or tags; two corners
    `(0.23, 0.33), (0.79, 0.78)`; and, in brackets or tags only, percents `[23%, 33%, 79%, 78%]` and whole numbers in
    thousandths `<box>(230,330),(790,780)</box>`. Numbers beyond that (pixels) and boxes whose corners are swapped are
    not boxes; a list of numbers that is no multiple of four holds none.
    """
    found = []
    for opening, numbers in _number_lists(text):
        if len(numbers) % 4 == 0:
            bracketed = opening.endswith(_OPENINGS)
            quads = (numbers[start : start + 4] for start in range(0, len(numbers), 4))
            found += [box for quad in quads if (box := _as_box(quad, bracketed))]
    return found


def answer_boxes(text: str, width: int, height: int, frame: Box | None = None) -> list[Box]:
    """The boxes that an answer names, in pixels of the `width` x `height` picture that it is about.

    They are fractions of `frame`, by default of the padded square. What reaches out of the picture is cut off, and a
    box that is outside altogether is left out.
    """
    frame = frame or padded_frame(width, height)
    pixels = (in_picture(box, frame) for box in find_boxes(text))
    cut = ((max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)) for x1, y1, x2, y2 in pixels)
    return [box for box in cut if box[0] <= box[2] and box[1] <= box[3]]


def _number_lists(text: str) -> list[tuple[str, list[str]]]:
    """Runs of numbers with nothing but commas, spaces or a corner's brackets between, and what precedes each."""
    lists: list[tuple[str, list[str]]] = []
    end = 0
    for number in _NUMBER.finditer(text):
        between = "".join(text[end : number.start()].split())
        corners = between in _CORNERS and len(lists[-1][1]) % 4 == 2 if lists else False
        touching = number.start() == end  # 1.2.3 is no pair of numbers
        if lists and not touching and (between in _COMMAS or corners):
            lists[-1][1].append(number[0])
        else:
            lists.append((between[-8:], [number[0]]))
        end = number.end()
    return lists


def _as_box(quad: list[str], bracketed: bool) -> Box | None:
    in_percent = {value.endswith("%") for value in quad}
    whole = not any("." in value for value in quad)
    if len(in_percent) > 1 or ((whole or True in in_percent) and not bracketed):
        return None  # "between 2, 3, 4 and 5" is no box
    x1, y1, x2, y2 = (float(value.rstrip("%")) for value in quad)
    unit = 100 if True in in_percent else 1000 if whole and 1 < max(x1, y1, x2, y2) <= 1000 else 1
    x1, y1, x2, y2 = x1 / unit, y1 / unit, x2 / unit, y2 / unit
    return (x1, y1, x2, y2) if 0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1 else None


def box_iou(one: Box, other: Box) -> float:
    """Intersection over union, 0 to 1; 0 when both are empty."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    union = sum(areas) - shared
    return shared / union if union > 0 else 0.0


def draw_boxes(image: Image.Image, boxes: Sequence[Box], labels: Sequence[str] | None = None) -> Image.Image:
    """A copy of `image` in RGB with `boxes` (in its pixels) framed, and named by `labels` at their corners.

    What lies outside of the picture is cut off. Labels are written in Pillow's own font, which knows Latin
    letters only: a label with others is left out.
    """
    drawn = image.convert("RGB") if image.mode != "RGB" else image.copy()
    draw = ImageDraw.Draw(drawn)
    width, height = drawn.size
    thickness = max(2, round(max(drawn.size) / 160))
    font = ImageFont.load_default(max(11, round(max(drawn.size) / 28)))
    for number, box in enumerate(boxes):
        stroke = _STROKES[number % len(_STROKES)]
        x1, x2 = (round(min(max(x, 0), width)) for x in (box[0], box[2]))
        y1, y2 = (round(min(max(y, 0), height)) for y in (box[1], box[3]))
        draw.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=stroke, width=thickness)
        label = labels[number] if labels and number < len(labels) else ""
        if label and label.isascii():
            left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
            tall, wide = bottom - top + 2 * thickness, right - left + 2 * thickness
            x, y = max(0, min(x1, width - wide)), y1 - tall if y1 >= tall else y1
            draw.rectangle((x, y, x + wide, y + tall), fill=stroke)
            draw.text((x + thickness - left, y + thickness - top), label, fill="white", font=font)
    return drawn
