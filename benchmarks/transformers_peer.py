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


def load(folder: Path) -> float:
    """Seconds to load the model in float32; it is kept."""
    global model
    start = time.perf_counter()
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return time.perf_counter() - start


def begin_chat() -> None:
    """A new conversation with the model that is loaded."""
    global cache, ids, pixels
    cache, ids, pixels = DynamicCache(config=model.config), [], None


def ask(new_ids: list[int], pixel_values: np.ndarray | None, tokens: int, keep_cache: bool) -> dict[str, Any]:
    """One turn of `generate` with an answer of `tokens`: its times and its answer.

    `new_ids` follow what the cache holds, all but the last token of the answer before. `keep_cache` passes the cache of
    the turns before; otherwise the whole conversation and its picture are run again, and nothing is remembered.
    """
    global ids, pixels
    prompt = [*ids, *new_ids]
    if pixel_values is not None:
        pixels = torch.from_numpy(pixel_values)
    clock = Clock()
    inputs: dict[str, Any] = {"input_ids": torch.tensor([prompt])}
    if keep_cache:
        inputs |= {"past_key_values": cache}
    if pixel_values is not None or not keep_cache:
        inputs |= {"pixel_values": pixels}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    start = time.perf_counter()
    output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, streamer=clock)
    _, first, *others = clock.ends
    answer = output[0, len(prompt) :].tolist()
    if keep_cache:
        ids = [*prompt, *answer[:-1]]
    return {
        "first": first - start,
        "rate": len(others) / (others[-1] - first) if others else 0.0,
        "answer": answer,
    }
