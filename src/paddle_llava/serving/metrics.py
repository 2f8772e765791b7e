"""What Prometheus is told: counts, sizes and times, nothing of what was said."""

from __future__ import annotations

import logging
from collections import deque
from statistics import median

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

log = logging.getLogger("paddle_llava.serving")


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by path and HTTP status.", ["path", "status"])
        self.disconnects = self._counter("disconnects", "Clients that left before their answer was complete.")
        self.tokens = self._counter("generated_tokens", "Tokens generated.")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self.cached_tokens = self._counter("cached_prompt_tokens", "Tokens of prompts that had not to be run again.")
        self.pictures = self._counter("pictures", "Pictures in requests.")
        self.pictures_encoded = self._counter("pictures_encoded", "Pictures that went through the vision tower.")
        self.faults = self._counter("model_faults", "Steps that failed by a fault of the server.")
        self._running = self._gauge("running", "Requests that run.")
        self._waiting = self._gauge("waiting", "Requests that wait.")
        self._reserved = self._gauge("cache_reserved_bytes", "Keys and values reserved for what runs.")
        self._kept = self._gauge("cache_kept_bytes", "Keys and values kept for later requests.")
        self._images = self._gauge("image_cache_bytes", "Features of pictures that are kept.")
        self._queued = self._histogram("queue_seconds", "From a request's arrival until it runs.")
        self._first = self._histogram("first_token_seconds", "From a request's arrival to its first token.")
        self._whole = self._histogram("request_seconds", "From a request's first byte to the end of its answer.")
        self._recent: deque[float] = deque([1.0], maxlen=16)

    @property
    def recent_seconds(self) -> float:
        """How long the latest requests took, in the middle."""
        return median(self._recent)

    def prompt(self, tokens: int, cached: int) -> None:
        self.prompt_tokens.inc(tokens)
        self.cached_tokens.inc(cached)

    def joined(self, seconds: float) -> None:
        self._queued.observe(seconds)

    def first_token(self, seconds: float) -> None:
        self._first.observe(seconds)

    def answered(self, seconds: float) -> None:
        self._whole.observe(seconds)
        self._recent.append(seconds)

    def load(self, running: int, waiting: int, reserved: int, kept: int, images: int) -> None:
        for gauge, value in zip(
            (self._running, self._waiting, self._reserved, self._kept, self._images),
            (running, waiting, reserved, kept, images),
            strict=True,
        ):
            gauge.set(value)

    def fault(self, error: BaseException) -> None:
        """A fault of ours: its kind and place are logged, not its message, which could quote a request."""
        self.faults.inc()
        trace = error.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
        log.error("the model failed: %s at %s", type(error).__name__, place)
        log.debug("the whole of it", exc_info=error)

    def page(self) -> bytes:
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(f"llava_{name}", text, labels or [], registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"llava_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"llava_{name}", text, registry=self.registry, buckets=SECONDS)
