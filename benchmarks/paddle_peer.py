"""This project's side of a comparison: what a peer process runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from paddle_llava import ChatSession, LlavaForConditionalGeneration, LlavaProcessor
from paddle_llava.config import Layout
from paddle_llava.convert import convert
from paddle_llava.engines.paddle import PaddleEngine


class ClockedEngine(PaddleEngine):
    """Writes down when the model begins and when logits come, and what it was given."""

    def begin(self) -> None:
        self.start = time.perf_counter()
        self.ends: list[float] = []
        self.pixel_values: np.ndarray | None = None
        self.input_ids: list[int] = []
        self.answer: list[int] = []

    def encode_images(self, pixel_values: np.ndarray, image_sizes: np.ndarray) -> list[Any]:
        self.pixel_values = pixel_values
        self.start = time.perf_counter()  # the clock does not count the picture's preparation
        return super().encode_images(pixel_values, image_sizes)

    def prefill(self, inputs: Any) -> np.ndarray:
        self.input_ids = inputs["input_ids"][0].tolist()
        return self._noted(super().prefill(inputs))

    def decode(self, token_ids: np.ndarray) -> np.ndarray:
        return self._noted(super().decode(token_ids))

    def _noted(self, logits: np.ndarray) -> np.ndarray:
        self.answer.append(int(logits[0].argmax()))
        self.ends.append(time.perf_counter())
        return logits


class PaddlePeer:
    """A model and a conversation with it; `load` comes before `begin_chat`, and that before `ask`."""

    def load(self, folder: Path) -> float:
        """Seconds to load the model in float32."""
        start = time.perf_counter()
        self.model = LlavaForConditionalGeneration.from_pretrained(folder)
        return time.perf_counter() - start

    def begin_chat(self, folder: Path) -> None:
        """A new conversation, with the words of the checkpoint in `folder`."""
        self.engine = ClockedEngine(self.model)
        self.session = ChatSession(self.engine, LlavaProcessor.from_pretrained(folder))

    def ask(self, question: str, picture: np.ndarray | None, tokens: int) -> dict[str, Any]:
        """One turn of `ChatSession` with an answer of `tokens`: its times, its new ids and pixels, and its answer."""
        engine = self.engine
        engine.begin()
        image = None if picture is None else Image.fromarray(picture)
        for _ in self.session.ask(question, image=image, max_new_tokens=tokens):
            pass
        first, *others = engine.ends
        return {
            "first": first - engine.start,
            "rate": len(others) / (others[-1] - first),
            "input_ids": engine.input_ids,
            "pixel_values": engine.pixel_values,
            "answer": engine.answer,
        }

    def convert(self, source: Path, target: Path, layout: Layout, max_shard_bytes: int) -> float:
        """Seconds to convert."""
        start = time.perf_counter()
        convert(source, target, layout, max_shard_bytes=max_shard_bytes)
        return time.perf_counter() - start
