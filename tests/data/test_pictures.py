from __future__ import annotations

import base64
import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paddle_llava.data import pictures as pictures_module
from paddle_llava.data.pictures import local_source, picture_size
from paddle_llava.errors import LlavaError
from paddle_llava.processing.loading import load_image


def encoded(kind: str, orientation: int) -> bytes:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    stream = io.BytesIO()
    image.save(stream, kind, exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
@pytest.mark.parametrize("orientation", range(9))
def test_size_is_that_of_the_loaded_picture(tmp_path: Path, kind: str, orientation: int) -> None:
    path = tmp_path / "picture"
    path.write_bytes(encoded(kind, orientation))
    image = load_image(path)
    assert picture_size(str(path)) == (image.height, image.width)


def test_size_comes_from_the_header_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded("JPEG", 6)[:-200])
    monkeypatch.setattr(pictures_module, "load_image", None)
    assert picture_size(str(path)) == (30, 20)


def test_size_of_what_has_no_readable_header(tmp_path: Path) -> None:
    uri = "data:image/png;base64," + base64.b64encode(encoded("PNG", 0)).decode()
    assert picture_size(uri) == (20, 30)
    (tmp_path / "page.png").write_text("<html>")
    with pytest.raises(LlavaError, match=r"page.png' is not a picture"):
        picture_size(str(tmp_path / "page.png"))
    with pytest.raises(LlavaError, match="no such file"):
        picture_size(str(tmp_path / "none.png"))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(picture_size, str(tmp_path / "pipe"))
        finished, _ = wait([asked], 5)
        os.close(os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK))  # sets one free that does wait
        assert finished
        with pytest.raises(LlavaError, match="special file"):
            asked.result()


def test_a_url_is_asked_once(server: Any, pictures: Path, cache: Path) -> None:
    url = f"{server.address}/wide.png?size=1"
    first = local_source(url)
    assert Path(first).read_bytes() == (pictures / "wide.png").read_bytes()
    assert Path(first).name == hashlib.sha256(url.encode()).hexdigest()
    assert Path(first).is_relative_to(cache)
    assert local_source(url) == first
    assert picture_size(url) == (60, 200)
    assert server.asked == ["/wide.png?size=1"]
    assert local_source("local.png") == "local.png"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited between attempts, in seconds; nothing is."""
    told: list[float] = []
    monkeypatch.setattr(pictures_module, "time", SimpleNamespace(sleep=told.append))
    return told


def test_a_fault_that_passes_is_waited_for(server: Any, pictures: Path, pauses: list[float]) -> None:
    server.refusals += [503, 429]
    assert Path(local_source(f"{server.address}/wide.png")).read_bytes() == (pictures / "wide.png").read_bytes()
    assert server.asked == ["/wide.png"] * 3
    assert pauses == list(pictures_module.PAUSES)


def test_a_fault_that_stays_is_told(server: Any, pauses: list[float]) -> None:
    server.refusals += [503, 503, 500]
    with pytest.raises(LlavaError, match=r"wide.png' answered 500 Internal Server Error"):
        local_source(f"{server.address}/wide.png")
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [404, 403, 410])
def test_an_answer_that_is_no_fault_is_asked_for_once(server: Any, pauses: list[float], status: int) -> None:
    server.refusals.append(status)
    with pytest.raises(LlavaError, match=f"wide.png' answered {status}"):
        local_source(f"{server.address}/wide.png")
    assert server.asked == ["/wide.png"]
    assert pauses == []


def test_a_picture_appears_whole_when_many_ask(server: Any, cache: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(local_source, [f"{server.address}/large.jpg"] * 16))
    assert len(found) == 1
    assert [path for path in cache.rglob("*") if path.is_file()] == [Path(found.pop())]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("page.png", "is not a picture"), ("broken.jpg", "damaged"), ("none.png", "404"), ("large.jpg", "larger than")],
)
def test_what_is_no_picture_is_not_kept(
    server: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    if name == "large.jpg":
        monkeypatch.setattr(pictures_module, "LIMITS", pictures_module.ImageLimits(max_bytes=1000))
    url = f"{server.address}/{name}"
    with pytest.raises(LlavaError, match=rf"^'{url}.*{reason}"):
        local_source(url)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_cache_that_cannot_be_written_is_named(server: Any, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(LlavaError, match=r"wide.png' cannot be kept in .*: Not a directory"):
        local_source(f"{server.address}/wide.png")
