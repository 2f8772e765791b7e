"""A processor of each kind on a small vocabulary, pictures, and files of records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paddle_llava.config import ORIGINAL_IMAGE_TOKEN_ID
from paddle_llava.demo.checkpoint import build, build_tokenizer
from paddle_llava.processing.images import ImageProcessor
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.tokenizer import Tokenizer

SIZES = {"wide.png": (60, 200), "tall.jpg": (150, 40), "square.png": (64, 64), "large.jpg": (300, 260)}
"""(height, width) of the pictures that the tests use."""


@pytest.fixture(scope="session")
def v15(tmp_path_factory: pytest.TempPathFactory) -> LlavaProcessor:
    """Pictures are padded to a square, 64 features each."""
    folder = tmp_path_factory.mktemp("checkpoint")
    build(folder)
    return LlavaProcessor.from_pretrained(folder)


@pytest.fixture(scope="session")
def v16(v15: LlavaProcessor) -> LlavaProcessor:
    """The number of a picture's features follows from its size."""
    pinpoints = ((112, 224), (224, 112), (224, 224))
    config = replace(v15.config, image_aspect_ratio="anyres", image_grid_pinpoints=pinpoints)
    return LlavaProcessor(config, ImageProcessor.from_config(config), v15.tokenizer)


@pytest.fixture(scope="session")
def original(v15: LlavaProcessor) -> LlavaProcessor:
    """Without a token for pictures, whose place has the id -200."""
    raw = json.loads(build_tokenizer().to_str())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] not in ("<image>", "<pad>")]
    config = replace(v15.config, image_token_id=ORIGINAL_IMAGE_TOKEN_ID)
    return LlavaProcessor(config, v15.image_processor, Tokenizer(raw, {}, "test"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures of `SIZES`, a broken one and a page of text."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed, (name, size) in enumerate(SIZES.items()):
        pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "broken.jpg").write_bytes((folder / "large.jpg").read_bytes()[:2000])
    (folder / "page.png").write_text("<html>404</html>")
    return folder


@pytest.fixture
def server(pictures: Path) -> Iterator[Any]:
    """Serves `pictures` on loopback: its `address`, and the paths that were `asked` for.

    The statuses in `refusals` are its first answers.
    """
    asked: list[str] = []
    refusals: list[int] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if refusals:
                self.send_error(refusals.pop(0))
            else:
                super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(pictures))) as running:
        Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        running.address = f"http://127.0.0.1:{running.server_port}"  # type: ignore[attr-defined]
        running.asked, running.refusals = asked, refusals  # type: ignore[attr-defined]
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this test alone; gives the folder of its pictures."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "paddle-llava" / "images"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write records to a file, as JSONL if it is named so."""

    def write(records: list[Any], name: str = "train.json") -> Path:
        path = tmp_path / name
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        path.write_text("\n".join(lines) if path.suffix == ".jsonl" else json.dumps(records), encoding="utf-8")
        return path

    return write
