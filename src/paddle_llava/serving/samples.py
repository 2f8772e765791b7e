"""Pictures to try in the web chat: street scenes that no training has seen, and two photographs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

from paddle_llava.demo import demo
from paddle_llava.demo.dialogues import dialogue
from paddle_llava.demo.document import document_scene
from paddle_llava.demo.naming import LANGUAGES, Language
from paddle_llava.demo.scenes import Scene, draw_scene

SEEDS = (17, 4, 2, 21, 33, 18, 26)
SIZE = (640, 480)
_PHOTOS = Path(demo.__file__).parent / "photos"
_DESCRIBE = {"en": "Describe this picture.", "zh": "描述这张照片"}
_OF_BUS = {
    "en": ("Give the coordinates of the bus.", "What colour is the bus?", "How many cars are there?"),
    "zh": ("给出公交车位置的坐标", "公交车是什么颜色？", "图中有几辆汽车？"),
}
_OF_PHOTOS = {
    "china.jpg": {"en": ("What place is this?",), "zh": ("这是什么地方？",)},
    "flower.jpg": {"en": ("What colour is the flower?",), "zh": ("花是什么颜色？",)},
}


@dataclass(frozen=True)
class Sample:
    """`questions` in each language say the same; `read` gives the picture as JPEG."""

    name: str
    questions: dict[str, tuple[str, ...]]
    read: Callable[[], bytes]


@cache
def samples() -> dict[str, Sample]:
    """By name, which is that of a file."""
    bus = document_scene(SIZE)
    scenes = {f"street-{seed}.jpg": draw_scene(seed, size=SIZE, split="heldout") for seed in SEEDS}
    found = [
        _sample("bus.jpg", _OF_BUS, lambda: _jpeg(bus)),
        *(_sample(name, _asked(scene), lambda scene=scene: _jpeg(scene)) for name, scene in scenes.items()),
        *(_sample(name, questions, (_PHOTOS / name).read_bytes) for name, questions in _OF_PHOTOS.items()),
    ]
    return {sample.name: sample for sample in found}


def _sample(name: str, questions: dict[str, tuple[str, ...]], read: Callable[[], bytes]) -> Sample:
    return Sample(name, {language: (_DESCRIBE[language], *questions[language]) for language in LANGUAGES}, read)


def _asked(scene: Scene) -> dict[str, tuple[str, ...]]:
    def put(language: Language) -> tuple[str, ...]:
        turns = (dialogue(scene, 0, language, "train", turns=1, kinds=(kind,)) for kind in ("box", "count", "colour"))
        return tuple(turn.question for (turn,) in filter(None, turns))

    return {language: put(language) for language in LANGUAGES}


def _jpeg(scene: Scene) -> bytes:
    file = BytesIO()
    scene.image.save(file, "JPEG", quality=92)
    return file.getvalue()
