"""Whether a server keeps anything that it should not: memory, files, threads and slots, minute after minute under load.

    python benchmarks/serve_soak.py [--minutes 10] [--clients 8] [--model-path FOLDER]

Eight clients hold conversations without a pause, and one more leaves in the middle of each of its answers. The memory
for keys and values is set low, so that it is full soon. Exits with 1 when memory grows by more than 5 % after the first
fifth of the time, or when afterwards anything still runs.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil

from peers import machine, prepare, scratch_folder, table
from serve_clients import Server, llava_server, run

ALLOWED_GROWTH = 0.05


class Sample(NamedTuple):
    minute: float
    memory: float
    files: int
    threads: int
    running: int
    waiting: int
    cache: float


def main() -> None:
    options = _options()
    prepare(options.threads)
    print(
        f"### A soak of {options.minutes:g} minutes, {options.clients} clients\n\n{machine(options.threads)}",
        flush=True,
    )
    with scratch_folder(None) as scratch:
        folder = options.model_path or scratch / "model"
        if not options.model_path:
            from paddle_llava.demo.model import write_untrained

            write_untrained(folder)
        with llava_server(folder, "--cache-mib", "64", "--engine", options.engine) as server:
            samples, load = _soak(server, options)
            rest = _sample(server, samples[-1].minute)
    rows = [[f"{s.minute:.1f}", f"{s.memory:.0f}", *map(str, s[2:6]), f"{s.cache:.0f}"] for s in (*samples, rest)]
    print(table(["minute", "memory, MiB", "files", "threads", "running", "waiting", "cache, MiB"], rows))
    print(f"\n{len(load.turns)} turns, {load.tokens_per_second:.0f} tokens/s, errors: {load.errors or 'none'}")
    _verdict(samples, rest, sum(load.errors.values()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--samples", type=int, default=20, help="looks at the process (default: %(default)s)")
    parser.add_argument("--model-path", type=Path, help="default: the demonstration's shape, random")
    parser.add_argument("--engine", default="auto", help="paddle or openvino (default: the server's choice)")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def _soak(server: Server, options: argparse.Namespace) -> tuple[list[Sample], object]:
    start, seconds = time.monotonic(), 60 * options.minutes
    samples: list[Sample] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(seconds / options.samples):
            samples.append(_sample(server, (time.monotonic() - start) / 60))

    helpers = [threading.Thread(target=look), threading.Thread(target=_leave_again_and_again, args=(server, over))]
    for helper in helpers:
        helper.start()
    load = run(server, options.clients, options.tokens, lambda _: time.monotonic() - start > seconds)
    over.set()
    for helper in helpers:
        helper.join()
    time.sleep(3)
    samples.append(_sample(server, options.minutes))
    return samples, load


def _leave_again_and_again(server: Server, over: threading.Event) -> None:
    """A client that never waits for the end."""
    body = {"messages": [{"role": "user", "content": "Go on."}], "max_tokens": 200, "stream": True}

    async def leave() -> None:
        async with (
            httpx.AsyncClient(timeout=60) as http,
            http.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response,
        ):
            async for _ in response.aiter_lines():
                return

    while not over.wait(0.5):
        asyncio.run(leave())


def _sample(server: Server, minute: float) -> Sample:
    process = psutil.Process(server.process.pid)
    told = server.metrics()
    return Sample(
        minute,
        process.memory_info().rss / 2**20,
        process.num_fds(),
        process.num_threads(),
        int(told["llava_running"]),
        int(told["llava_waiting"]),
        (told["llava_cache_kept_bytes"] + told["llava_cache_reserved_bytes"]) / 2**20,
    )


def _verdict(samples: list[Sample], rest: Sample, errors: int) -> None:
    settled = samples[len(samples) // 5 :]
    growth = settled[-1].memory / settled[0].memory - 1
    files = settled[-1].files - settled[0].files
    holds = growth <= ALLOWED_GROWTH and files <= 8 and not errors and rest.running == rest.waiting == 0
    print(
        f"{'OK' if holds else 'FAILED'}: memory {100 * growth:+.1f} % and {files:+d} files since the first fifth, "
        f"{rest.running} running and {rest.waiting} waiting at the end, {errors} errors"
    )
    sys.exit(not holds)


if __name__ == "__main__":
    main()
