"""What runs many sequences at once; see `engines.paddle_batch.PaddleBatchEngine` for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from paddle_llava.config import LlavaConfig


class Work(NamedTuple):
    """What one sequence runs in a step: `token_ids` int64 [count] after those it holds, and the features of the image
    tokens among them, in pieces [features, hidden_size] that add up to their number. `generated` is one token that was
    drawn from the logits of the last step."""

    sequence: Any
    token_ids: np.ndarray
    image_features: Sequence[Any] = ()
    generated: bool = False


class BatchEngine(Protocol):
    """Runs sequences side by side. A sequence is the engine's own object with a `length` and a `rewind(length)`.

    `step` runs one or several tokens of each sequence in `work`, at most `max_tokens` in all, and gives the logits
    that follow the last of each, float32 [len(work), vocab_size]. When it raises, the sequences are as before.
    `bytes_per_token` is what a position of a sequence takes, and `growth` by how many positions at a time it is taken.
    A sequence that nobody holds any more is gone; `fork` copies the beginning of one.
    """

    config: LlavaConfig
    bytes_per_token: int
    growth: int
    max_tokens: int

    def encode_images(self, pixel_values: np.ndarray, image_sizes: np.ndarray) -> list[Any]: ...
    def new_sequence(self) -> Any: ...
    def fork(self, sequence: Any, length: int) -> Any: ...
    def step(self, work: Sequence[Work]) -> np.ndarray: ...
