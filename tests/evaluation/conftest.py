"""A small benchmark: POPE's form, about pictures of one colour."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

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
