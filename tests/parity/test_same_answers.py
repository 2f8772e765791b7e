"""Ids, pixels, logits and greedy tokens, live against `transformers`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pairs import Pair

from paddle_llava import ChatSession, SamplingParams
from recording import RecordingEngine
from reference_cases import CASES, CONVERSATIONS, PHOTOS, TOLERANCE

pytestmark = pytest.mark.parity
# Where the reference's best two tokens are as close as this, rounding may choose either.
TIE = 2 * TOLERANCE


@pytest.mark.parametrize("title", CASES)
def test_inputs_and_logits(pair: Pair, title: str) -> None:
    case = CASES[title]
    inputs = pair.processor.prepare(list(case.prompts), case.pictures)
    expected = pair.reference.inputs(case)
    for name in ("input_ids", "attention_mask"):
        assert np.array_equal(inputs[name], expected[name].numpy())
    if case.sizes:
        tiles = pair.reference.tiles(case)
        assert inputs["pixel_values"].shape == tiles.shape
        assert np.abs(inputs["pixel_values"] - tiles).max() < 1e-6
    tokens = inputs["attention_mask"].astype(bool)
    difference = pair.model(**inputs).logits.numpy() - pair.reference.logits(case)
    assert np.abs(difference[tokens]).max() < TOLERANCE


def same_greedy(ours: list[int], theirs: np.ndarray, leads: np.ndarray) -> bool:
    """Whether the answers are equal; if not, they part at a tie."""
    if ours == theirs.tolist():
        return True
    step = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    assert leads[step] < TIE, f"step {step}: {ours[step]} instead of {theirs[step]}, which leads by {leads[step]}"
    return False


@pytest.mark.parametrize("title", CONVERSATIONS)
def test_three_turns(pair: Pair, title: str) -> None:
    engine = RecordingEngine(pair.model)
    session = ChatSession(engine, pair.processor, params=SamplingParams(max_new_tokens=32))
    turns = CONVERSATIONS[title]
    for number, (tokens, leads) in enumerate(pair.reference.converse(turns)):
        text, photo = turns[number]
        for _ in session.ask(text, photo and PHOTOS / photo):
            pass
        if not same_greedy(engine.greedy[number], tokens, leads):
            return


def test_batch_with_rows_that_end_early(pair: Pair) -> None:
    case = CASES["batch"]
    expected = pair.reference.inputs(case)
    free, _ = pair.reference.generate(expected, 16)
    ends = [int(free[1, 3]), int(free[2, 7])]  # as if these tokens ended an answer
    theirs, leads = pair.reference.generate(expected, 16, eos_token_id=ends)

    config = pair.model.config
    pair.model.config = replace(config, text=replace(config.text, eos_token_id=tuple(ends)))
    try:
        inputs = pair.processor.prepare(list(case.prompts), case.pictures)
        ours = pair.model.generate(**inputs, max_new_tokens=16).numpy()
    finally:
        pair.model.config = config
    if ours.shape != theirs.shape or not np.array_equal(ours, theirs):
        assert not all(same_greedy(a.tolist(), b, lead) for a, b, lead in zip(ours, theirs, leads, strict=True))


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_repetition_penalty(pair: Pair, penalty: float) -> None:
    case = CASES["no picture"]
    (theirs,), (leads,) = pair.reference.generate(pair.reference.inputs(case), 24, repetition_penalty=penalty)
    inputs = pair.processor.prepare(list(case.prompts))
    ours = pair.model.generate(**inputs, max_new_tokens=24, repetition_penalty=penalty).numpy()[0].tolist()
    same_greedy(ours, theirs, leads)
