"""Pictures by URL, from servers on loopback that behave well, badly and very badly."""

from __future__ import annotations

import gzip
import io
import ipaddress
import re
import socket
import ssl
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import paddle_llava
from paddle_llava.errors import LlavaError
from paddle_llava.processing import fetching
from paddle_llava.processing.fetching import ImageLimits, PassingFault, fetch, is_public
from paddle_llava.processing.loading import load_image

CERTIFICATE = Path(__file__).parent / "fixtures" / "pictures.test.pem"  # for pictures.test, with its key
PIXELS = np.arange(12 * 20 * 3, dtype=np.uint8).reshape(12, 20, 3)
QUICK = ImageLimits(max_bytes=2**20, connect_timeout=1.0, total_time=0.3)
PUBLIC = "93.184.216.34"
BOMB = gzip.compress(bytes(64 * 2**20), 1)


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "PNG")
    return stream.getvalue()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))
        name, _, argument = self.path[1:].partition("?")[0].partition("/")
        try:
            getattr(self, f"send_{name.replace('-', '_')}", self.send_missing)(argument)
        except OSError:  # the client has had enough
            self.close_connection = True

    def answer(self, body: bytes, status: int = 200, **headers: str | None) -> None:
        self.send_response(status)
        fields = {"content_type": "image/png", "content_length": str(len(body)), **headers}
        for key, value in fields.items():
            if value is not None:
                self.send_header(key.replace("_", "-").title(), value)
        self.end_headers()
        self.wfile.write(body)

    def unbounded(self, **headers: str) -> None:
        self.close_connection = True
        self.answer(b"", content_length=None, connection="close", **headers)

    def send_picture(self, _: str) -> None:
        self.answer(png())

    def send_typed(self, content_type: str) -> None:
        self.answer(png(), content_type=content_type)

    def send_redirect(self, count: str) -> None:
        self.answer(b"moved", 302, location="/picture" if count == "1" else str(int(count) - 1))

    def send_loop(self, _: str) -> None:
        self.answer(b"", 301, location="/loop")

    def send_to(self, target: str) -> None:
        self.answer(b"", 307, location=target)

    def send_missing(self, _: str) -> None:
        self.answer(b"<html>", 404, content_type="text/html")

    def send_status(self, code: str) -> None:
        self.answer(b"{}", int(code), content_type="application/json")

    def send_html(self, _: str) -> None:
        self.answer(b"<!DOCTYPE html><html>", content_type="text/html; charset=utf-8")

    def send_rubbish(self, _: str) -> None:
        self.answer(b"not a picture at all")

    def send_empty(self, _: str) -> None:
        self.answer(b"")

    def send_gzip(self, _: str) -> None:
        self.answer(gzip.compress(png()), content_encoding="gzip")

    def send_deflate(self, _: str) -> None:
        self.answer(zlib.compress(png()), content_encoding="deflate")

    def send_gzip_bomb(self, _: str) -> None:
        self.answer(BOMB, content_encoding="gzip")

    def send_broken_gzip(self, _: str) -> None:
        self.answer(b"\x1f\x8b" + bytes(20), content_encoding="gzip")

    def send_encoded(self, encoding: str) -> None:
        self.answer(png(), content_encoding=encoding)

    def send_half(self, _: str) -> None:
        data = png()
        self.close_connection = True
        self.answer(data[: len(data) // 2], content_length=str(len(data)))

    def send_truncated(self, _: str) -> None:
        self.answer(png()[:60])

    def send_huge(self, _: str) -> None:
        self.close_connection = True
        self.answer(b"", content_length=str(10**15))

    def send_endless(self, _: str) -> None:
        self.unbounded()
        while True:
            self.wfile.write(bytes(2**16))

    def send_drip(self, _: str) -> None:
        self.unbounded()
        while True:
            self.wfile.write(b"x")
            time.sleep(0.02)

    def send_drip_headers(self, _: str) -> None:
        self.close_connection = True
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            self.wfile.write(b"X-Drip: drop\r\n")
            time.sleep(0.02)

    def send_silence(self, _: str) -> None:
        self.close_connection = True
        self.server.closing.wait(5)

    def send_no_http(self, _: str) -> None:
        self.close_connection = True
        self.wfile.write(b"SSH-2.0-nonsense\r\n\r\n")

    def send_long_reason(self, _: str) -> None:
        self.close_connection = True
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/\xff\x1b[31m" + b"x" * 500 + b"\r\n\r\nhello")

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.closing = threading.Event()
        self.context = context
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def get_request(self) -> Any:
        connection, address = super().get_request()
        if self.context:
            connection = self.context.wrap_socket(connection, server_side=True)
        return connection, address

    def handle_error(self, *_: Any) -> None:
        pass

    def stop(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


def refusal(url: str, **options: Any) -> str:
    with pytest.raises(LlavaError) as caught:
        load_image(url, **{"limits": QUICK, **options})
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 500
    return message


def pixels(url: str, **options: Any) -> np.ndarray:
    return np.asarray(load_image(url, **options))


@pytest.mark.parametrize(
    "path", ["picture", "redirect/1", "redirect/5", "gzip", "deflate", "typed/text/plain", "typed/"]
)
def test_a_picture_arrives(server: Server, path: str) -> None:
    assert np.array_equal(pixels(f"{server.url}/{path}"), PIXELS)


def test_the_request_says_who_asks(server: Server) -> None:
    server.seen.clear()
    load_image(server.url.replace("http", "HTTP") + "/picture?a=b#part")
    path, headers = server.seen[0]
    assert path == "/picture?a=b"
    assert headers["User-Agent"] == f"paddle-llava/{paddle_llava.__version__}"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing", "answered 404 Not Found"),
        ("status/500", "answered 500 Internal Server Error"),
        ("status/206", "answered 206 Partial Content"),
        ("status/304", "answered 304 Not Modified"),
        ("html", "returned 'text/html; charset=utf-8', not a picture"),
        ("rubbish", "is not a picture of a known format"),
        ("empty", "is empty (0 bytes)"),
        ("truncated", "is damaged and cannot be decoded"),
        ("half", "cannot be fetched: "),
        ("no-http", "cannot be fetched: "),
        ("long-reason", "not a picture"),
        ("loop", "redirects more than 5 times"),
        ("redirect/6", "redirects more than 5 times"),
        ("to/file:///etc/passwd", "leads to 'file:/etc/passwd', which is no http(s) address"),
        ("to/ftp://host/x", "leads to 'ftp://host/x', which is no http(s) address"),
        ("to/http://[bad/", "cannot be fetched: "),
        ("gzip-bomb", "is larger than 1 MiB"),
        ("broken-gzip", "sends damaged gzip data"),
        ("encoded/br", "content-encoding 'br', which is not supported"),
        ("encoded/gzip,gzip", "content-encoding 'gzip,gzip', which is not supported"),
        ("huge", "is larger than 1 MiB"),
        ("endless", "is larger than 1 MiB"),
    ],
)
def test_bad_answers(server: Server, path: str, reason: str) -> None:
    message = refusal(f"{server.url}/{path}", limits=ImageLimits(max_bytes=2**20, total_time=5))
    assert message.startswith(f"'{server.url}/{path[:5]}")
    assert reason in message


@pytest.mark.parametrize(
    ("path", "passes"),
    [
        ("status/500", True),
        ("status/503", True),
        ("status/429", True),
        ("silence", True),
        ("half", True),
        ("missing", False),
        ("status/403", False),
        ("huge", False),
        ("broken-gzip", False),
        ("to/ftp://host/x", False),
        ("to/http://[bad/", False),
        ("redirect/6", False),
    ],
)
def test_which_faults_may_pass(server: Server, path: str, passes: bool) -> None:
    with pytest.raises(LlavaError) as caught:
        fetch(f"{server.url}/{path}", QUICK)
    assert isinstance(caught.value, PassingFault) is passes


def test_a_refused_connection_may_pass_and_a_private_host_does_not(server: Server) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(PassingFault):
            fetch(f"http://127.0.0.1:{closed.getsockname()[1]}/x.png", QUICK)
    with pytest.raises(LlavaError, match="is refused") as caught:
        fetch(f"{server.url}/picture", QUICK, allow_private=False)
    assert not isinstance(caught.value, PassingFault)


@pytest.mark.parametrize(("number", "passes"), [(socket.EAI_AGAIN, True), (socket.EAI_NONAME, False)])
def test_a_resolver_out_of_order_may_pass_and_an_unknown_name_does_not(
    monkeypatch: pytest.MonkeyPatch, number: int, passes: bool
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise socket.gaierror(number, "told")

    monkeypatch.setattr(socket, "getaddrinfo", failing)
    with pytest.raises(LlavaError) as caught:
        fetch("http://pictures.test/x.png", QUICK)
    assert isinstance(caught.value, PassingFault) is passes


def test_a_gzip_bomb_is_not_inflated_past_the_limit(server: Server) -> None:
    tracemalloc.start()
    try:
        refusal(f"{server.url}/gzip-bomb", limits=ImageLimits(max_bytes=2**20))
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("path", ["drip", "drip-headers", "silence"])
@pytest.mark.parametrize("allow_private", [True, False])
def test_slow_servers_are_cut_off(
    server: Server, path: str, allow_private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "is_public", lambda _: True)
    started = time.monotonic()
    message = refusal(f"{server.url}/{path}", allow_private=allow_private)
    assert message == f"'{server.url}/{path}' took longer than 0.3 seconds"
    assert time.monotonic() - started < 1.5


def test_the_time_is_for_all_redirects_together(server: Server) -> None:
    limits = ImageLimits(total_time=0.3, max_redirects=10**9)
    assert "took longer than 0.3 seconds" in refusal(f"{server.url}/loop", limits=limits)


def test_threads_and_timers_end_with_the_fetch(server: Server) -> None:
    load_image(f"{server.url}/picture")
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_hosts_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/x.png"
        assert "cannot be fetched: " in refusal(url)

    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for allow_private in (True, False):
        message = refusal("http://nowhere.test/x.png", allow_private=allow_private)
        assert message == ("'http://nowhere.test/x.png' cannot be fetched: [Errno -2] Name or service not known")


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///x.png",
        "https://?",
        "http://[::1",
        "http://host:port/",
        "http://host:99999/",
        "http://a b/",
        "http://\x00/",
        "http://" + "a" * 300 + ".test/",
        "http://xn--a/",
        "http://host\n/x",
        "http://user:secret@",
        "http://" + "x" * 100_000,
    ],
)
@pytest.mark.parametrize("allow_private", [True, False])
def test_malformed_urls(url: str, allow_private: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    message = refusal(url, allow_private=allow_private)
    assert message.startswith("'http")
    assert "secret" not in message


def test_passwords_and_long_addresses_are_not_repeated(server: Server) -> None:
    url = server.url.replace("//", "//user:secret@") + "/missing/" + "x" * 300
    message = refusal(url)
    assert "secret" not in message
    assert "…" in message


# Private networks


@pytest.mark.parametrize(
    ("address", "public"),
    [
        (PUBLIC, True),
        ("2606:2800:220:1::1", True),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::5db8:d822", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("240.0.0.1", False),
        ("192.0.2.1", False),
        ("::", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("::127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:7f00:1::", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
        ("fe80::1", False),
        ("fec0::1", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("2001:db8::1", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "10.0.0.1"],
)
def test_private_hosts_are_refused_if_asked(server: Server, host: str) -> None:
    server.seen.clear()
    message = refusal(f"http://{host}:{server.server_port}/picture", allow_private=False)
    assert message.endswith("is refused: its host is in a private or reserved network")
    assert not server.seen


Answer = Callable[[str], list[str]]


class Net:
    """A resolver under the test's control, and a network in which every address is `server`."""

    def __init__(self, server: Server, answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.connected: list[str] = []
        connect = socket.create_connection

        def getaddrinfo(host: str, port: Any, *_: Any, **__: Any) -> list[Any]:
            self.asked.append(host)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in answer(host)]

        def create_connection(address: tuple[str, int], *rest: Any, **options: Any) -> socket.socket:
            self.connected.append(address[0])
            if address[0] == "93.184.216.99":
                raise ConnectionRefusedError(111, "Connection refused")
            monkeypatch.setattr(socket, "getaddrinfo", real)
            try:
                return connect(("127.0.0.1", server.server_port), *rest, **options)
            finally:
                monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

        real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(socket, "create_connection", create_connection)


def test_the_checked_address_is_the_one_connected_to(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([[PUBLIC], ["127.0.0.1"], ["127.0.0.1"]])  # rebinding: another answer the second time
    net = Net(server, lambda _: next(answers), monkeypatch)
    server.seen.clear()
    assert np.array_equal(pixels("http://pictures.test:81/picture", allow_private=False), PIXELS)
    assert net.asked == ["pictures.test"]
    assert net.connected == [PUBLIC]
    assert server.seen[0][1]["Host"] == "pictures.test:81"


def test_each_redirect_is_checked_anew(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(server, lambda host: [PUBLIC if host == "pictures.test" else "192.168.0.1"], monkeypatch)
    server.seen.clear()
    message = refusal("http://pictures.test/to/http://router.test/picture", allow_private=False)
    assert message.startswith("'http://router.test/picture' is refused")
    assert net.connected == [PUBLIC]
    assert [path for path, _ in server.seen] == ["/to/http://router.test/picture"]
    assert np.array_equal(pixels("http://pictures.test/redirect/2", allow_private=False), PIXELS)
    assert net.asked.count("pictures.test") == 4


def test_one_private_address_among_public_ones_is_enough(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(server, lambda _: [PUBLIC, "10.0.0.1"], monkeypatch)
    assert "is refused" in refusal("http://pictures.test/picture", allow_private=False)
    assert net.connected == []


def test_the_next_address_is_tried(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(server, lambda _: ["93.184.216.99", PUBLIC], monkeypatch)
    assert np.array_equal(pixels("http://pictures.test/picture", allow_private=False), PIXELS)
    assert net.connected == ["93.184.216.99", PUBLIC]
    net = Net(server, lambda _: ["93.184.216.99"], monkeypatch)
    assert "cannot be fetched: " in refusal("http://pictures.test/picture", allow_private=False)
    net = Net(server, lambda _: [], monkeypatch)
    assert "the host has no address" in refusal("http://pictures.test/picture", allow_private=False)


def test_no_proxy_gets_in_between(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    net = Net(server, lambda _: [PUBLIC], monkeypatch)
    assert np.array_equal(pixels("http://pictures.test/picture", allow_private=False), PIXELS)
    assert net.connected == [PUBLIC]


@pytest.fixture
def secure_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, list[Any]]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    names: list[Any] = []
    context.sni_callback = lambda _, name, __: names.append(name)
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    server = Server(context)
    yield server, names
    server.stop()


@pytest.mark.parametrize("allow_private", [True, False])
def test_https_is_verified_by_name(
    secure_server: tuple[Server, list[Any]], allow_private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, names = secure_server
    Net(server, lambda _: [PUBLIC], monkeypatch)
    assert np.array_equal(pixels("https://pictures.test/picture", allow_private=allow_private), PIXELS)
    assert names == ["pictures.test"]
    message = refusal("https://other.test/picture", allow_private=allow_private)
    assert re.search("certificate", message, re.IGNORECASE)
    assert len(server.seen) == 1


def test_a_slow_https_server_is_cut_off(
    secure_server: tuple[Server, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    Net(secure_server[0], lambda _: [PUBLIC], monkeypatch)
    started = time.monotonic()
    for path in ("drip", "drip-headers"):
        assert "took longer than" in refusal(f"https://pictures.test/{path}", allow_private=False)
    assert time.monotonic() - started < 3
