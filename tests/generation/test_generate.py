from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from paddle_llava.config import LlavaConfig, TextConfig, VisionConfig
from paddle_llava.errors import LlavaError
from paddle_llava.generation.generate import generate
from paddle_llava.generation.sampling import SamplingParams

VOCABULARY, LIMIT, END, PAD, IMAGE = 12, 20, 2, 0, 11
ENDLESS = [5, 6, 7] * 10


class TellingEngine:
    """Says the tokens of `rows` one after the other, in a batch, and notes what it is asked to run.

    The next best token is always the one before in the vocabulary.
    """

    def __init__(self, *rows: list[int], pad_token_id: int | None = PAD) -> None:
        text = TextConfig(vocab_size=VOCABULARY, max_position_embeddings=LIMIT, pad_token_id=pad_token_id)
        self.config = LlavaConfig(VisionConfig(), text, image_token_id=IMAGE)
        self.batch = len(rows)
        self.length = 0
        self.decoded: list[list[int]] = []
        self._steps = iter(zip(*rows, strict=True))

    def prefill(self, inputs: Mapping[str, Any]) -> np.ndarray:
        self.length += inputs["input_ids"].shape[1]
        return self._next()

    def decode(self, token_ids: np.ndarray) -> np.ndarray:
        self.length += 1
        self.decoded.append(token_ids.tolist())
        return self._next()

    def _next(self) -> np.ndarray:
        tokens = next(self._steps)
        logits = np.zeros((self.batch, VOCABULARY), np.float32)
        logits[range(self.batch), tokens] = 1.0
        logits[range(self.batch), np.array(tokens) - 1] = 0.9
        return logits


def answers(engine: TellingEngine, prompt: int = 4, stop_ids: Any = None, **settings: Any) -> list[list[int]]:
    """Row by row, what is said after a prompt of so many tokens."""
    inputs = {"input_ids": np.full((engine.batch, prompt), 3)}
    steps = list(generate(engine, inputs, SamplingParams(**settings), stop_ids=stop_ids))
    assert all(step.dtype == np.int64 and step.shape == (engine.batch,) for step in steps)
    return np.array(steps).T.tolist()


def test_an_answer_ends_with_the_end_token() -> None:
    engine = TellingEngine([5, 6, END, 7, 7])
    assert answers(engine) == [[5, 6, END]]
    assert engine.decoded == [[5], [6]]  # the end itself need not be run


def test_other_stop_tokens_take_its_place() -> None:
    assert answers(TellingEngine([5, END, 7, 8, 9]), stop_ids=frozenset({8, 9})) == [[5, END, 7, 8]]


def test_no_more_than_max_new_tokens() -> None:
    engine = TellingEngine(ENDLESS)
    assert answers(engine, max_new_tokens=3) == [[5, 6, 7]]
    assert engine.decoded == [[5], [6]]


def test_rows_that_ended_are_padded_until_the_last_has() -> None:
    engine = TellingEngine([5, END, 9, 9, 9], [END, 9, 9, 9, 9], [5, 6, 7, END, 9])
    assert answers(engine) == [[5, END, PAD, PAD], [END, PAD, PAD, PAD], [5, 6, 7, END]]
    assert engine.decoded == [[5, END, 5], [END, PAD, 6], [PAD, PAD, 7]]


def test_without_a_padding_token_the_end_token_pads() -> None:
    engine = TellingEngine([END, 9, 9], [5, 6, END], pad_token_id=None)
    assert answers(engine) == [[END, END, END], [5, 6, END]]


def test_the_context_is_filled_and_not_exceeded() -> None:
    engine = TellingEngine(ENDLESS)
    assert len(answers(engine, prompt=14)[0]) == LIMIT - 14
    assert engine.length == LIMIT - 1


@pytest.mark.parametrize("held", [0, 5])
def test_a_prompt_that_fills_the_context(held: int) -> None:
    engine = TellingEngine(ENDLESS)
    engine.length = held
    with pytest.raises(LlavaError, match=f"the prompt has {LIMIT} tokens .* the model holds {LIMIT}"):
        answers(engine, prompt=LIMIT - held)
    assert engine.length == held
    engine.length = held
    assert len(answers(engine, prompt=LIMIT - held - 1)[0]) == 1


def test_an_image_token_is_never_said() -> None:
    assert answers(TellingEngine([IMAGE, 5, IMAGE, END])) == [[10, 5, 10, END]]


def test_the_penalty_knows_the_whole_prompt() -> None:
    """Also the part that the engine holds already."""
    inputs = {"input_ids": np.array([[3, 3]])}
    params = SamplingParams(repetition_penalty=1.5, max_new_tokens=2)
    (first,), (second,) = generate(TellingEngine([6, 6]), inputs, params)
    assert [first, second] == [6, 5]  # the second time, 6 has been said
    (first,), (second,) = generate(TellingEngine([6, 6]), inputs, params, prompt_ids=np.array([[6, 3, 3]]))
    assert [first, second] == [5, 6]  # at first 6 stands in the prompt; then both have been said


def test_padding_was_said_by_nobody() -> None:
    """Where the end token pads, it is no likelier or unlikelier than it is for a row alone."""
    params = SamplingParams(repetition_penalty=1.5, max_new_tokens=1)
    ids, mask = np.array([[END, END, 3, 4], [END, 7, 3, 4]]), np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
    (together,) = generate(TellingEngine([END], [END]), {"input_ids": ids, "attention_mask": mask}, params)
    (alone,) = generate(TellingEngine([END]), {"input_ids": ids[:1, 2:]}, params)
    assert together.tolist() == [*alone, END - 1] == [END, END - 1]


def test_rows_are_drawn_independently() -> None:
    """A row's answer with a seed is the same alone and in any company."""
    settings = {"temperature": 3.0, "seed": 4, "max_new_tokens": 8, "stop_ids": frozenset()}
    alone = answers(TellingEngine(ENDLESS), **settings)
    company = [9, 8, 4] * 10
    assert answers(TellingEngine(company, ENDLESS), **settings)[1:] == alone
    assert len(set(alone[0])) > 3
