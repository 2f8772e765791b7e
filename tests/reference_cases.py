"""What is asked of `transformers` and of this package alike; nothing here needs either."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

import paddle_llava

FIXTURES = Path(__file__).parent / "fixtures"
CHECKPOINTS = ("v1_5", "v1_6")
PHOTOS = Path(paddle_llava.__file__).parent / "demo" / "photos"

TILE = 56
PATCH = 14
PINPOINTS = ((56, 112), (112, 56), (112, 112), (168, 56), (56, 168))
TOLERANCE = 2e-4  # of float32 logits

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
ANSWER_TOKENS = 32
# Three turns of a question, with a photograph or without.
CONVERSATIONS: dict[str, list[tuple[str, str | None]]] = {
    "china": [
        ("What is in the picture?", "china.jpg"),
        ("Which colour is the sky?", None),
        ("Is anybody there?", None),
    ],
    "flower": [
        ("Describe this picture.", "flower.jpg"),
        ("Where are the leaves?", None),
        ("Say it in one word.", None),
    ],
    "both": [
        ("What is in the picture?", "china.jpg"),
        ("And what is in this one?", "flower.jpg"),
        ("Which is the older picture?", None),
    ],
}


@dataclass(frozen=True)
class Case:
    """Prompts, and the (height, width) of the pictures that they show, in reading order."""

    prompts: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...] = ()

    @property
    def pictures(self) -> list[Image.Image]:
        return [picture(*size, phase=index) for index, size in enumerate(self.sizes)]


ONE = "USER: <image>\nDescribe this picture. ASSISTANT:"
TWO = "USER: <image>\n<image>\nWhich of the two is larger? ASSISTANT:"
NONE = "USER: Who is there? ASSISTANT:"
ODD_SIZES = ((55, 176), (176, 55), (336, 336), (640, 480), (1920, 1080), (100, 1))
CASES = {
    **{f"{height}x{width}": Case((ONE,), ((height, width),)) for height, width in ODD_SIZES},
    "no picture": Case((NONE,)),
    "two pictures": Case((TWO,), ((336, 336), (640, 480))),
    "batch": Case((TWO, NONE, ONE), ((55, 176), (300, 200), (480, 640))),
}


@cache
def picture(height: int, width: int, phase: int = 0) -> Image.Image:
    """Slopes, rings and a checked pattern, which no two sizes or phases have alike."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    down, across = y / max(height - 1, 1), x / max(width - 1, 1)
    rings = 0.5 + 0.5 * np.sin(((down - 0.4) ** 2 + (across - 0.6) ** 2) * (20 + 7 * phase))
    checks = (x // 9 + y // 7 + phase) % 3 / 2
    channels = [across, rings, 0.7 * checks + 0.3 * down]
    channels = channels[phase % 3 :] + channels[: phase % 3]
    return Image.fromarray((np.stack(channels, axis=-1) * 255).round().astype(np.uint8))


def logit_positions(attention_mask: np.ndarray) -> list[np.ndarray]:
    """The positions of each row that are compared: the last, and a few spread over the tokens before it."""
    rows = []
    for mask in attention_mask:
        tokens = np.flatnonzero(mask)
        rows.append(tokens[np.linspace(0, len(tokens) - 1, 6).round().astype(int)])
    return rows
