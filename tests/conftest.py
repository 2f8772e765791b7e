"""What tests share: a small checkpoint, and an environment in which nothing of the user's is touched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import paddle_llava

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: threads would only wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from paddle_llava.generation.session import ChatSession


@pytest.fixture(scope="session", autouse=True)
def _nothing_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches and histories in a temporary folder, and no hub: port 9 refuses (tests that want one start their own)."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("HF_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
            patch.setenv(variable, str(home / variable.lower()))
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield


@pytest.fixture(scope="session")
def demo_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration's random LLaVA in the `-hf` layout; copy it to change it."""
    from paddle_llava.demo.checkpoint import build

    folder = tmp_path_factory.mktemp("checkpoint") / "llava-demo"
    build(folder)
    return folder


@pytest.fixture(scope="session")
def photo() -> Path:
    """A real photograph, 640x427."""
    return Path(paddle_llava.__file__).parent / "demo" / "photos" / "china.jpg"


@pytest.fixture
def demo_session(demo_checkpoint: Path) -> ChatSession:
    """A fresh conversation with the random LLaVA, greedy, six tokens an answer."""
    from paddle_llava.chat import open_session
    from paddle_llava.generation.sampling import SamplingParams

    return open_session(str(demo_checkpoint), SamplingParams(max_new_tokens=6))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window; no name but this machine's own leads anywhere.

    Not for the whole session: until it is closed, Playwright keeps an event loop running in the tests' thread.
    """
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        found = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield found
        found.close()
