"""Who runs when: requests join and leave between tokens, and every step runs all that are there."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paddle_llava.errors import LlavaError
from paddle_llava.generation.batch import BatchEngine, Work
from paddle_llava.generation.generate import without_image_token
from paddle_llava.serving.answer import Answer, Piece
from paddle_llava.serving.errors import ApiError, out_of_time, server_fault, shutting_down, too_busy
from paddle_llava.serving.feature_cache import FeatureCache
from paddle_llava.serving.limits import ServingLimits
from paddle_llava.serving.metrics import Metrics
from paddle_llava.serving.prefix_cache import Held, PrefixCache
from paddle_llava.serving.prompt import Pixels, Prompt


@dataclass(eq=False)
class Job:
    """A request on its way: `events` are what happened to its answer so far, taken by whoever waits for `ready`.

    `pixels` are those of each picture, None where its features are known. `deadline` is of the monotonic clock.
    """

    prompt: Prompt
    pixels: list[Pixels | None]
    features: list[Any]
    answer: Answer
    reserved: int
    deadline: float
    arrived: float = field(default_factory=time.monotonic)
    events: deque[Piece | ApiError] = field(default_factory=deque)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False
    cached_tokens: int = 0
    sequence: Any = None
    next_token: int | None = None

    @property
    def keys(self) -> np.ndarray:
        """Of all tokens, generated ones too."""
        return np.concatenate([self.prompt.keys, np.array(self.answer.token_ids, np.int64)])


class Scheduler:
    """Runs jobs on a thread of its own. `notify` is called there after each step with the jobs that have new events."""

    def __init__(
        self,
        engine: BatchEngine,
        limits: ServingLimits,
        metrics: Metrics,
        notify: Callable[[list[Job]], None],
    ) -> None:
        if limits.max_batch > engine.max_tokens // 2:
            raise LlavaError(f"--max-batch must be at most {engine.max_tokens // 2}, found {limits.max_batch}")
        self.engine = engine
        self.limits = limits
        self.metrics = metrics
        self.features = FeatureCache(limits.image_cache_bytes)
        self.prefixes = PrefixCache(engine, limits.cache_bytes)
        self._notify = notify
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._told: list[Job] = []
        self._stopping = self._draining = False
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    # --- from other threads

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End whatever is left, with an error for each, and the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def drain(self, seconds: float) -> None:
        """Take no more jobs; those that are here have so much time left."""
        with self._changed:
            self._draining = True
            for job in [*self._running, *self._waiting]:
                job.deadline = min(job.deadline, time.monotonic() + seconds)

    def check_room(self, coming: int) -> None:
        """Raises `ApiError` when no further job can be taken, with `coming` on their way here."""
        with self._changed:
            self._check_room(coming)

    def submit(self, job: Job) -> None:
        """Raises `ApiError` when the queue is full."""
        with self._changed:
            self._check_room(0)
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Whoever asked has gone: `job` leaves before the next step, and hears no more."""
        job.cancelled = True
        with self._changed:
            self._changed.notify()

    @property
    def alive(self) -> bool:
        """Whether jobs are taken."""
        return self._thread.is_alive() and not self._draining and not self._stopping

    @property
    def load(self) -> tuple[int, int]:
        """How many run, and how many wait."""
        return len(self._running), len(self._waiting)

    def _check_room(self, coming: int) -> None:
        if not self.alive:
            raise shutting_down()
        if len(self._running) + len(self._waiting) + coming >= self.limits.max_batch + self.limits.max_queue:
            raise too_busy("too many requests are waiting; try again later", self._retry_after())

    def _retry_after(self) -> int:
        """Seconds: about how long a request took lately."""
        return max(1, min(60, round(self.metrics.recent_seconds)))

    # --- on the scheduler's thread

    def _run(self) -> None:
        while self._wait():
            try:
                self._leave()
                self._join()
                self._step()
            except Exception as error:  # a fault of ours: nobody may wait for ever
                self.metrics.fault(error)
                for job in [*self._running, *self._waiting]:
                    self._end(job, server_fault(), keep=False)
                self.prefixes.clear()
            self._tell()
        for job in [*self._running, *self._waiting]:
            self._end(job, shutting_down(), keep=False)
        self._tell()

    def _wait(self) -> bool:
        """Until there is something to do; False when it is time to stop."""
        with self._changed:
            while not (self._running or self._waiting or self._stopping):
                self._changed.wait()
            return not self._stopping

    def _leave(self) -> None:
        now = time.monotonic()
        for job in [*self._running, *self._waiting]:
            if job.cancelled:
                self._end(job, None)
            elif now > job.deadline:
                self._end(job, shutting_down() if self._draining else out_of_time(self.limits.request_time))

    def _join(self) -> None:
        while self._waiting and len(self._running) < self.limits.max_batch:
            job = self._waiting[0]
            if not self.prefixes.reserve(job.reserved, job.prompt.keys):
                break  # until somebody leaves; those behind wait their turn
            with self._changed:
                self._waiting.popleft()
                self._running.append(job)
            self.metrics.joined(time.monotonic() - job.arrived)

    def _step(self) -> None:
        """One token of every answer, and of the prompts as much as a step can take besides."""
        jobs, work = [], []
        for job in self._running:
            if job.next_token is not None:
                jobs.append(job)
                work.append(Work(job.sequence, np.array([job.next_token]), (), True))
        room = self.engine.max_tokens - len(work)
        for job in [job for job in self._running if job.next_token is None]:
            if room <= 0:
                break
            part = self._part_of_prompt(job, room)
            if part is None:
                continue  # it has failed
            room -= len(part.token_ids)
            jobs.append(job)
            work.append(part)
        if work:
            self._take(jobs, self._logits(work))

    def _part_of_prompt(self, job: Job, room: int) -> Work | None:
        prompt = job.prompt
        try:
            if job.sequence is None:
                others = [Held(o.sequence, o.keys) for o in self._running if o.sequence is not None]
                job.sequence = self.prefixes.begin(prompt.keys, others)
                job.cached_tokens = job.sequence.length
                self.metrics.prompt(len(prompt.ids), job.cached_tokens)
            start = job.sequence.length
            end = min(start + room, len(prompt.ids))
            features = []
            for number, (first, count) in enumerate(zip(prompt.starts, prompt.counts, strict=True)):
                if first < end and first + count > start:
                    picture = self._features_of(job, number)
                    features.append(picture[max(start - first, 0) : min(end - first, count)])
            return Work(job.sequence, prompt.ids[start:end], features)
        except Exception as error:
            self.metrics.fault(error)
            self._end(job, server_fault(), keep=False)
            return None

    def _features_of(self, job: Job, number: int) -> Any:
        if job.features[number] is None:
            key = int(job.prompt.keys[job.prompt.starts[number]])
            features = self.features.get(key)
            if features is None:
                pixels = job.pixels[number]
                assert pixels is not None
                features = self.engine.encode_images(*pixels)[0]
                self.metrics.pictures_encoded.inc()
                size = 4 * job.prompt.counts[number] * self.engine.config.text.hidden_size
                self.features.put(key, features, size)
            job.features[number], job.pixels[number] = features, None
        return job.features[number]

    def _logits(self, work: list[Work]) -> list[np.ndarray | None]:
        """Of each, None for those that cannot be run: one that fails must not take the others along."""
        try:
            return list(self.engine.step(work))
        except Exception as error:
            self.metrics.fault(error)
            results: list[np.ndarray | None] = []
            for one in work:
                try:
                    results.append(self.engine.step([one])[0])
                except Exception as again:
                    self.metrics.fault(again)
                    results.append(None)
            return results

    def _take(self, jobs: list[Job], logits: list[np.ndarray | None]) -> None:
        for job, row in zip(jobs, logits, strict=True):
            if row is None:
                self._end(job, server_fault(), keep=False)
                continue
            if job.sequence.length < len(job.prompt.ids):
                continue
            row = without_image_token(row[None], self.engine.config.image_token_id)[0]
            if not job.answer.token_ids:
                self.metrics.first_token(time.monotonic() - job.arrived)
            try:
                piece = job.answer.draw(row)
            except Exception as error:
                self.metrics.fault(error)
                self._end(job, server_fault(), keep=False)
                continue
            self.metrics.tokens.inc()
            job.next_token = job.answer.token_ids[-1] if job.answer.token_ids else None
            if piece.finish_reason:
                self._end(job, piece)
            elif piece.text or piece.logprobs:
                self._event(job, piece)

    def _end(self, job: Job, event: Piece | ApiError | None, *, keep: bool = True) -> None:
        """`job` leaves; what it holds is kept for those that go on from it."""
        with self._changed:
            if job in self._running:
                self._running.remove(job)
                self.prefixes.release(job.reserved)
            elif job in self._waiting:
                self._waiting.remove(job)
        if keep and job.sequence is not None:
            self.prefixes.keep(Held(job.sequence, job.keys))
        job.sequence, job.pixels, job.features = None, [], []
        if event is not None:
            self._event(job, event)

    def _event(self, job: Job, event: Piece | ApiError) -> None:
        job.events.append(event)
        self._told.append(job)

    def _tell(self) -> None:
        told, self._told = self._told, []
        self.metrics.load(*self.load, self.prefixes.reserved_bytes, self.prefixes.kept_bytes, self.features.bytes)
        if told:
            self._notify(told)
