"""The example's nginx in front of two replicas: answers pass word by word, and one replica may go."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from scripted_server import scripted_service, serving

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "serving" / "nginx.conf"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="no nginx is installed (apt-get install nginx-light)")

LONG = "trees and boats " * 4


@contextmanager
def nginx(folder: Path, *replicas: str) -> Iterator[str]:
    """The address of the example's server, with its ports and its file changed to free ones."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = EXAMPLE.read_text()
    changes = {"8080": str(port), "/tmp/llava-nginx.pid": str(folder / "pid")}
    changes |= {f"127.0.0.1:{8001 + number}": url.split("//")[1] for number, url in enumerate(replicas)}
    for theirs, ours in changes.items():
        assert config.count(theirs) == 1
        config = config.replace(theirs, ours)
    (folder / "nginx.conf").write_text(config)
    process = subprocess.Popen([str(NGINX), "-p", folder, "-c", folder / "nginx.conf"])
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def who(url: str, session: str) -> str:
    body = {"messages": [{"role": "user", "content": "Who?"}]}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers={"X-Session-Id": session}, timeout=30)
    answer.raise_for_status()
    return answer.json()["choices"][0]["message"]["content"]


def test_two_replicas(demo_checkpoint: Path, tmp_path: Path) -> None:
    with ExitStack() as first, ExitStack() as second:
        names = {"one": first, "two": second}
        urls = [
            stack.enter_context(
                serving(scripted_service(demo_checkpoint, {"Who?": name, "Tell me.": LONG}, delay=0.02))
            )
            for name, stack in names.items()
        ]
        with nginx(tmp_path, *urls) as url:
            sessions = {str(number): who(url, str(number)) for number in range(12)}
            assert set(sessions.values()) == {"one", "two"}
            assert all(who(url, session) == name for session, name in sessions.items())  # back to its own
            assert_word_by_word(url)
            assert httpx.get(f"{url}/metrics").status_code == 404
            assert httpx.get(f"{url}/health").json() == {"status": "ok"}
            assert httpx.get(f"{url}/v1/models", headers={"Origin": url}).status_code == 200
            assert httpx.get(f"{url}/v1/models", headers={"Origin": "http://else.test"}).status_code == 403
            second.close()
            assert {who(url, session) for session in sessions} == {"one"}


def assert_word_by_word(url: str) -> None:
    body = {"messages": [{"role": "user", "content": "Tell me."}], "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as answer:
        times = [time.monotonic() for line in answer.iter_lines() if line.startswith("data: {")]
    spread = times[-1] - times[1]
    assert len(times) > 10
    assert spread > 0.02 * (len(times) - 4)  # a buffer would hand all over at once
