"""The loop from a prompt to its answer's tokens, for one sequence or a left-padded batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from paddle_llava.config import LlavaConfig
from paddle_llava.errors import LlavaError
from paddle_llava.generation.sampling import Sampler, SamplingParams


class Engine(Protocol):
    """Who runs the forward pass; see `engines.paddle.PaddleEngine` for what each method promises."""

    config: LlavaConfig

    @property
    def length(self) -> int: ...
    def reset(self) -> None: ...
    def encode_images(self, pixel_values: np.ndarray, image_sizes: np.ndarray) -> list[Any]: ...
    def prefill(self, inputs: Mapping[str, Any]) -> np.ndarray: ...
    def decode(self, token_ids: np.ndarray) -> np.ndarray: ...
    def rewind(self, length: int) -> None: ...
    def take_rows(self, rows: Sequence[int]) -> None: ...


def generate(
    engine: Engine,
    inputs: Mapping[str, Any],
    params: SamplingParams,
    *,
    prompt_ids: Iterable[np.ndarray] | None = None,
    stop_ids: frozenset[int] | None = None,
) -> Iterator[np.ndarray]:
    """Prefill `inputs` and yield int64 [batch] tokens, step by step.

    It ends when every row has ended, `max_new_tokens` are out, or the context is full.

    A row ends with one of `stop_ids` (default: the model's end-of-sequence tokens), which is yielded too, and goes on
    with the padding token. `prompt_ids` are all tokens before each row's answer, without padding, for the repetition
    penalty, when the engine already holds some of them; without it they are those of `inputs`. The last yielded tokens
    have not been run by the engine. Raises `LlavaError` when the prompt alone fills the context.
    """
    text = engine.config.text
    stops = frozenset(text.eos_token_id) if stop_ids is None else stop_ids
    padding = text.pad_token_id if text.pad_token_id is not None else min(stops, default=0)
    held = engine.length + np.shape(inputs["input_ids"])[1]
    room = text.max_position_embeddings - held
    if room < 1:
        limit = text.max_position_embeddings
        raise LlavaError(f"the prompt has {held} tokens and leaves no room for an answer: the model holds {limit}")
    samplers = [Sampler(params, row) for row in (without_padding(inputs) if prompt_ids is None else prompt_ids)]
    ended = [False] * len(samplers)
    logits = without_image_token(engine.prefill(inputs), engine.config.image_token_id)
    steps = min(params.max_new_tokens, room)
    for step in range(steps):
        tokens = [padding if ended[row] else sampler.sample(logits[row]) for row, sampler in enumerate(samplers)]
        yield np.asarray(tokens, dtype=np.int64)
        ended = [over or token in stops for over, token in zip(ended, tokens, strict=True)]
        if all(ended) or step + 1 == steps:
            return
        logits = engine.decode(np.asarray(tokens, dtype=np.int64))
        logits = without_image_token(logits, engine.config.image_token_id)


def without_padding(inputs: Mapping[str, Any]) -> list[np.ndarray]:
    """The tokens of each row of a batch; padding, often the end token, was said by nobody."""
    rows, mask = np.asarray(inputs["input_ids"]), inputs.get("attention_mask")
    if mask is None:
        return list(rows)
    return [row[seen] for row, seen in zip(rows, np.asarray(mask).astype(bool), strict=True)]


def without_image_token(logits: np.ndarray, image_token_id: int) -> np.ndarray:
    """`logits` [batch, vocab_size] that never lead to an image token: one in an answer would ask for a picture."""
    if image_token_id >= 0:
        logits[:, image_token_id] = -np.inf
    return logits
