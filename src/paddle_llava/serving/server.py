"""`llava serve`: a model behind an address, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from paddle_llava.console import note
from paddle_llava.errors import LlavaError
from paddle_llava.generation.sampling import SamplingParams
from paddle_llava.opening import Options, open_for_many
from paddle_llava.serving.api import create_app
from paddle_llava.serving.connection import bounded
from paddle_llava.serving.limits import ServingLimits
from paddle_llava.serving.service import Service

if TYPE_CHECKING:
    from typing_extensions import Unpack


def open_service(
    model_path: str,
    limits: ServingLimits,
    *,
    name: str | None = None,
    temperature: float = 0.2,
    own_cache_size: bool = True,
    **options: Unpack[Options],
) -> Service:
    """The model of that name or folder, ready to serve as `name` (default: the last part of `model_path`).

    Without `own_cache_size` the keys and values may take a quarter of the memory that is free once it is loaded.
    """
    SamplingParams(temperature=temperature)  # whatever can be wrong is found before weights are read
    engine, processor = open_for_many(model_path, **options)
    name = name or os.path.basename(os.path.abspath(model_path))
    if not own_cache_size:
        one = engine.bytes_per_token * engine.config.text.max_position_embeddings
        limits = replace(limits, cache_bytes=max(free_memory() // 4, 2 * one))
    return Service(engine, processor, name, limits, temperature=temperature)


def serve(
    service: Service, listener: socket.socket, *, api_key: str | None = None, origins: Sequence[str] = ()
) -> None:
    """Answer what arrives at `listener` until SIGTERM or Ctrl-C, then let what runs end."""
    limits = service.limits
    config = uvicorn.Config(
        create_app(service, api_key=api_key, origins=origins),
        http=bounded(limits.max_connections, limits.header_time),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=round(limits.idle_time),
        timeout_graceful_shutdown=round(limits.drain_time) + 2,
    )
    host, port, *_ = listener.getsockname()
    note(f"serving {service.name} at http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C stops)")
    asyncio.run(_Server(config, service).serve([listener]))
    note("stopped")


def listen(host: str, port: int) -> socket.socket:
    """A socket at that address. Raises `LlavaError` when it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LlavaError(f"cannot listen at {host}:{port}: {reason}; choose another --host or --port") from None
    return listener


def log_to_stderr(debug: bool) -> None:
    """A line for each request, of sizes and times only; with `debug`, tracebacks too."""
    log = logging.getLogger("paddle_llava.serving")
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("llava: %(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.handlers = [handler]
    log.propagate = False
    for other in ("uvicorn", "httpx", "httpcore"):  # their lines quote addresses and what clients sent
        logging.getLogger(other).setLevel(logging.CRITICAL + 1)


def free_memory(meminfo: Path = Path("/proc/meminfo"), container: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that programs may still take, of the machine and of the container they run in (a cgroup v2, whose files are
    in the folder `container`); 4 GiB where the system does not say."""
    try:
        rows = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = 4 * 2**30
    try:
        limit, used = (int((container / f"memory.{kind}").read_text()) for kind in ("max", "current"))
        held = dict(line.split() for line in (container / "memory.stat").read_text().splitlines())
        return min(free, max(limit - used + int(held["inactive_file"]), 0))  # of which the system lets go
    except (OSError, KeyError, ValueError):  # no container, or one without a limit: "max"
        return free


class _Server(uvicorn.Server):
    """Ends with exit code 0, and with a word to those whose answers take longer than the time to drain."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        running, waiting = self._service.scheduler.load
        if running or waiting:
            note(f"stopping: {running + waiting} answers may take {self._service.limits.drain_time:g} seconds more")
        self._service.scheduler.drain(self._service.limits.drain_time)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
