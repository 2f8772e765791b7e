"""Connections that cannot be held open by doing nothing: for slow senders, endless headers, and readers that do not
read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from paddle_llava.serving.errors import ApiError

MAX_HEADER_BYTES = 32 * 2**10
LINGER_SECONDS = 5.0


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a time and a size for a request's headers, a time for a stuck reader, and a number
    of connections."""

    max_connections = 512
    header_time = 10.0
    write_time = 30.0

    _unparsed_bytes = 0
    _header_bytes = 0
    _in_body = False
    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.write(_TOO_MANY)
            transport.close()
            self._abort_later()
        else:
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._header_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._header_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._await_headers()  # the next request of a connection that is kept, or the rest of one that was refused
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._header_timer is not None and not self._in_body and self._unparsed_bytes > MAX_HEADER_BYTES:
            self.send_400_response("The headers are too large.")

    def on_url(self, url: bytes) -> None:
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(name, value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_body = True
        self._stop_header_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        if self._header_timer is not None:  # the answer came before the body's end
            self._await_headers()
        super().on_message_complete()

    def _count(self, *parts: bytes) -> None:
        self._header_bytes += sum(map(len, parts))
        if self._header_bytes > MAX_HEADER_BYTES:
            raise ValueError("the headers are too large")  # the parser makes it a bad request

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.write_time, self.transport.abort)

    def resume_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._abort_later()

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(msg)
        self._abort_later()

    def _await_headers(self) -> None:
        self._stop_header_timer()
        self._unparsed_bytes = self._header_bytes = 0
        self._header_timer = self.loop.call_later(self.header_time, self._too_slow)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_slow(self) -> None:
        self._header_timer = None
        self.transport.close()
        self._abort_later()

    def _abort_later(self) -> None:
        """A transport that is closed still waits for its reader."""
        transport: Any = self.transport
        self.loop.call_later(LINGER_SECONDS, transport.abort)


def bounded(max_connections: int, header_time: float) -> type[BoundedProtocol]:
    """The protocol with these limits, as uvicorn makes one for each connection by itself."""
    return type("BoundedProtocol", (BoundedProtocol,), {"max_connections": max_connections, "header_time": header_time})


def _response(error: ApiError) -> bytes:
    body = json.dumps(error.body())
    return (
        f"HTTP/1.1 {error.status} Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    ).encode()


_TOO_MANY = _response(ApiError(503, "too many connections", kind="server_error", code="overloaded"))
