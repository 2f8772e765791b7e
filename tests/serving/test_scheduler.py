"""Who runs when, with an engine that counts instead of thinking."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from paddle_llava.errors import LlavaError
from paddle_llava.generation.batch import Work
from paddle_llava.generation.sampling import SamplingParams
from paddle_llava.processing.tokenizer import Tokenizer
from paddle_llava.serving.answer import Answer
from paddle_llava.serving.errors import ApiError
from paddle_llava.serving.limits import ServingLimits
from paddle_llava.serving.metrics import Metrics
from paddle_llava.serving.prefix_cache import Held, PrefixCache
from paddle_llava.serving.prompt import Prompt
from paddle_llava.serving.scheduler import Job, Scheduler

GROWTH, VOCABULARY = 16, 400
LIMITS = ServingLimits(max_batch=4, max_queue=4, cache_bytes=1000 * GROWTH, request_time=5)


class Counting:
    """Says the number after the last one it was given. `gate` holds up its steps, `steps` are what it ran."""

    bytes_per_token, growth, max_tokens = 1, GROWTH, 32

    def __init__(self) -> None:
        self.config: Any = SimpleNamespace(image_token_id=-1, text=SimpleNamespace(hidden_size=8))
        self.steps: list[list[int]] = []
        self.encoded = 0
        self.copied = 0
        self.bad: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()

    def new_sequence(self) -> Any:
        return Sequenced([])

    def fork(self, sequence: Any, length: int) -> Any:
        self.copied += length
        return Sequenced(sequence.ids[:length])

    def encode_images(self, pixel_values: np.ndarray, image_sizes: np.ndarray) -> list[Any]:
        self.encoded += 1
        return [pixel_values]

    def step(self, work: Sequence[Work]) -> np.ndarray:
        assert self.gate.wait(10)
        self.steps.append([len(one.token_ids) for one in work])
        assert sum(self.steps[-1]) <= self.max_tokens
        if self.bad & {int(token) for one in work for token in one.token_ids}:
            raise RuntimeError("bad")
        logits = np.zeros((len(work), VOCABULARY), np.float32)
        for row, one in zip(logits, work, strict=True):
            one.sequence.ids += one.token_ids.tolist()
            row[(one.sequence.ids[-1] + 1) % VOCABULARY] = 1
        return logits


class Sequenced:
    def __init__(self, ids: list[int]) -> None:
        self.ids = list(ids)

    @property
    def length(self) -> int:
        return len(self.ids)


@pytest.fixture(scope="module")
def tokenizer(demo_checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(demo_checkpoint)


class World:
    def __init__(self, tokenizer: Tokenizer, limits: ServingLimits) -> None:
        self.tokenizer = tokenizer
        self.engine = Counting()
        self.scheduler = Scheduler(self.engine, limits, Metrics(), lambda _: None)  # type: ignore[arg-type]
        self.scheduler.start()

    def job(self, first: int = 10, length: int = 5, new: int = 3, seconds: float = 5, **options: Any) -> Job:
        ids = np.arange(first, first + length, dtype=np.int64)
        params = SamplingParams(max_new_tokens=new)
        answer = Answer(self.tokenizer, params, ids, options.pop("stops", frozenset()), (), None)
        return Job(
            options.pop("prompt", Prompt(ids, ids, (), (), None)),
            options.pop("pixels", []),
            options.pop("features", []),
            answer,
            reserved=length + new,
            deadline=time.monotonic() + seconds,
        )

    def submit(self, *jobs: Job) -> None:
        for job in jobs:
            self.scheduler.submit(job)

    def wait(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < end
            time.sleep(0.002)

    def done(self, *jobs: Job) -> None:
        self.wait(lambda: all(finished(job) for job in jobs))


def finished(job: Job) -> bool:
    last = job.events[-1] if job.events else None
    return isinstance(last, ApiError) or (last is not None and last.finish_reason is not None)


def failure(job: Job) -> int | None:
    return job.events[-1].status if job.events and isinstance(job.events[-1], ApiError) else None


@pytest.fixture
def world(tokenizer: Tokenizer) -> Iterator[World]:
    world = World(tokenizer, LIMITS)
    yield world
    world.engine.gate.set()
    world.scheduler.stop()


def test_they_join_and_leave_between_tokens(world: World) -> None:
    first, second = world.job(10, new=6), world.job(100, new=2)
    world.engine.gate.clear()
    world.submit(first)
    world.wait(lambda: first.sequence is not None)
    world.submit(second)
    world.engine.gate.set()
    world.done(first, second)
    assert world.engine.steps == [[5], [1, 5], [1, 1], [1], [1], [1]]
    assert first.answer.token_ids == [15, 16, 17, 18, 19, 20]
    assert second.answer.token_ids == [105, 106]
    assert world.scheduler.load == (0, 0)
    assert world.scheduler.prefixes.reserved_bytes == 0


def test_a_long_prompt_runs_in_parts_and_holds_up_nobody(world: World) -> None:
    short, long = world.job(10, new=8), world.job(100, length=100, new=2)
    world.engine.gate.clear()
    world.submit(short)
    world.wait(lambda: short.sequence is not None)
    world.submit(long)
    world.engine.gate.set()
    world.done(short, long)
    assert world.engine.steps[:5] == [[5], [1, 31], [1, 31], [1, 31], [1, 7]]
    assert long.answer.token_ids == [200, 201]


def test_the_end_token_ends_an_answer(world: World) -> None:
    job = world.job(10, new=50, stops=frozenset({17}))
    world.submit(job)
    world.done(job)
    assert job.answer.token_ids == [15, 16]
    assert job.events[-1].finish_reason == "stop"  # type: ignore[union-attr]


def test_the_queue_is_bounded(world: World) -> None:
    world.engine.gate.clear()
    jobs = [world.job(10 * n, new=1) for n in range(8)]
    world.submit(*jobs)
    with pytest.raises(ApiError) as full:
        world.submit(world.job())
    assert full.value.status == 429
    assert full.value.retry_after >= 1
    with pytest.raises(ApiError):
        world.scheduler.check_room(0)
    world.engine.gate.set()
    world.done(*jobs)
    world.scheduler.check_room(7)
    with pytest.raises(ApiError):
        world.scheduler.check_room(8)


def test_memory_decides_who_runs(tokenizer: Tokenizer) -> None:
    world = World(tokenizer, replace(LIMITS, cache_bytes=4 * GROWTH))
    try:
        jobs = [world.job(10 * n, length=20, new=10) for n in range(1, 6)]  # two times GROWTH each
        world.submit(*jobs)
        world.done(*jobs)
        assert max(map(len, world.engine.steps)) == 2
        assert all(len(job.answer.token_ids) == 10 for job in jobs)
    finally:
        world.scheduler.stop()


def test_who_leaves_is_gone_before_the_next_token(world: World) -> None:
    job, other = world.job(10, new=300), world.job(100, new=6)
    world.engine.gate.clear()
    world.submit(job, other)
    world.wait(lambda: job.sequence is not None and other.sequence is not None)
    world.scheduler.cancel(job)
    world.engine.gate.set()
    world.done(other)
    assert len(job.answer.token_ids) <= 1
    assert world.scheduler.load == (0, 0)
    waiting = world.job()
    waiting.cancelled = True
    world.submit(waiting)
    world.wait(lambda: world.scheduler.load == (0, 0))
    assert not waiting.events


def test_time_is_limited_also_in_the_queue(world: World) -> None:
    world.engine.gate.clear()
    running, waiting = [world.job(10 * n, new=300, seconds=0.2) for n in range(4)], world.job(seconds=0.2)
    world.submit(*running, waiting)
    time.sleep(0.3)
    world.engine.gate.set()
    world.done(*running, waiting)
    assert {failure(job) for job in (*running, waiting)} == {504}


def test_one_that_fails_takes_nobody_along(world: World) -> None:
    good, bad, late = world.job(10, new=6), world.job(100, new=6), world.job(200, new=6)
    world.engine.bad = {106}
    world.submit(good, bad, late)
    world.done(good, bad, late)
    assert failure(bad) == 500
    assert good.answer.token_ids == list(range(15, 21))
    assert late.answer.token_ids == list(range(205, 211))
    assert world.scheduler.alive
    world.engine.bad = set()
    again = world.job(100, new=6)
    world.submit(again)
    world.done(again)
    assert again.answer.token_ids == list(range(105, 111))


def test_an_answer_that_cannot_be_drawn_fails_alone(world: World) -> None:
    good, bad = world.job(10, new=6), world.job(100, new=6)
    bad.answer.draw = lambda logits: 1 / 0  # type: ignore[assignment, return-value]
    world.submit(good, bad)
    world.done(good, bad)
    assert failure(bad) == 500
    assert good.answer.token_ids == list(range(15, 21))


def test_a_picture_that_cannot_be_encoded_fails_alone(world: World) -> None:
    ids = np.array([1, -1, -1, 2])
    prompt = Prompt(ids, np.array([1, -77, -77, 2]), (1,), (2,), None)
    bad = world.job(length=4, prompt=prompt, pixels=[("wrong",)], features=[None])
    good = world.job(10, new=2)
    world.submit(bad, good)
    world.done(bad, good)
    assert failure(bad) == 500
    assert good.answer.token_ids == [15, 16]


def test_a_picture_is_encoded_once(world: World) -> None:
    ids = np.array([1, -1, -1, 2])
    pixels = (np.zeros((2, 8), np.float32), np.array([[4, 4]]))
    for last in (2, 3):
        prompt = Prompt(np.append(ids[:3], last), np.array([1, -77, -77, last]), (1,), (2,), None)
        job = world.job(length=4, prompt=prompt, pixels=[pixels], features=[None], new=1)
        world.submit(job)
        world.done(job)
        world.scheduler.prefixes.clear()
    assert world.engine.encoded == 1
    assert world.scheduler.features.bytes == 4 * 2 * 8


def test_what_is_known_is_not_run_again(world: World) -> None:
    first = world.job(10, length=20, new=4)
    world.submit(first)
    world.done(first)
    world.engine.steps.clear()
    turn = world.job(10, length=30, new=2)  # goes on from what the first said
    world.submit(turn)
    world.done(turn)
    assert turn.cached_tokens == 23  # the last token of an answer has not been run
    assert world.engine.steps[0] == [7]
    assert world.engine.copied == 0
    again = world.job(10, length=20, new=2)  # a beginning of it: copied, so that both can go on
    world.submit(again)
    world.done(again)
    assert again.cached_tokens == 19
    assert world.engine.copied == 19
    other = world.job(11, length=20, new=1)
    world.submit(other)
    world.done(other)
    assert other.cached_tokens == 0


def test_one_takes_from_another_that_runs(world: World) -> None:
    world.engine.gate.clear()
    first = world.job(10, length=20, new=300)
    world.submit(first)
    world.wait(lambda: first.sequence is not None)
    world.engine.gate.set()
    world.wait(lambda: bool(first.answer.token_ids))
    second = world.job(10, length=25, new=1)
    world.submit(second)
    world.done(second)
    assert second.cached_tokens >= 20
    world.scheduler.cancel(first)


def test_stopping_tells_everybody(world: World) -> None:
    world.engine.gate.clear()
    jobs = [world.job(10 * n, new=300) for n in range(6)]
    world.submit(*jobs)
    stopping = threading.Thread(target=world.scheduler.stop)
    stopping.start()
    time.sleep(0.05)
    world.engine.gate.set()
    stopping.join(5)
    assert {failure(job) for job in jobs} == {503}
    with pytest.raises(ApiError) as closed:
        world.submit(world.job())
    assert closed.value.status == 503


def test_draining_takes_no_more_and_ends_in_time(world: World) -> None:
    world.engine.gate.clear()
    short, long = world.job(10, new=2), world.job(100, new=300)
    world.submit(short, long)
    world.scheduler.drain(0.3)
    with pytest.raises(ApiError):
        world.submit(world.job())
    world.engine.gate.set()
    world.done(short)
    world.engine.gate.clear()
    time.sleep(0.4)
    world.engine.gate.set()
    world.done(long)
    assert short.answer.token_ids == [15, 16]
    assert failure(long) in (503, None)


def test_limits_that_make_no_sense() -> None:
    with pytest.raises(LlavaError, match="max_batch must be greater than 0"):
        ServingLimits(max_batch=0)
    with pytest.raises(LlavaError, match="--max-batch must be at most 16"):
        Scheduler(Counting(), ServingLimits(max_batch=17), Metrics(), lambda _: None)  # type: ignore[arg-type]


# --- what is kept -------------------------------------------------------------------------------


def kept(cache: PrefixCache, first: int, length: int) -> None:
    keys = np.arange(first, first + length)
    cache.keep(Held(Sequenced(keys.tolist()), keys))


def test_the_least_recently_used_goes_first() -> None:
    cache = PrefixCache(Counting(), 4 * GROWTH)  # type: ignore[arg-type]
    for first in (0, 100, 200):
        kept(cache, first, GROWTH)
    assert cache.begin(np.arange(0, 12), ()).length == 11  # touches the first
    assert cache.reserve(2 * GROWTH, np.arange(300, 310))
    assert cache.kept_bytes == 2 * GROWTH
    assert cache.begin(np.arange(100, 150), ()).length == 0
    assert cache.begin(np.arange(0, 50), ()).length == GROWTH
    assert not cache.reserve(3 * GROWTH, np.arange(3))
    cache.release(2 * GROWTH)
    assert cache.reserved_bytes == 0


def test_what_a_request_goes_on_from_is_not_thrown_away_for_it() -> None:
    cache = PrefixCache(Counting(), 4 * GROWTH)  # type: ignore[arg-type]
    for first in (0, 100, 200):
        kept(cache, first, GROWTH)
    assert cache.reserve(2 * GROWTH, np.arange(0, 20))
    assert cache.begin(np.arange(0, 20), ()).length == GROWTH


@pytest.mark.parametrize("seed", range(5))
def test_memory_is_never_more_than_allowed(seed: int) -> None:
    random = np.random.default_rng(seed)
    cache = PrefixCache(Counting(), 20 * GROWTH)  # type: ignore[arg-type]
    running: list[tuple[int, Any, np.ndarray]] = []
    for _ in range(300):
        keys = np.concatenate([np.arange(random.integers(1, 60)), random.integers(0, 9, random.integers(1, 60))])
        if random.random() < 0.5 and cache.reserve(len(keys), keys):
            sequence = cache.begin(keys, [Held(s, k) for _, s, k in running])
            assert sequence.length < len(keys)
            assert sequence.ids == keys[: sequence.length].tolist()
            sequence.ids = keys.tolist()
            running.append((len(keys), sequence, keys))
        elif running:
            tokens, sequence, keys = running.pop(int(random.integers(len(running))))
            cache.release(tokens)
            cache.keep(Held(sequence, keys))
        assert cache.reserved_bytes == sum(cache.size(tokens) for tokens, _, _ in running)
        assert cache.reserved_bytes + cache.kept_bytes <= 20 * GROWTH
