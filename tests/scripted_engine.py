"""An engine that says what it is told to, at the pace it is told, so that `ChatSession` runs without a network."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llava.generation.sampling import SamplingParams
from paddle_llava.generation.session import ChatSession
from paddle_llava.processing.processor import LlavaProcessor


class ScriptedEngine:
    """Gives the next of `answers` after each prefill, `delay` seconds a token; see `PaddleEngine` for the methods."""

    def __init__(self, processor: LlavaProcessor, answers: list[str], delay: float = 0.0) -> None:
        self.config = processor.config
        self.length = 0
        self.encoded = 0
        self._processor = processor
        self._answers = iter(answers)
        self._delay = delay
        self._tokens: list[int] = []

    def reset(self) -> None:
        self.length = 0

    def rewind(self, length: int) -> None:
        self.length = length

    def encode_images(self, pixel_values: np.ndarray, image_sizes: np.ndarray) -> list[Any]:
        self.encoded += len(image_sizes)
        return [None] * len(image_sizes)

    def prefill(self, inputs: Mapping[str, Any]) -> np.ndarray:
        tokenizer = self._processor.tokenizer
        self.length += inputs["input_ids"].shape[1]
        self._tokens = [*tokenizer.encode_segment(next(self._answers), first=True), tokenizer.eos_token_id]
        return self._next()

    def decode(self, token_ids: np.ndarray) -> np.ndarray:
        self.length += 1
        return self._next()

    def _next(self) -> np.ndarray:
        time.sleep(self._delay)
        logits = np.zeros((1, self.config.text.vocab_size), np.float32)
        logits[0, self._tokens.pop(0)] = 1
        return logits


def scripted_session(checkpoint: Path, answers: list[str], delay: float = 0.0, **options: Any) -> ChatSession:
    """A greedy conversation in which the model says `answers`."""
    processor = LlavaProcessor.from_pretrained(checkpoint)
    return ChatSession(ScriptedEngine(processor, answers, delay), processor, params=SamplingParams(), **options)
