"""Connections that cannot be held open by doing nothing: for slow senders, endless headers, and readers that do not
read."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 32 * 2**10
LINGER_SECONDS = 5.0


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a time and a size for a request's headers, and a time for a reader that is stuck."""

    header_time = 10.0
    write_time = 30.0

    _header_bytes = 0
    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._header_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._header_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._await_headers()  # the next request of a connection that is kept
        if self._header_timer is not None:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES and b"\r\n\r\n" not in data:
                self.send_400_response("The headers are too large.")
                return
        super().data_received(data)

    def on_headers_complete(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
        super().on_headers_complete()

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
        self._header_bytes = 0
        self._header_timer = self.loop.call_later(self.header_time, self._too_slow)

    def _too_slow(self) -> None:
        self._header_timer = None
        self.transport.close()
        self._abort_later()

    def _abort_later(self) -> None:
        """A transport that is closed still waits for its reader."""
        transport: Any = self.transport
        self.loop.call_later(LINGER_SECONDS, transport.abort)


def bounded(header_time: float) -> type[BoundedProtocol]:
    return type("BoundedProtocol", (BoundedProtocol,), {"header_time": header_time})
