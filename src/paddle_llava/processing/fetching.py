"""Bytes from an http(s) URL: bounded in size, time and redirects, and kept off private networks if asked."""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading
import time
import zlib
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import httpx

from paddle_llava import __version__
from paddle_llava.errors import LlavaError

REDIRECTS = (301, 302, 303, 307, 308)
PASSING_STATUSES = (408, 429)
PASSING_ERRORS = (httpx.TimeoutException, httpx.RemoteProtocolError, ConnectionError, TimeoutError)
PASSING_NUMBERS = (errno.ENETUNREACH, errno.EHOSTUNREACH, socket.EAI_AGAIN)
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class PassingFault(LlavaError):
    """What may be gone a little later: a server out of order or too busy, a time-out, a connection that broke."""


@dataclass(frozen=True)
class ImageLimits:
    """What a picture from outside may cost.

    `max_bytes` counts a file's or a download's bytes, after any content-encoding; times are in seconds,
    `total_time` runs from the first look-up to the last byte, over all redirects.
    """

    max_bytes: int = 50 * 2**20
    max_pixels: int = 100_000_000
    connect_timeout: float = 10.0
    total_time: float = 30.0
    max_redirects: int = 5


def fetch(url: str, limits: ImageLimits, *, allow_private: bool = True) -> tuple[bytes, str]:
    """The body and the content type that `url` answers with.

    Redirects are followed to http and https only. Without `allow_private` every host, also after a redirect,
    must resolve to public addresses alone; the connection then goes to the very address that was checked, so
    that a second look-up cannot swap it, and never through a proxy. Raises `LlavaError` naming the URL,
    `PassingFault` where another attempt may succeed.
    """
    name = shown(url)
    # httpx ignores the environment's proxies when it is given a transport.
    transport = None if allow_private else httpx.HTTPTransport()
    timeout = httpx.Timeout(limits.total_time, connect=min(limits.connect_timeout, limits.total_time))
    deadline = _Deadline(limits.total_time)
    try:
        with deadline, httpx.Client(transport=transport, timeout=timeout) as client:
            target = httpx.URL(url)
            for _ in range(limits.max_redirects + 1):
                if target.scheme not in ("http", "https") or not target.host:
                    raise LlavaError(f"{name} leads to {shown(str(target))}, which is no http(s) address")
                with closing(_get(client, target, deadline, allow_private)) as response:
                    if response.status_code not in REDIRECTS or "location" not in response.headers:
                        body = _body(response, name, limits.max_bytes)
                        return body, response.headers.get("content-type", "")
                    target = target.join(response.headers["location"])
            raise LlavaError(f"{name} redirects more than {limits.max_redirects} times")
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        if deadline.passed or isinstance(error, httpx.ReadTimeout):
            raise PassingFault(f"{name} took longer than {limits.total_time:g} seconds") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        kind = PassingFault if _may_pass(error) else LlavaError
        raise kind(f"{name} cannot be fetched: {reason[:200]}") from error


def _may_pass(error: BaseException | None) -> bool:
    """By what lies below httpx's errors, which are the same for a refused connection and a name that nobody has."""
    while error is not None:
        if isinstance(error, PASSING_ERRORS) or getattr(error, "errno", None) in PASSING_NUMBERS:
            return True
        error = error.__cause__ or error.__context__
    return False


def shown(url: str) -> str:
    """`url` for a message: without user name and password, shortened, control characters escaped."""
    start, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    clean = start + separator + host.rpartition("@")[2] + slash + path
    return repr(clean if len(clean) <= 150 else clean[:100] + "…" + clean[-20:])


def is_public(address: IPAddress) -> bool:
    """Whether `address` is of the open internet, also within an IPv6 form that carries an IPv4 address."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.ipv4_mapped:
            return is_public(address.ipv4_mapped)
        if address.sixtofour or address.teredo or address.is_site_local:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


class _Deadline:
    """Cuts every connection of a fetch when its time is up.

    httpx's own timeouts are for one read; a server that sends a byte a second would never meet them.
    """

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._streams: list[Any] = []
        self._end = time.monotonic() + seconds
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()

    def trace(self, _: str, info: dict[str, Any]) -> None:
        """httpx's `trace` extension: told of every new connection, plain and again once encrypted."""
        stream = info.get("return_value")
        if hasattr(stream, "get_extra_info"):
            self._streams.append(stream)
        self.check()

    def check(self) -> None:
        if self.passed or time.monotonic() > self._end:
            self.passed = True
            raise httpx.ReadTimeout("out of time")

    def _cut(self) -> None:
        self.passed = True
        for stream in self._streams:
            with suppress(OSError):
                stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


def _get(client: httpx.Client, url: httpx.URL, deadline: _Deadline, allow_private: bool) -> httpx.Response:
    """The streamed answer to a GET of `url`, its body not yet read."""
    headers = {
        "User-Agent": f"paddle-llava/{__version__}",
        "Accept": "image/*",
        "Accept-Encoding": "identity",
    }
    extensions: dict[str, Any] = {"trace": deadline.trace}
    if allow_private:
        request = client.build_request("GET", url, headers=headers, extensions=extensions)
        return client.send(request, stream=True)
    headers["Host"] = url.netloc.decode("ascii")
    extensions["sni_hostname"] = url.raw_host.decode("ascii")
    failure: httpx.TransportError = httpx.ConnectError("the host has no address")
    for address in _public_addresses(url):
        deadline.check()
        pinned = url.copy_with(host=str(address))
        request = client.build_request("GET", pinned, headers=headers, extensions=extensions)
        try:
            return client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            failure = error
    raise failure


def _public_addresses(url: httpx.URL) -> list[IPAddress]:
    host = url.raw_host.decode("ascii")
    found = socket.getaddrinfo(host, url.port or url.scheme, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not all(map(is_public, addresses)):
        raise LlavaError(f"{shown(str(url))} is refused: its host is in a private or reserved network")
    return addresses


def _body(response: httpx.Response, name: str, max_bytes: int) -> bytes:
    status = response.status_code
    if status != 200:
        kind = PassingFault if status in PASSING_STATUSES or status >= 500 else LlavaError
        raise kind(f"{name} answered {status} {response.reason_phrase}".rstrip())
    too_large = LlavaError(f"{name} is larger than {max_bytes / 2**20:g} MiB")
    declared = response.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise too_large
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        raise LlavaError(f"{name} is sent with content-encoding {encoding[:40]!r}, which is not supported")
    # Not httpx's own decoding: it inflates whatever has arrived at once, a thousandfold or more.
    inflater = None if encoding == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)
    body = bytearray()
    try:
        for chunk in response.iter_raw():
            body += inflater.decompress(chunk, max_bytes + 1 - len(body)) if inflater else chunk
            if len(body) > max_bytes:
                raise too_large
    except zlib.error as error:
        raise LlavaError(f"{name} sends damaged {encoding} data") from error
    return bytes(body)
