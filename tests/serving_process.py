"""A server for tests to talk to, in a process of its own, and what they tell it."""

from __future__ import annotations

import base64
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from openai import OpenAI
from PIL import Image

HERE = Path(__file__).parent
SRC = HERE.parent / "src"


class Served:
    """A server process: its address, its log, what it holds, and a client for it."""

    def __init__(self, checkpoint: Path, *flags: str) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (for as long as the process)
        environment = os.environ | {"PYTHONPATH": f"{SRC}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, HERE / "server_under_test.py", checkpoint, *flags],
            stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline().split()
        if not line:
            pytest.fail(f"the server did not start:\n{self.said()}")
        self.port = int(line[0])
        self.url = f"http://127.0.0.1:{self.port}"
        self.chat = f"{self.url}/v1/chat/completions"
        self._wait()

    def _wait(self) -> None:
        for _ in range(200):
            with suppress(httpx.ConnectError):
                httpx.get(f"{self.url}/health")
                return
            time.sleep(0.05)
        pytest.fail(f"the server does not answer:\n{self.said()}")

    def client(self, **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, **options})

    def post(self, **body: Any) -> httpx.Response:
        return httpx.post(self.chat, json=body, timeout=30)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        page = httpx.get(f"{self.url}/metrics", timeout=30).text
        found = [line for line in page.splitlines() if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def memory(self) -> int:
        """Bytes of resident pages."""
        return psutil.Process(self.process.pid).memory_info().rss

    def files(self) -> int:
        return psutil.Process(self.process.pid).num_fds()

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


def data_uri(image: Image.Image | bytes, kind: str = "png") -> str:
    if isinstance(image, Image.Image):
        stream = io.BytesIO()
        image.save(stream, kind)
        image = stream.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def user(*parts: str) -> dict[str, Any]:
    """A user's message of texts and URLs of pictures."""
    content = [
        {"type": "image_url", "image_url": {"url": part}}
        if part.startswith(("data:", "http"))
        else {"type": "text", "text": part}
        for part in parts
    ]
    return {"role": "user", "content": content}
