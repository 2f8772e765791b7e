"""Any engine as a peer: what is measured of it, the same for all, in a process of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llava.console import importing_paddle

# A picture of 576 features among 24 tokens of text, as a first turn has it.
BEFORE, FEATURES, AFTER = 12, 576, 12
ANSWER, SECOND_QUESTION = 64, 16
FIRST_WORD, LAST_WORD = 1000, 30000  # none of which is the image token
PIXELS = np.random.default_rng(0).standard_normal((1, 3, 336, 336), np.float32)
SIZES = np.array([[336, 336]])


class EnginePeer:
    """`load` comes before `measure`."""

    def load(self, kind: str, folder: Path, image_token_id: int) -> float:
        """Seconds to load the engine of a `kind` from `folder`; imports are not among them."""
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(os.environ["OMP_NUM_THREADS"])])
        make = _imported(kind)
        start = time.perf_counter()
        self.engine = make(folder, image_token_id)
        seconds = time.perf_counter() - start
        self.image_token_id = image_token_id
        self.random = np.random.default_rng(0)
        return seconds

    def measure(self, contexts: tuple[int, ...], tokens: int) -> dict[str, float]:
        """Everything once, after a warm-up: seconds of each work, all with fresh caches. Decoding runs `tokens`."""
        self._at(contexts[0], 2)
        self._encode()
        found = {"encode": min(self._encode()[1] for _ in range(2))}
        for context in contexts:
            found |= self._at(context, tokens)
        return found | self._conversation()

    def _at(self, context: int, tokens: int) -> dict[str, float]:
        self.engine.reset()
        start = time.perf_counter()
        self.engine.prefill({"input_ids": self._words(context)})
        filled = time.perf_counter()
        self._decode(tokens)
        return {f"prefill {context}": filled - start, f"decode {context}": (time.perf_counter() - filled) / tokens}

    def _conversation(self) -> dict[str, float]:
        """The first turn to its first and to its last token, and the second to its first."""
        self.engine.reset()
        picture = np.full((1, FEATURES), self.image_token_id)
        question = np.concatenate([self._words(BEFORE), picture, self._words(AFTER)], axis=1)
        features, encoding = self._encode()
        start = time.perf_counter() - encoding
        self.engine.prefill({"input_ids": question, "image_features": features})
        first = time.perf_counter()
        self._decode(ANSWER - 1)
        end = time.perf_counter()
        self.engine.prefill({"input_ids": self._words(SECOND_QUESTION)})
        return {"first token": first - start, "first turn": end - start, "second turn": time.perf_counter() - end}

    def _encode(self) -> tuple[list[Any], float]:
        start = time.perf_counter()
        features = self.engine.encode_images(PIXELS, SIZES)
        return features, time.perf_counter() - start

    def _decode(self, tokens: int) -> None:
        for word in self._words(tokens)[0]:
            self.engine.decode(word[None])

    def _words(self, length: int) -> np.ndarray:
        return self.random.integers(FIRST_WORD, LAST_WORD, (1, length))


def _imported(kind: str) -> Any:
    """What makes an engine of a folder and the image token's id."""
    if kind == "openvino":
        from paddle_llava.engines.openvino.engine import OpenVINOEngine
        from paddle_llava.engines.openvino.export import Exported

        return lambda folder, _: Exported.read(folder).engine(OpenVINOEngine)
    if kind == "paddle":
        with importing_paddle():
            from paddle_llava import LlavaForConditionalGeneration
            from paddle_llava.engines.paddle import PaddleEngine

        return lambda folder, _: PaddleEngine(LlavaForConditionalGeneration.from_pretrained(folder))
    if kind == "llama.cpp":
        from llama_cpp_engine import LlamaCppEngine

        return LlamaCppEngine
    from transformers_engine import TransformersEngine

    return lambda folder, _: TransformersEngine(folder, kind)
