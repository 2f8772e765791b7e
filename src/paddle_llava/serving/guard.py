"""Around the whole application: who may ask from a browser, what is counted and logged, and no fault that gets out."""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paddle_llava.errors import LlavaError
from paddle_llava.serving.errors import CLOSED_REQUEST, ApiError
from paddle_llava.serving.metrics import Metrics

log = logging.getLogger("paddle_llava.serving")


class Guard:
    """ASGI middleware. What it logs of a request is its route, its sizes and its times."""

    def __init__(self, app: ASGIApp, metrics: Metrics, origins: Sequence[str]) -> None:
        self.app = app
        self._metrics = metrics
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, seen = time.monotonic(), _Seen()
        scope.setdefault("state", {})

        async def counted_receive() -> Message:
            message = await receive()
            seen.received += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
            seen.sent += len(message.get("body", b""))
            await send(message)
            seen.complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            if not self._may_ask(scope):
                await _refuse(counted_send)
            else:
                await self.app(scope, counted_receive, counted_send)
        except ClientDisconnect:
            pass
        except Exception as error:
            self._metrics.fault(error)
        finally:
            self._tell(scope, seen, time.monotonic() - started)

    def _may_ask(self, scope: Scope) -> bool:
        """A browser says on whose behalf it asks. Only a page of ours may: one whose address is ours and is no name
        that its owner could point here (DNS rebinding), or one that the operator has listed."""
        headers = dict(scope["headers"])
        origin = headers.get(b"origin", b"").decode("latin-1")
        if not origin or origin in self._origins:
            return True
        try:
            address = urlsplit(origin)
        except ValueError:
            return False
        host = headers.get(b"host", b"").decode("latin-1")
        return address.netloc == host and _cannot_be_rebound(address.hostname or "")

    def _tell(self, scope: Scope, seen: _Seen, seconds: float) -> None:
        route = scope.get("route")
        path = getattr(route, "path", None) or "other"
        self._metrics.requests.labels(path, seen.status or CLOSED_REQUEST).inc()
        if not seen.complete or seen.status == CLOSED_REQUEST:
            self._metrics.disconnects.inc()
        job = scope["state"].get("job")
        if job is None:
            log.info("%s %s: %d bytes in, %d out, %.3f s", seen.status, path, seen.received, seen.sent, seconds)
            return
        log.info(
            "%s %s: %d bytes in, %d out, %.3f s; %d pictures, %d tokens (%d cached), %d generated",
            seen.status, path, seen.received, seen.sent, seconds,
            len(job.prompt.starts), len(job.prompt.ids), job.cached_tokens, len(job.answer.token_ids),
        )  # fmt: skip


class _Seen:
    """Of one request."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.complete = False
        self.received = 0
        self.sent = 0


def _cannot_be_rebound(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def check_origin(origin: str) -> None:
    """Raises `LlavaError` for what no browser would call an origin, and which would allow nobody.

    Browser extensions and programs with a browser inside have schemes of their own (`chrome-extension://…`, `app://…`).
    """
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@*\sA-Z]+", origin):
        raise LlavaError(
            f"--allow-origin {origin!r}: is not an origin; write it like https://chat.example.com or "
            "http://10.0.0.5:8080, in small letters, with nothing after the host and the port"
        )


async def _refuse(send: Send) -> None:
    error = ApiError(403, "pages of this origin may not use this server; see --allow-origin", code="origin_refused")
    body = json.dumps(error.body()).encode()
    headers: list[Any] = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
