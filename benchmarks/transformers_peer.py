"""`transformers` on torch, as the other side of a comparison: what a peer process runs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LlavaForConditionalGeneration, logging

logging.disable_progress_bar()
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


class Clock:
    """A streamer that writes down when tokens come; the prompt comes first."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def put(self, _: torch.Tensor) -> None:
        self.ends.append(time.perf_counter())

    def end(self) -> None:
        pass


class TransformersPeer:
    """A model and a conversation with it; `load` comes before `begin_chat`, and that before `ask`."""

    def load(self, folder: Path) -> float:
        """Seconds to load the model in float32."""
        start = time.perf_counter()
        self.model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        return time.perf_counter() - start

    def begin_chat(self) -> None:
        """A new conversation."""
        self.cache = DynamicCache(config=self.model.config)
        self.held: list[int] = []
        self.pixels: torch.Tensor | None = None

    def ask(self, new_ids: list[int], pixel_values: np.ndarray | None, tokens: int, keep_cache: bool) -> dict[str, Any]:
        """One turn of `generate` with an answer of `tokens`: its times and its answer.

        `new_ids` follow what the cache holds. `keep_cache` goes on from the cache of the turns before; otherwise the
        whole conversation and its picture are run again, and the conversation stays as it was.
        """
        prompt = [*self.held, *new_ids]
        if pixel_values is not None:
            self.pixels = torch.from_numpy(pixel_values)
        input_ids = torch.tensor([prompt])
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        if keep_cache:
            inputs["past_key_values"] = self.cache
        if not (keep_cache and self.held):
            inputs["pixel_values"] = self.pixels
        clock = Clock()
        start = time.perf_counter()
        output = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False, streamer=clock)
        _, first, *others = clock.ends
        answer = output[0, len(prompt) :].tolist()
        if keep_cache:
            self.held = [*prompt, *answer[:-1]]  # the last token of an answer has not been run yet
        return {
            "first": first - start,
            "rate": len(others) / (others[-1] - first) if others else 0.0,
            "answer": answer,
        }
