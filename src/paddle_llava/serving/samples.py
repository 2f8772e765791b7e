"""Pictures to try in the web chat: street scenes that no training has seen, and two photographs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
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
_DESCRIBE: dict[Language, str] = {"en": "Describe this picture.", "zh": "描述这张照片"}
_OF_BUS: dict[Language, tuple[str, ...]] = {
    "en": (
        _DESCRIBE["en"],
        "Give the coordinates of the bus.",
        "What colour is the bus?",
        "How many houses are there?",
    ),
    "zh": (_DESCRIBE["zh"], "给出公交车位置的坐标", "公交车是什么颜色？", "图中有几座房子？"),
}
_OF_PHOTOS: dict[str, dict[Language, tuple[str, ...]]] = {
    "china.jpg": {"en": (_DESCRIBE["en"], "What place is this?"), "zh": (_DESCRIBE["zh"], "这是什么地方？")},
    "flower.jpg": {"en": (_DESCRIBE["en"], "What colour is the flower?"), "zh": (_DESCRIBE["zh"], "花是什么颜色？")},
}


@dataclass(frozen=True)
class Sample:
    """`questions` in each language say the same; `read` gives the picture as JPEG."""

    name: str
    questions: Mapping[Language, Sequence[str]]
    read: Callable[[], bytes]


@cache
def samples() -> dict[str, Sample]:
    """By name, which is that of a file."""
    found = [
        Sample("bus.jpg", _OF_BUS, partial(_jpeg, document_scene(SIZE))),
        *map(_drawn, SEEDS),
        *(Sample(name, questions, (_PHOTOS / name).read_bytes) for name, questions in _OF_PHOTOS.items()),
    ]
    return {sample.name: sample for sample in found}


def _drawn(seed: int) -> Sample:
    scene = draw_scene(seed, size=SIZE, split="heldout")
    questions = {language: [_DESCRIBE[language], *_asked(scene, language)] for language in LANGUAGES}
    return Sample(f"street-{seed}.jpg", questions, partial(_jpeg, scene))


def _asked(scene: Scene, language: Language) -> Iterator[str]:
    for kind in ("box", "count", "colour"):
        for turn in dialogue(scene, 0, language, "train", turns=1, kinds=(kind,)):
            yield turn.question


def _jpeg(scene: Scene) -> bytes:
    file = BytesIO()
    scene.image.save(file, "JPEG", quality=92)
    return file.getvalue()
