"""An engine that keeps what it was asked to run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from paddle_llava.engines.paddle import PaddleEngine
from paddle_llava.models.llava import LlavaNetwork


class RecordingEngine(PaddleEngine):
    """Notes what was asked of it, and what it said.

    Turn by turn: `greedy` has the best token after each step, `prefilled` the number of tokens run anew, `first` the
    logits of the answer's first token. `encoded` has the number of pictures that were encoded at a time.
    """

    def __init__(self, network: LlavaNetwork) -> None:
        super().__init__(network)
        self.greedy: list[list[int]] = []
        self.prefilled: list[int] = []
        self.first: list[np.ndarray] = []
        self.encoded: list[int] = []

    def encode_images(self, pixel_values: np.ndarray, image_sizes: np.ndarray) -> list[Any]:
        self.encoded.append(len(image_sizes))
        return super().encode_images(pixel_values, image_sizes)

    def prefill(self, inputs: Mapping[str, Any]) -> np.ndarray:
        logits = super().prefill(inputs)
        self.prefilled.append(np.shape(inputs["input_ids"])[1])
        self.first.append(logits.copy())
        self.greedy.append([int(logits.argmax())])
        return logits

    def decode(self, token_ids: np.ndarray) -> np.ndarray:
        logits = super().decode(token_ids)
        self.greedy[-1].append(int(logits.argmax()))
        return logits
