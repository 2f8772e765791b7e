"""A server in a process of its own, as `llava serve` starts it, in a world that the tests control.

Impatient limits, a model that fails on demand, and a network in which a few names lead to the tests' own web server.
"""

from __future__ import annotations

import argparse
import os
import socket
import time
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np

from paddle_llava import LlavaForConditionalGeneration, LlavaProcessor
from paddle_llava.engines.paddle_batch import PaddleBatchEngine
from paddle_llava.generation.batch import Work
from paddle_llava.serving.limits import ServingLimits
from paddle_llava.serving.server import listen, log_to_stderr, serve
from paddle_llava.serving.service import Service

LIMITS = ServingLimits(
    max_batch=8,
    max_queue=8,
    max_tokens=200,
    max_images=4,
    max_messages=100,
    max_body_bytes=4 * 2**20,
    bodies_bytes=16 * 2**20,
    max_image_bytes=2**20,
    max_pixels=4_000_000,
    cache_bytes=24 * 2**20,
    image_cache_bytes=2**20,
    request_time=20.0,
    header_time=1.0,
    body_time=1.5,
    idle_time=2.0,
    drain_time=1.5,
    fetch_time=1.0,
    max_connections=40,
)
PUBLIC = "93.184.216.34"
FAILS = "boom"
SLEEPS = "slowly"


class Engine:
    """A `BatchEngine` that fails on a prompt with FAILS at its third token, and takes its time over one with SLEEPS."""

    def __init__(self, inner: Any, failing: list[int], sleeping: list[int]) -> None:
        self._inner = inner
        self._marks = {"fail": failing, "sleep": sleeping}
        self._marked: dict[int, str] = {}
        self.config, self.max_tokens = inner.config, inner.max_tokens
        self.bytes_per_token, self.growth = inner.bytes_per_token, inner.growth
        self.encode_images, self.new_sequence, self.fork = inner.encode_images, inner.new_sequence, inner.fork

    def step(self, work: Sequence[Work]) -> np.ndarray:
        for one in work:
            if not one.generated:
                self._marked.pop(id(one.sequence), None)
                for mark, ids in self._marks.items():
                    if _holds(one.token_ids.tolist(), ids):
                        self._marked[id(one.sequence)] = mark
        marks = [(self._marked.get(id(one.sequence)), one) for one in work if one.generated]
        if any(mark == "fail" and one.token_ids[0] % 3 == 0 for mark, one in marks):
            raise RuntimeError("the model was told to fail: secret words")
        if any(mark == "sleep" for mark, _ in marks):
            time.sleep(0.05)
        return self._inner.step(work)


def _holds(ids: list[int], wanted: list[int]) -> bool:
    return any(ids[place : place + len(wanted)] == wanted for place in range(len(ids)))


def lead_names_to(port: int) -> None:
    """`pictures.test` is a public host, `inside.test` a private one, `rebind.test` the first time public and then
    private; whoever connects to the public address gets the tests' web server."""
    lookups = count()
    resolve, connect = socket.getaddrinfo, socket.create_connection

    def getaddrinfo(host: Any, service: Any, *rest: Any, **options: Any) -> list[Any]:
        name = host.decode() if isinstance(host, bytes) else host
        if name in ("pictures.test", "inside.test", "rebind.test"):
            public = name == "pictures.test" or (name == "rebind.test" and next(lookups) % 2 == 0)
            address = PUBLIC if public else "127.0.0.1"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, service if isinstance(service, int) else 80))]
        if name == "nowhere.test":
            raise socket.gaierror(-2, "Name or service not known")
        return resolve(host, service, *rest, **options)

    def create_connection(address: tuple[str, int], *rest: Any, **options: Any) -> socket.socket:
        return connect(("127.0.0.1", port) if address[0] == PUBLIC else address, *rest, **options)

    socket.getaddrinfo = getaddrinfo  # type: ignore[assignment]
    socket.create_connection = create_connection  # type: ignore[assignment]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--web", type=int, default=9)
    parser.add_argument("--api-key")
    parser.add_argument("--origin", action="append", default=[])
    options = parser.parse_args()
    lead_names_to(options.web)
    log_to_stderr(False)
    processor = LlavaProcessor.from_pretrained(options.checkpoint)
    tokenizer = processor.tokenizer
    marks = [tokenizer.encode_stretch(f" {word}", follows="text")[0] for word in (FAILS, SLEEPS)]
    engine = Engine(PaddleBatchEngine(LlavaForConditionalGeneration.from_pretrained(options.checkpoint)), *marks)
    service = Service(engine, processor, "llava-test", LIMITS, temperature=0.0)
    with listen("127.0.0.1", 0) as listener:
        print(listener.getsockname()[1], os.getpid(), flush=True)
        serve(service, listener, api_key=options.api_key, origins=options.origin)


if __name__ == "__main__":
    main()
