"""Servers in processes of their own, and clients that hold conversations with them and take the time."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from PIL import Image

logging.getLogger("httpx").setLevel(logging.WARNING)  # Paddle has everybody's lines printed

QUESTIONS = (
    "What is in the picture?",
    "Describe this picture in detail.",
    "Which colours are there?",
    "And what is behind it?",
    "Is it day or night?",
    "Why?",
)
PICTURES = 8
START_SECONDS = 300
_LLAVA = "import sys; from paddle_llava.cli import main; sys.exit(main())"
# Vicuna's, as the models were trained; transformers has no template without one.
CHAT_TEMPLATE = (
    "{{ bos_token }}A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. {% for m in messages %}{% if m.role == 'user' %}"
    "USER: {% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{% if p.type == 'image' %}"
    "<image>\n{% endif %}{% endfor %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
    "{% endfor %}{% endif %} {% else %}ASSISTANT: {% if m.content is string %}{{ m.content }}{% else %}"
    "{{ m.content[0].text }}{% endif %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


class Server(NamedTuple):
    """Where it is, what it calls its model, and its process."""

    url: str
    model: str
    process: subprocess.Popen[bytes]

    def metrics(self) -> dict[str, float]:
        """Those without labels, at one moment."""
        page = httpx.get(f"{self.url}/metrics", timeout=30).text
        pairs = [line.split() for line in page.splitlines() if not line.startswith("#") and "{" not in line]
        return {name: float(value) for name, value in pairs}


@contextmanager
def llava_server(model: Path, *flags: str) -> Iterator[Server]:
    command = [sys.executable, "-c", _LLAVA, "serve", "--model-path", str(model), "--served-model-name", "model"]
    with _serving(command, "/health", flags) as (url, process):
        yield Server(url, "model", process)


@contextmanager
def transformers_server(model: Path, *flags: str) -> Iterator[Server]:
    """`transformers serve`, in float32 as ours; the checkpoint must have a chat template."""
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model), "--dtype", "float32"]
    with _serving([*command, "--device", "cpu"], "/health", flags) as (url, process):
        yield Server(url, str(model), process)


@contextmanager
def _serving(
    command: Sequence[str], health: str, flags: Sequence[str]
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, "--port", str(port), *flags], stdout=log, stderr=log)
        try:
            _wait(url + health, process, lambda: _tail(log))
            yield url, process
        finally:
            process.terminate()
            process.wait(60)


def _tail(log: Any) -> str:
    log.seek(0)
    return log.read()[-2000:].decode("utf-8", "replace")


def _wait(url: str, process: subprocess.Popen[bytes], said: Callable[[], str]) -> None:
    for _ in range(START_SECONDS * 10):
        if process.poll() is not None:
            raise SystemExit(f"the server ended:\n{said()}")
        try:
            httpx.get(url, timeout=5)
            return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise SystemExit(f"the server does not answer:\n{said()}")


def with_template(folder: Path) -> None:
    """Put Vicuna's template into a checkpoint, where `transformers` looks for it."""
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def pictures() -> list[str]:
    """Data URIs of JPEGs of a photograph's size."""
    found = []
    for seed in range(PICTURES):
        small = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(small).resize((640, 480)).save(stream, "jpeg")
        found.append("data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode())
    return found


@dataclass
class Turn:
    """Of one answer: seconds to its first token and in all, and its tokens."""

    first: float = 0.0
    seconds: float = 0.0
    tokens: int = 0


@dataclass
class Load:
    """What a number of clients saw: their turns, and what went wrong by kind."""

    clients: int
    seconds: float = 0.0
    turns: list[Turn] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        return sum(turn.tokens for turn in self.turns) / self.seconds

    def first_token(self, percent: float) -> float:
        """Milliseconds."""
        return float(np.percentile([1000 * turn.first for turn in self.turns] or [np.nan], percent))


def run(server: Server, clients: int, tokens: int, stop: Callable[[int], bool]) -> Load:
    """`clients` at a time, each asking again until `stop(turns of its own)` says so."""
    return asyncio.run(_run(server, clients, tokens, stop))


async def _run(server: Server, clients: int, tokens: int, stop: Callable[[int], bool]) -> Load:
    load, shown = Load(clients), pictures()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(timeout=600, limits=limits, trust_env=False) as http:
        start = time.perf_counter()
        await asyncio.gather(*(_client(http, server, number, tokens, stop, shown, load) for number in range(clients)))
        load.seconds = time.perf_counter() - start
    return load


async def _client(
    http: httpx.AsyncClient, server: Server, number: int, tokens: int, stop: Callable[[int], bool],
    shown: list[str], load: Load,
) -> None:  # fmt: skip
    """Conversations of one to four turns, three of four about a picture."""
    random = np.random.default_rng(number)
    done = 0
    while not stop(done):
        messages: list[dict[str, Any]] = []
        with_picture = bool(random.integers(0, 4))
        for _ in range(random.integers(1, 5)):
            content: list[dict[str, Any]] = [{"type": "text", "text": QUESTIONS[random.integers(0, len(QUESTIONS))]}]
            if with_picture and not messages:
                content.append({"type": "image_url", "image_url": {"url": shown[random.integers(0, len(shown))]}})
            messages.append({"role": "user", "content": content})
            try:
                text, turn = await _ask(http, server, messages, tokens)
                load.turns.append(turn)
            except Exception as error:
                kind = f"HTTP {error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else repr(error)
                load.errors[kind] = load.errors.get(kind, 0) + 1
                break
            finally:
                done += 1
            messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
            if stop(done):
                break


async def _ask(
    http: httpx.AsyncClient, server: Server, messages: list[dict[str, Any]], tokens: int
) -> tuple[str, Turn]:
    body = {"model": server.model, "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": True}
    turn, text, start = Turn(), "", time.perf_counter()
    async with http.stream("POST", f"{server.url}/v1/chat/completions", json=body | _USAGE) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(str(event["error"])[:200])
            for choice in event["choices"]:
                piece = choice["delta"].get("content")
                if piece:
                    turn.first = turn.first or time.perf_counter() - start
                    text += piece
            if event.get("usage"):
                turn.tokens = event["usage"]["completion_tokens"]
    turn.seconds = time.perf_counter() - start
    turn.first = turn.first or turn.seconds
    return text, turn


_USAGE = {"stream_options": {"include_usage": True}}
