"""The street world as training files: pictures, captions for `llava pretrain`, conversations for `llava finetune`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from paddle_llava.data.pool import runner
from paddle_llava.demo.dialogues import Turn, dialogue
from paddle_llava.demo.eye import SIZES
from paddle_llava.demo.loop import Progress
from paddle_llava.demo.model import IMAGE_SIZE
from paddle_llava.demo.scenes import Scene, draw_scene
from paddle_llava.demo.tongue import TURNS, captioned
from paddle_llava.json_file import write_json

CAPTIONS, CONVERSATIONS = "captions.jsonl", "conversations.jsonl"
AT_A_TIME = 100


class Painter:
    """Draws pictures into a folder, `AT_A_TIME` in one go, and gives their records."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed

    def paint(self, first: int) -> list[tuple[str, str]]:
        """The records, as JSON, of the captions and the conversation of each picture from number `first` on."""
        return [self._paint(number) for number in range(first, first + AT_A_TIME)]

    def _paint(self, number: int) -> tuple[str, str]:
        seed = self.seed * 1_000_000_007 + number
        scene = draw_scene(seed, size=round(IMAGE_SIZE * SIZES[number % len(SIZES)]))
        name = f"pictures/{number // 1000:04}/{number:07}.png"
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        scene.image.save(path, compress_level=1)
        return json.dumps(_caption_record(name, scene, Random(seed))), json.dumps(
            _conversation_record(name, dialogue(scene, seed, turns=TURNS))
        )


def write_dataset(
    folder: Path, pictures: int, *, seed: int = 1, workers: int = 1, progress: Progress | None = None
) -> None:
    """`CAPTIONS`, `CONVERSATIONS` and the pictures of both, in `folder`; nothing when they are there already."""
    done = folder / "done.json"
    if done.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (
        runner(Painter(folder, seed), workers) as run,
        (folder / CAPTIONS).open("w") as captions,
        (folder / CONVERSATIONS).open("w") as conversations,
    ):
        records: Iterator[list[tuple[str, str]]]
        records = run("paint", ((first,) for first in range(0, pictures, AT_A_TIME)), 2 * workers)
        for number, chunk in enumerate(records, 1):
            for told, conversed in chunk:
                print(told, file=captions)
                print(conversed, file=conversations)
            if progress:
                progress(number * AT_A_TIME, pictures)
    write_json(done, {"pictures": pictures, "seed": seed})


def _caption_record(picture: str, scene: Scene, rng: Random) -> dict[str, Any]:
    return _record(picture, [("", captioned(scene, rng)[1])])


def _conversation_record(picture: str, turns: list[Turn]) -> dict[str, Any]:
    return _record(picture, [(turn.question, turn.answer) for turn in turns])


def _record(picture: str, turns: list[tuple[str, str]]) -> dict[str, Any]:
    (question, answer), *rest = turns
    return {"image": picture, "conversations": [(f"<image>\n{question}", answer), *rest]}
