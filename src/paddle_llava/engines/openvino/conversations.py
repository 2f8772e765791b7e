"""The conversations that weights are calibrated with: a few of a training file, or some about drawn streets."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llava.data.collate import prepare_sample
from paddle_llava.data.encoding import encode_sample
from paddle_llava.data.records import RecordFile, Sample
from paddle_llava.errors import LlavaError
from paddle_llava.processing.conversation import Message
from paddle_llava.processing.processor import LlavaProcessor

TOKENS = 4096
"""In all, features of pictures among them; the conversation that reaches them is the last."""
MOST_RECORDS = 64
PICTURES, SEED = 16, 55_000_000
"""Of the built-in conversations. Neither training nor evaluation draws streets of this seed."""


def calibration_inputs(
    processor: LlavaProcessor, data: Path | None = None, *, seed: int = SEED
) -> list[dict[str, Any]]:
    """What the model reads in each conversation, one row as the engines' `prefill` takes it, and its `labels`.

    From records of the training file `data`, spread over it; without one from built-in conversations about drawn
    streets, in English and Chinese, others with each `seed`. Raises `LlavaError` naming the record that cannot be used.
    """
    found: list[dict[str, Any]] = []
    longest = min(TOKENS, processor.config.text.max_position_embeddings)
    for sample in _built_in(seed) if data is None else _spread_out(RecordFile(data)):
        encoded = encode_sample(sample, processor, processor.template, longest)
        prepared = prepare_sample(encoded, processor)
        found.append({"input_ids": encoded.input_ids[None], "labels": encoded.labels[None], **prepared.pixels})
        if sum(inputs["input_ids"].size for inputs in found) >= TOKENS:
            break
    if not found:
        raise LlavaError(f"{data}: holds no record to calibrate with")
    return found


def _spread_out(records: RecordFile) -> Iterator[Sample]:
    count = min(len(records), MOST_RECORDS)
    # In no order, so that few of them are from all over the file, which may be sorted.
    places = np.linspace(0, max(len(records) - 1, 0), count).astype(int)
    return (records[int(place)] for place in np.random.default_rng(0).permutation(places))


def _built_in(seed: int) -> Iterator[Sample]:
    from paddle_llava.demo.dialogues import dialogue  # only here: the streets are for those who have no data
    from paddle_llava.demo.scenes import draw_scene

    for number in range(PICTURES):
        scene = draw_scene(seed + number, size=336)
        picture = io.BytesIO()
        scene.image.save(picture, "PNG")
        source = "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
        messages: list[Message] = []
        for turn in dialogue(scene, seed + number):
            messages += [
                Message("user", turn.question, images=0 if messages else 1),
                Message("assistant", turn.answer),
            ]
        yield Sample((source,), tuple(messages), number + 1, "built-in conversations")
