"""One server for all tests of serving, and a web server that it fetches pictures from."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from serving_process import Served, noise


class Pictures(BaseHTTPRequestHandler):
    """`/picture`; `/to/URL` redirects there; `/slow` never ends; `/rubbish`, `/empty` and anything else have none."""

    def do_GET(self) -> None:
        if self.path == "/picture":
            stream = io.BytesIO()
            noise(90, 120, seed=5).save(stream, "png")
            self.answer(200, stream.getvalue())
        elif self.path.startswith("/to/"):
            self.answer(302, b"", location=self.path[4:])
        elif self.path == "/slow":
            self.answer(200, b"", length=1000)
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.05)
        elif self.path == "/huge":
            self.answer(200, b"", length=10**12)
        else:
            self.answer({"/rubbish": 200, "/empty": 200}.get(self.path, 404), b"no picture"[: len(self.path) - 6])

    def answer(self, status: int, body: bytes, length: int | None = None, location: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Web(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="session")
def web() -> Iterator[Web]:
    server = Web(("127.0.0.1", 0), Pictures)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def served(demo_checkpoint: Path, web: Web) -> Iterator[Served]:
    """One server for all tests that leave it as it was."""
    server = Served(demo_checkpoint, "--web", str(web.server_port))
    yield server
    server.stop()
