"""What these tests share: the small model, questions for it, and a writer of benchmarks' files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import Write
from PIL import Image

from paddle_llava import LlavaForConditionalGeneration, LlavaProcessor
from paddle_llava.engines.paddle import PaddleEngine
from paddle_llava.evaluation.predictions import Run
from paddle_llava.evaluation.records import Question
from paddle_llava.evaluation.run import read_questions
from paddle_llava.evaluation.tasks.files import Data

LONGEST = 6  # tokens an answer
COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture
def pope_folder(tmp_path: Path) -> Path:
    """Twelve questions about four pictures of different shapes, in two splits, with wordings of different lengths."""
    folder = tmp_path / "pope"
    folder.mkdir()
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (40 + 30 * number, 60), colour).save(folder / f"{colour}.png")
    for split, more in (("random", ""), ("adversarial", " or anything else that one might take for it")):
        records = [
            {
                "question_id": number,
                "image": f"{COLOURS[number % 4]}.png",
                "text": f"Is there a {'very ' * number}large bus{more} in the image?",
                "label": "yes" if number % 2 else "no",
            }
            for number in range(6)
        ]
        (folder / f"coco_pope_{split}.json").write_text("\n".join(map(json.dumps, records)) + "\n")
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file of the benchmark: text as it stands, a list of objects as JSONL, all else as JSON."""

    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jsonl") or name.startswith("coco_pope"):
            content = "".join(json.dumps(record) + "\n" for record in content)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def parts(demo_checkpoint: Path) -> tuple[PaddleEngine, LlavaProcessor]:
    """The small model's engine and its processor."""
    model = LlavaForConditionalGeneration.from_pretrained(demo_checkpoint)
    return PaddleEngine(model), LlavaProcessor.from_pretrained(demo_checkpoint)


@pytest.fixture
def questions(pope_folder: Path) -> list[Question]:
    """Those of `pope_folder`, with short answers."""
    found = read_questions("pope", Data((pope_folder,)))
    assert len(found) == 12
    return [replace(question, max_new_tokens=LONGEST) for question in found]


@pytest.fixture
def run() -> Run:
    return Run("pope", "llava-demo", 12, {"template": "vicuna_v1"})
