from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest

from paddle_llava import LlavaForConditionalGeneration, LlavaProcessor
from paddle_llava.engines.paddle import PaddleEngine
from parting_rows import check_parting_rows
from reference_cases import CASES, CHECKPOINTS, FIXTURES


@pytest.fixture(scope="module", params=CHECKPOINTS)
def model(request: pytest.FixtureRequest) -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(FIXTURES / request.param)


@pytest.fixture
def batch(model: LlavaForConditionalGeneration, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Prompts of unequal length with two pictures, none and one, as numpy arrays."""
    name = "v1_5" if model.config.image_grid_pinpoints is None else "v1_6"
    case = CASES["batch"]
    return LlavaProcessor.from_pretrained(FIXTURES / name).prepare(list(case.prompts), case.pictures)


def next_logits(model: LlavaForConditionalGeneration, batch: dict[str, Any], more: list[list[int]]) -> np.ndarray:
    """Of the whole sequence at once, without a cache; `more` are further tokens of each row."""
    new = np.array(more, np.int64).reshape(len(batch["input_ids"]), -1)
    inputs = batch | {
        "input_ids": np.concatenate([batch["input_ids"], new], axis=1),
        "attention_mask": np.concatenate([batch["attention_mask"], np.ones_like(new)], axis=1),
    }
    return model(**inputs).logits.numpy()[:, -1]


def test_prefill_and_decode_give_the_next_logits(model: LlavaForConditionalGeneration, batch: dict[str, Any]) -> None:
    engine = PaddleEngine(model)
    assert engine.length == 0
    logits = engine.prefill(batch)
    length = batch["input_ids"].shape[1]
    assert engine.length == length
    assert logits.dtype == np.float32
    assert logits.shape == (3, model.config.text.vocab_size)
    assert np.abs(logits - next_logits(model, batch, [[], [], []])).max() < 1e-4
    more: list[list[int]] = [[], [], []]
    for step in range(3):
        tokens = np.array([5 + step, 90 - step, 40])
        for row, token in zip(more, tokens.tolist(), strict=True):
            row.append(token)
        assert np.abs(engine.decode(tokens) - next_logits(model, batch, more)).max() < 1e-4
        assert engine.length == length + step + 1

    engine.rewind(length + 1)
    more = [row[:1] for row in more]
    for row, tokens_of_row in zip(more, [[7, 8], [9, 10], [11, 12]], strict=True):
        row += tokens_of_row
    again = engine.prefill({"input_ids": np.array([row[1:] for row in more])})
    assert np.abs(again - next_logits(model, batch, more)).max() < 1e-4


def test_features_that_were_encoded_before(model: LlavaForConditionalGeneration, batch: dict[str, Any]) -> None:
    engine = PaddleEngine(model)
    expected = engine.prefill(batch)
    features = engine.encode_images(batch["pixel_values"], batch["image_sizes"])
    assert [len(picture) for picture in features] == [
        model.config.image_layout((height, width)).num_features for height, width in batch["image_sizes"].tolist()
    ]
    engine.reset()
    assert engine.length == 0
    found = engine.prefill(
        {name: batch[name] for name in ("input_ids", "attention_mask")} | {"image_features": features}
    )
    assert np.array_equal(found, expected)


def test_nothing_of_an_earlier_batch_stays(model: LlavaForConditionalGeneration, batch: dict[str, Any]) -> None:
    """Neither its size nor its padding."""
    engine = PaddleEngine(model)
    engine.prefill(batch)
    engine.reset()
    ids = np.array([[1, 300, 301, 302]])
    expected = model(paddle.to_tensor(ids)).logits.numpy()[:, -1]
    assert np.abs(engine.prefill({"input_ids": ids}) - expected).max() < 1e-4


def test_no_gradient_is_kept(model: LlavaForConditionalGeneration, batch: dict[str, Any]) -> None:
    features = PaddleEngine(model).encode_images(batch["pixel_values"], batch["image_sizes"])
    assert all(picture.stop_gradient for picture in features)


def test_several_rows_go_on_from_one(model: LlavaForConditionalGeneration) -> None:
    check_parting_rows(PaddleEngine(model), lambda ids: model(paddle.to_tensor([ids])).logits.numpy()[0, -1])
