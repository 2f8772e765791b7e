"""From the start of a server to its end: the command, its key, who may ask from a browser, and signals."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from paddle_llava.cli import main
from paddle_llava.serving.server import free_memory
from serving_process import SRC, Served, user

KEY, ORIGIN = "sesame", "http://chat.example"


@pytest.fixture(scope="module")
def guarded(demo_checkpoint: Path) -> Iterator[Served]:
    """With a key, and a web page elsewhere that may use it."""
    server = Served(demo_checkpoint, "--api-key", KEY, "--origin", ORIGIN)
    yield server
    if server.process.poll() is None:
        server.stop()


@pytest.mark.parametrize("key", ["x", "sesam", "sesame1", "SESAME", "sésame", "x" * 10_000])
def test_a_wrong_key(guarded: Served, key: str) -> None:
    answer = httpx.get(f"{guarded.url}/v1/models", headers={"Authorization": f"Bearer {key}".encode()})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_the_right_key(guarded: Served) -> None:
    with pytest.raises(openai.AuthenticationError):
        guarded.client().models.list()
    assert guarded.client(api_key=KEY).models.list().data
    assert httpx.get(f"{guarded.url}/health").status_code == 200
    unread = httpx.post(guarded.chat, content=b"x" * 5 * 2**20)
    assert unread.status_code == 401  # before the body is looked at


def test_who_may_ask_from_a_browser(guarded: Served) -> None:
    def ask(origin: str, host: str = "127.0.0.1") -> httpx.Response:
        headers = {"Origin": origin, "Host": host, "Authorization": f"Bearer {KEY}"}
        return httpx.get(f"{guarded.url}/v1/models", headers=headers)

    here = f"127.0.0.1:{guarded.port}"
    allowed = ask(ORIGIN)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert ask(f"http://{here}", here).status_code == 200
    assert ask("http://localhost:1234", "localhost:1234").status_code == 200
    for origin, host in (
        ("http://evil.test", here),
        ("http://evil.test", "evil.test"),
        ("null", here),
        ("http://[", here),
        (f"http://{here}", "x"),
    ):
        answer = ask(origin, host)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "origin_refused"
        assert "access-control-allow-origin" not in answer.headers
    preflight = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    assert httpx.options(guarded.chat, headers=preflight).status_code == 200


def test_sigterm_drains(guarded: Served) -> None:
    """What is nearly done is done, what takes longer than allowed is told, nobody new comes in; it ends with 0."""
    streams: dict[str, list[Any]] = {"short": [], "long": []}

    def ask(name: str, text: str, tokens: int) -> None:
        stream = guarded.client(api_key=KEY).chat.completions.create(
            model="llava-test", messages=[user(text)], max_tokens=tokens, temperature=0, stream=True
        )
        try:
            streams[name] += list(stream)
        except openai.APIError as error:
            streams[name].append(error)

    threads = [
        threading.Thread(target=ask, args=args) for args in (("short", "Hi slowly", 12), ("long", "slowly", 150))
    ]
    for thread in threads:
        thread.start()
    while guarded.metric("llava_generated_tokens_total") < 4:
        time.sleep(0.02)
    guarded.process.send_signal(signal.SIGTERM)
    time.sleep(0.4)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{guarded.url}/health")
    for thread in threads:
        thread.join(15)
    assert guarded.process.wait(10) == 0
    assert streams["short"][-1].choices[0].finish_reason == "length"
    assert isinstance(streams["long"][-1], openai.APIError)
    assert streams["long"][-1].message == "the server is shutting down"
    assert "answers may take 1.5 seconds more" in guarded.said()
    assert "Traceback" not in guarded.said()


def test_the_command(demo_checkpoint: Path) -> None:
    """`llava serve` says where it is, answers, and ends with Ctrl-C."""
    environment = os.environ | {"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}
    run = "import sys; from paddle_llava.cli import main; sys.exit(main())"
    command = [
        sys.executable,
        "-c",
        run,
        "serve",
        "--model-path",
        str(demo_checkpoint),
        "--port",
        "0",
        "--engine",
        "paddle",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        lines = [next(process.stderr)]
        while "serving" not in lines[-1]:
            lines.append(next(process.stderr))
        found = re.search(r"serving llava-demo at (http://127\.0\.0\.1:\d+) ", lines[-1])
        assert found, lines
        answer = httpx.post(
            f"{found[1]}/v1/chat/completions",
            json={"messages": [user("Hi")], "max_tokens": 2},
            timeout=30,
        )
        assert answer.status_code == 200
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(20) == 0
    assert "200 /v1/chat/completions: " in rest
    assert rest.splitlines()[-1] == "llava: note: stopped"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--model-path is missing"),
        (["--model-path", "{model}", "--port", "{taken}"], "Address already in use; choose another --host or --port"),
        (["--model-path", "{model}", "--host", "no such host"], "cannot listen at no such host:"),
        (["--model-path", "{model}", "--max-batch", "0"], "max_batch must be greater than 0 and finite, found 0"),
        (["--model-path", "{model}", "--drain-timeout", "inf"], "drain_time must be greater than 0 and finite"),
        (["--model-path", "{model}", "--api-key", ""], "--api-key is empty"),
        (["--model-path", "{model}", "--allow-origin", "https://x.test/"], "'https://x.test/': is not an origin"),
        (["--model-path", "{model}", "--allow-origin", "*"], "'*': is not an origin"),
        (
            ["--model-path", "{model}", "--port", "0", "--engine", "paddle", "--max-batch", "1000"],
            "--max-batch must be at most 128",
        ),
        (
            ["--model-path", "{model}", "--port", "0", "--engine", "paddle", "--cache-mib", "1"],
            "give --cache-mib ",
        ),
        (["--model-path", "{model}", "--port", "0", "--temperature", "-1"], "temperature must be 0"),
        (["--model-path", "{model}", "--port", "70000"], "less than or equal to 65535"),
        (["--model-path", "/nowhere", "--port", "0"], "/nowhere"),
    ],
)
def test_mistakes_on_the_command_line(
    demo_checkpoint: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        known = {"model": demo_checkpoint, "taken": taken.getsockname()[1]}
        assert main(["serve", *(flag.format(**known) for flag in flags)]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_package_is_told_with_the_remedy(
    demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "paddle_llava.serving.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "--model-path", str(demo_checkpoint)]) == 2
    said = capsys.readouterr().err
    assert f"uvicorn is missing; install it with: {sys.executable} -m pip install 'paddle-llava[serve]'" in said


@pytest.mark.parametrize(
    ("limit", "free"), [("max", 8 * 2**30), (str(6 * 2**30), 5 * 2**30), (str(64 * 2**30), 8 * 2**30), ("1000", 0)]
)
def test_memory_is_the_containers_where_that_is_less(limit: str, free: int, tmp_path: Path) -> None:
    """Files that its programs have read count as free: the system lets go of them."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 99 kB\nMemAvailable:   {8 * 2**20} kB\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{3 * 2**30}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {2 * 2**30}\nactive_file 7\n")
    assert free_memory(meminfo, tmp_path) == free
    assert free_memory(meminfo, tmp_path / "none") == 8 * 2**30
