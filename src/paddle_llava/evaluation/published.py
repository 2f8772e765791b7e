"""The scores that LLaVA's authors publish for their models, to stand beside measured ones.

Source: LLaVA, docs/MODEL_ZOO.md; SEED's of version 1.5, for its pictures alone, from arXiv:2310.03744.
"""

from __future__ import annotations

import os

_COLUMNS = ("vqav2", "gqa", "scienceqa", "textvqa", "pope", "mme", "mmbench", "seed", "mmbench_cn")
_ROWS: dict[str, tuple[float | None, ...]] = {
    "llava-1.5-7b": (78.5, 62.0, 66.8, 58.2, 85.9, 1510.7, 64.3, 66.1, 58.3),
    "llava-1.5-13b": (80.0, 63.3, 71.6, 61.3, 85.9, 1531.3, 67.7, 68.2, 63.6),
    "llava-1.5-7b-lora": (79.1, 63.0, 68.4, 58.2, 86.4, 1476.9, 66.1, None, 58.9),
    "llava-1.5-13b-lora": (80.0, 63.3, 71.2, 60.2, 86.7, 1541.7, 68.5, None, 61.5),
    "llava-1.6-vicuna-7b": (81.8, 64.2, 70.1, 64.9, 86.5, 1519.0, 67.4, 70.2, 60.6),
    "llava-1.6-vicuna-13b": (82.8, 65.4, 73.6, 67.1, 86.2, 1575.0, 70.0, 71.9, 64.4),
    "llava-1.6-mistral-7b": (82.2, 64.8, 72.8, 65.7, 86.7, 1498.0, 68.7, 72.2, 61.2),
    "llava-1.6-34b": (83.7, 67.1, 81.8, 69.5, 87.7, 1631.0, 79.3, 75.9, 79.0),
}

REMARKS = {
    "vqav2": "published on test-dev, whose answers are not public; on other splits figures differ",
    "textvqa": "LLaVA 1.5's was measured with OCR tokens in the prompt",
    "mme": "the perception score",
    "mmbench": "published on dev, with an official matcher for answers that are no letter",
}
"""What to know before comparing with a task's published score."""


def published_score(task: str, model: str) -> tuple[str, float] | None:
    """The published model that `model` (a hub name or a folder) names, and its score in `task`, if there is one.

    `task` is the name of a task, or what `Scores.published_as` has in its place.
    """
    name = os.path.basename(model.rstrip("/")).lower().removesuffix("-hf").replace("llava-v1", "llava-1")
    row = _ROWS.get(name)
    if row is None or task not in _COLUMNS:
        return None
    score = row[_COLUMNS.index(task)]
    return None if score is None else (name, score)
