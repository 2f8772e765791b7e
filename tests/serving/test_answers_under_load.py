"""Greedy answers under load are, token for token, those of one request at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_llava import LlavaProcessor
from paddle_llava.generation.batch import BatchEngine, Work
from paddle_llava.opening import open_for_many
from paddle_llava.serving.limits import ServingLimits
from paddle_llava.serving.schema import ChatRequest
from paddle_llava.serving.service import Service
from serving_process import data_uri, noise, user

LIMITS = ServingLimits(max_batch=64, max_queue=64, cache_bytes=256 * 2**20)
PICTURES = [data_uri(noise(40 + 20 * n, 60 + 10 * n, seed=n)) for n in range(6)]
QUESTIONS = ["What is it?", "Describe this picture.", "Which colours are there, and where?", "Why?"]


@pytest.fixture(scope="module", params=["paddle", "openvino"])
def engine(request: pytest.FixtureRequest, demo_checkpoint: Path) -> BatchEngine:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    return open_for_many(str(demo_checkpoint), engine=request.param)[0]


def service(engine: BatchEngine, checkpoint: Path, limits: ServingLimits = LIMITS) -> Service:
    return Service(engine, LlavaProcessor.from_pretrained(checkpoint), "llava-test", limits)


def requests(count: int) -> list[dict[str, Any]]:
    """Mixed: no picture, one or two, one turn or two, short answers and longer ones."""
    random = np.random.default_rng(1)
    found = []
    for number in range(count):
        pictures = [PICTURES[i] for i in random.integers(0, len(PICTURES), random.integers(0, 3))]
        messages = [user(QUESTIONS[number % 4], *pictures)]
        if number % 3 == 0:
            messages += [{"role": "assistant", "content": "A lake with trees."}, user("And then?")]
        found.append({"messages": messages, "max_tokens": int(random.integers(2, 14)), "temperature": 0})
    return found


async def answer(served: Service, request: dict[str, Any]) -> list[int]:
    job = await served.begin(ChatRequest.model_validate(request), asyncio.get_running_loop().time())
    async for _ in served.pieces(job):
        pass
    return job.answer.token_ids


@pytest.fixture(scope="module")
def alone(engine: BatchEngine, demo_checkpoint: Path) -> list[list[int]]:
    """Each by itself, with nothing known from the others."""
    found = []

    async def ask(request: dict[str, Any]) -> list[int]:
        return await answer(served, request)

    served = service(engine, demo_checkpoint)

    async def run() -> None:
        served.start()
        for request in requests(64):
            found.append(await ask(request))
            served.scheduler.prefixes.clear()
        served.stop()

    asyncio.run(run())
    return found


def test_sixty_four_at_a_time(engine: BatchEngine, demo_checkpoint: Path, alone: list[list[int]]) -> None:
    served = service(engine, demo_checkpoint)

    async def run() -> list[list[int]]:
        served.start()
        found = await asyncio.gather(*(answer(served, request) for request in requests(64)))
        served.stop()
        return found

    assert asyncio.run(run()) == alone
    assert served.metrics.cached_tokens._value.get() > 0  # they share beginnings, and that changes nothing


def test_with_little_memory_some_wait(
    engine: BatchEngine, demo_checkpoint: Path, alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache holds one conversation of the context's length, so only a few at a time."""
    served = service(engine, demo_checkpoint, ServingLimits(max_batch=64, cache_bytes=8 * 2**20))
    taken = list[int]()
    step = engine.step

    def noted(work: Sequence[Work]) -> np.ndarray:
        """In the scheduler's own thread, which alone changes the two."""
        taken.append(served.scheduler.prefixes.reserved_bytes + served.scheduler.prefixes.kept_bytes)
        return step(work)

    async def run() -> list[list[int]]:
        served.start()
        answers = await asyncio.gather(*(answer(served, request) for request in requests(24)))
        served.stop()
        return answers

    monkeypatch.setattr(engine, "step", noted)
    assert asyncio.run(run()) == alone[:24]
    assert 0 < max(taken) <= 8 * 2**20
    assert served.scheduler.prefixes.reserved_bytes == 0
