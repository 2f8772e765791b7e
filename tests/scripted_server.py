"""A server in a thread, whose model says to each question what it is told to, at the pace it is told."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from paddle_llava.generation.batch import BatchEngine, Work
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.serving.api import create_app
from paddle_llava.serving.limits import ServingLimits
from paddle_llava.serving.server import listen
from paddle_llava.serving.service import Service


class _Sequence:
    def __init__(self, ids: Sequence[int] = ()) -> None:
        self.ids = list(ids)
        self.left: list[int] = []

    @property
    def length(self) -> int:
        return len(self.ids)

    def rewind(self, length: int) -> None:
        del self.ids[length:]


class ScriptedBatchEngine:
    """A `BatchEngine` that answers by the last of the questions in `answers` that a prompt holds."""

    bytes_per_token, growth, max_tokens = 4, 64, 256

    def __init__(self, processor: LlavaProcessor, answers: Mapping[str, str], delay: float = 0.0) -> None:
        self.config = processor.config
        self.answers, self.delay = answers, delay
        self._tokenizer = processor.tokenizer

    def encode_images(self, pixel_values: np.ndarray, image_sizes: np.ndarray) -> list[Any]:
        return [np.zeros((self.config.image_layout(tuple(size)).num_features, 1)) for size in image_sizes]

    def new_sequence(self) -> _Sequence:
        return _Sequence()

    def fork(self, sequence: _Sequence, length: int) -> _Sequence:
        return _Sequence(sequence.ids[:length])

    def step(self, work: Sequence[Work]) -> np.ndarray:
        time.sleep(self.delay)
        logits = np.zeros((len(work), self.config.text.vocab_size), np.float32)
        for row, (sequence, token_ids, _, generated) in zip(logits, work, strict=True):
            sequence.ids += token_ids.tolist()
            if not generated:
                sequence.left = self._answer(sequence.ids)
            row[sequence.left.pop(0)] = 1000  # at any temperature
        return logits

    def _answer(self, ids: list[int]) -> list[int]:
        prompt = self._tokenizer.decode([index for index in ids if index != self.config.image_token_id])
        question = max(self.answers, key=prompt.rfind)
        said = self.answers[question] if question in prompt else "I was not told what to say."
        return [*self._tokenizer.encode_segment(said, first=True), self._tokenizer.eos_token_id]


def scripted_service(checkpoint: Path, answers: Mapping[str, str], delay: float = 0.0) -> Service:
    processor = LlavaProcessor.from_pretrained(checkpoint)
    return service(ScriptedBatchEngine(processor, answers, delay), processor)


def service(engine: BatchEngine, processor: LlavaProcessor) -> Service:
    return Service(engine, processor, "llava-test", ServingLimits(), temperature=0.0)


@contextmanager
def serving(service: Service, **options: Any) -> Iterator[str]:
    """The address at which `service` answers, until the block is left."""
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(service, **options), log_config=None, lifespan="on"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)
