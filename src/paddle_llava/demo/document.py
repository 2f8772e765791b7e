"""The picture of the first dialogue: a red bus close by, a house, a dog and a cloud."""

from __future__ import annotations

from random import Random

from paddle_llava.demo.backdrop import Ground
from paddle_llava.demo.composition import Placed
from paddle_llava.demo.scenes import Scene, paint
from paddle_llava.processing.boxes import Box, from_padded_frame

BUS_BOX: Box = (0.23, 0.33, 0.79, 0.78)
_ASPECT = 4 / 3
# kind, colour, box in the square-padded frame, seed of the variant, flipped
_THINGS: tuple[tuple[str, str, Box, int, bool], ...] = (
    ("cloud", "white", (0.274, 0.148, 0.482, 0.267), 5, False),
    ("house", "white", (0.025, 0.188, 0.195, 0.545), 5, False),
    ("bus", "red", BUS_BOX, 7, True),
    ("dog", "black", (0.028, 0.751, 0.218, 0.891), 3, True),
)


def document_scene(size: tuple[int, int] = (448, 336)) -> Scene:
    """The scene at `size` (width, height), of 4:3. The bus is found at 0.23, 0.33, 0.79, 0.78 of the padded frame."""
    ground = Ground("street", "day", horizon=0.41, middle=0.50, near=0.90)
    things = [Placed(kind, colour, _in_picture(box), seed, flipped) for kind, colour, box, seed, flipped in _THINGS]
    return paint(ground, things, size, "train", Random(2))


def _in_picture(box: Box) -> Box:
    """Fractions of the padded square to fractions of the picture."""
    x1, y1, x2, y2 = from_padded_frame(box, 4000, round(4000 / _ASPECT))
    return x1 / 4000, y1 / 4000 * _ASPECT, x2 / 4000, y2 / 4000 * _ASPECT
