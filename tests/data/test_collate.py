from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_llava.config import LlavaConfig
from paddle_llava.data.collate import PreparedSample, collate, prepare_sample
from paddle_llava.data.encoding import IGNORED, EncodedSample, encode_sample
from paddle_llava.data.records import Sample
from paddle_llava.errors import LlavaError
from paddle_llava.generation.session import ChatSession
from paddle_llava.processing.conversation import IMAGE, Message
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.templates import TEMPLATES

VICUNA = TEMPLATES["vicuna_v1"]


class Stopped(Exception):
    pass


class Onlooker:
    """An engine that only looks at the pictures that a chat hands to it."""

    length = 0

    def __init__(self, config: LlavaConfig) -> None:
        self.config = config

    def prefill(self) -> None: ...

    def reset(self) -> None: ...

    def encode_images(self, pixel_values: np.ndarray, image_sizes: np.ndarray) -> None:
        self.pixel_values, self.image_sizes = pixel_values, image_sizes
        raise Stopped


def asked(number: int, *sources: str) -> Sample:
    question = Message("user", (*[IMAGE, "\n"] * len(sources), "What is it?"))
    return Sample(sources, (question, Message("assistant", f"Answer {number}")), number, "train.json")


@pytest.mark.parametrize("version", ["v15", "v16"])
@pytest.mark.parametrize("kind", ["path", "URL", "data URI"])
def test_pixels_are_those_of_a_chat(
    request: pytest.FixtureRequest, pictures: Path, server: Any, version: str, kind: str
) -> None:
    processor = request.getfixturevalue(version)
    names = ["wide.png", "tall.jpg", "large.jpg"]
    paths = [pictures / name for name in names]
    sources = {
        "path": [str(path) for path in paths],
        "URL": [f"{server.address}/{name}" for name in names],
        "data URI": ["data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() for path in paths],
    }[kind]
    samples = [asked(1, sources[0]), asked(2), asked(3, *sources[1:])]
    prepared = [prepare_sample(encode_sample(sample, processor, VICUNA, 4096), processor) for sample in samples]
    batch = collate([prepared[:2], prepared[2:]], 0)

    engine: Any = Onlooker(processor.config)
    session = ChatSession(engine, processor)
    with pytest.raises(Stopped):
        next(session.ask("What is it?", image=[str(path) for path in paths]))
    assert batch["pixel_values"].dtype == np.float32
    assert batch["pixel_values"].tobytes() == engine.pixel_values.tobytes()
    assert batch["image_sizes"].dtype == np.int64
    assert batch["image_sizes"].tolist() == engine.image_sizes.tolist()
    features = (batch["input_ids"] == processor.config.image_token_id).sum()
    assert features == sum(processor.feature_counts(batch["image_sizes"]))


def made(name: str, ids: list[int], labels: list[int]) -> PreparedSample:
    targets = sum(label != IGNORED for label in labels)
    arrays = np.array(ids, np.int64), np.array(labels, np.int64)
    return PreparedSample(EncodedSample(name, *arrays, (), (), (), targets, len(ids), False), {})


def test_rows_labels_positions_and_segments() -> None:
    a = made("a", [1, 5, 6, 2], [-100, -100, 6, 2])
    b = made("b", [1, 7, 2], [-100, 7, 2])
    c = made("c", [1, 8, 2], [-100, -100, 2])
    batch = collate([[a, b], [c]], 9)
    assert batch["input_ids"].tolist() == [[1, 5, 6, 2, 1, 7, 2], [1, 8, 2, 9, 9, 9, 9]]
    # The logits at a position are scored against the label there: nothing at the last token of a sample.
    assert batch["labels"].tolist() == [[-100, 6, 2, -100, 7, 2, -100], [-100, 2, *[-100] * 5]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2], [0, 1, 2, 0, 0, 0, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 0, 0, 0, 0]]
    assert (batch["num_targets"], batch["num_tokens"], batch["records"]) == (5, 10, [["a", "b"], ["c"]])
    kinds = {key: value.dtype for key, value in batch.items() if isinstance(value, np.ndarray)}
    assert kinds == {"input_ids": np.int64, "labels": np.int64, "position_ids": np.int64, "segment_ids": np.int32}


def test_packing_changes_nothing_but_the_place(v16: LlavaProcessor, pictures: Path) -> None:
    samples = [asked(1, str(pictures / "wide.png")), asked(2), asked(3, str(pictures / "tall.jpg"))]
    prepared = [prepare_sample(encode_sample(sample, v16, VICUNA, 4096), v16) for sample in samples]
    packed = collate([prepared], 0)
    alone = [collate([[each]], 0) for each in prepared]
    for key in ("input_ids", "labels", "position_ids"):
        np.testing.assert_array_equal(packed[key], np.concatenate([each[key] for each in alone], axis=1))
    for key in ("pixel_values", "image_sizes"):
        expected = np.concatenate([each[key] for each in alone if key in each])
        np.testing.assert_array_equal(packed[key], expected)
    assert packed["num_targets"] == sum(each["num_targets"] for each in alone)


def test_a_picture_that_fails_names_the_record(v15: LlavaProcessor, v16: LlavaProcessor, pictures: Path) -> None:
    encoded = encode_sample(asked(5, str(pictures / "broken.jpg")), v15, VICUNA, 4096)
    with pytest.raises(LlavaError, match=r"^train.json: record 5: .*broken.jpg' is damaged"):
        prepare_sample(encoded, v15)


def test_a_picture_that_has_changed_is_refused(v16: LlavaProcessor, pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes((pictures / "wide.png").read_bytes())
    encoded = encode_sample(asked(5, str(path)), v16, VICUNA, 4096)
    path.write_bytes((pictures / "large.jpg").read_bytes())
    with pytest.raises(LlavaError, match=r"^train.json: record 5: a picture has changed"):
        prepare_sample(encoded, v16)
