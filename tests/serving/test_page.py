"""What the web chat asks of the server, without a browser: its files, pictures to try, boxes with answers."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from PIL import Image

from paddle_llava.processing.boxes import answer_boxes
from paddle_llava.serving.page import FILES
from scripted_server import scripted_service, serving

SAYS = "The bus is at 0.23, 0.33, 0.79, 0.78."
ANSWERS = {"Where?": SAYS, "What?": "a bus", "In the grey?": "0.10, 0.01, 0.90, 0.05"}


@pytest.fixture(scope="module")
def address(demo_checkpoint: Path) -> Iterator[str]:
    with serving(scripted_service(demo_checkpoint, ANSWERS), api_key="a secret") as url:
        yield url


def test_the_page_may_load_and_ask_nothing_but_its_own(address: str) -> None:
    for path in ["", *(file.name for file in FILES.iterdir())]:
        answer = httpx.get(f"{address}/{path}")
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = httpx.get(f"{address}/{path}", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
    text = (FILES / "index.html").read_text(encoding="utf-8")
    assert " style=" not in text
    assert "onclick" not in text


@pytest.mark.parametrize("path", ["nothing", "samples/nothing", "samples/..%2fpage.py", "..%2fpage.py", "v1/nothing"])
def test_what_is_not_there_is_told_as_everywhere(address: str, path: str) -> None:
    answer = httpx.get(f"{address}/{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_samples_need_no_key(address: str) -> None:
    listed = httpx.get(f"{address}/samples").json()
    assert len(listed) == 10
    for sample in listed:
        picture = Image.open(io.BytesIO(httpx.get(f"{address}/samples/{sample['name']}").content))
        assert picture.format == "JPEG"
        assert picture.width == 640
        english, chinese = sample["questions"]["en"], sample["questions"]["zh"]
        assert len(english) == len(chinese) >= 2
        assert not "".join(chinese).isascii()


def asked(address: str, question: str, *, picture: Path | None, **options: Any) -> Any:
    parts: list[Any] = [{"type": "text", "text": question}]
    if picture:
        data = base64.b64encode(picture.read_bytes()).decode()
        parts.insert(0, {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}})
    client = OpenAI(base_url=f"{address}/v1", api_key="a secret", max_retries=0)
    messages: Any = [{"role": "user", "content": parts}]
    return client.chat.completions.create(model="llava-test", messages=messages, **options)


def test_boxes_come_with_the_answer_in_pixels_of_the_picture(address: str, photo: Path) -> None:
    expected = [pytest.approx(box, abs=0.05) for box in answer_boxes(SAYS, 640, 427)]
    assert asked(address, "Where?", picture=photo).choices[0].message.boxes == expected
    chunks = list(asked(address, "Where?", picture=photo, stream=True))
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].choices[0].delta.boxes == expected
    assert not any(hasattr(chunk.choices[0].delta, "boxes") for chunk in chunks[:-1])


def test_where_there_is_no_box_there_is_none(address: str, photo: Path) -> None:
    assert asked(address, "What?", picture=photo).choices[0].message.boxes is None
    assert asked(address, "Where?", picture=None).choices[0].message.boxes is None
    assert asked(address, "In the grey?", picture=photo).choices[0].message.boxes is None
    assert not hasattr(list(asked(address, "What?", picture=photo, stream=True))[-1].choices[0].delta, "boxes")
