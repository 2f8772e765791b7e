from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_llava.data.forms import read_record
from paddle_llava.data.records import FileChanged, RecordFile
from paddle_llava.errors import LlavaError
from paddle_llava.processing.conversation import IMAGE, Message, encode, render
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.templates import TEMPLATES

Write = Callable[..., Path]

DOCUMENT = Path(__file__).parent / "fixtures" / "llava_train_examples.json"  # as the user's document shows it


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def role(name: str, content: Any) -> dict[str, Any]:
    return {"role": name, "content": content}


def url(address: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": address}}


def said(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


SHOWN = (IMAGE, "\n", "Q")
TWO = (IMAGE, "\n", IMAGE, "\nQ")
DATA = "data:image/png;base64,AAAA"
FORMS: list[tuple[str, dict[str, Any], list[str], list[Any]]] = [
    ("pairs", {"image": "a", "conversations": [["<image>\nQ", "A"], ["R", "B"]]}, ["a"], [SHOWN, "A", "R", "B"]),
    ("from/value", {"image": "a", "conversations": [human("<image>\nQ"), gpt("A")]}, ["a"], [SHOWN, "A"]),
    ("picture behind", {"image": "a", "conversations": [["Q\n<image>", "A"]]}, ["a"], [SHOWN, "A"]),
    ("picture amid", {"image": "a", "conversations": [["Q: <image> R", "A"]]}, ["a"], [(IMAGE, "\n", "Q:  R"), "A"]),
    ("picture alone", {"image": "a", "conversations": [["<image>\n", "A"]]}, ["a"], [(IMAGE,), "A"]),
    ("picture unplaced", {"image": "a", "conversations": [["Q", "A"], ["R", "B"]]}, ["a"], [SHOWN, "A", "R", "B"]),
    ("image a list", {"image": ["a"], "conversations": [["<image>\nQ", "A"]]}, ["a"], [SHOWN, "A"]),
    ("no image", {"conversations": [["Q", "A"]]}, [], ["Q", "A"]),
    ("image null", {"image": None, "conversations": [["Q", "A"]]}, [], ["Q", "A"]),
    ("text untouched", {"conversations": [[" Q\n", " A\n"]]}, [], [" Q\n", " A\n"]),
    ("two", {"image": ["a", "b"], "conversations": [["<image>\n<image>\nQ", "A"]]}, ["a", "b"], [TWO, "A"]),
    ("images", {"images": ["a", "b"], "conversations": [["<image>\n<image>\nQ", "A"]]}, ["a", "b"], [TWO, "A"]),
    (
        "two placed",
        {"image": ["a", "b"], "conversations": [["\nLeft <image>, right <image>? ", "A"]]},
        ["a", "b"],
        [("Left ", IMAGE, ", right ", IMAGE, "?"), "A"],
    ),
    (
        "two turns",
        {"image": ["a", "b"], "conversations": [["<image>\nQ", "A"], ["And <image>", "B"]]},
        ["a", "b"],
        [SHOWN, "A", (IMAGE, "\n", "And"), "B"],
    ),
    ("address", {"image": "HTTPS://x/a.png", "conversations": [["<image>Q", "A"]]}, ["HTTPS://x/a.png"], [SHOWN, "A"]),
    ("data URI", {"image": DATA, "conversations": [["<image>Q", "A"]]}, [DATA], [SHOWN, "A"]),
    (
        "opening answer",
        {"image": "a", "conversations": [gpt("Hello"), human("<image>\nQ"), gpt("A")]},
        ["a"],
        [SHOWN, "A"],
    ),
    ("unanswered", {"conversations": [human("Q"), gpt("A"), human("R")]}, [], ["Q", "A", "R"]),
    ("OpenAI text", {"messages": [role("user", "Q"), role("assistant", "A")]}, [], ["Q", "A"]),
    (
        "OpenAI parts",
        {"messages": [role("user", [url(DATA), said("Q")]), role("assistant", [said("A")])]},
        [DATA],
        [SHOWN, "A"],
    ),
    ("OpenAI behind", {"messages": [role("user", [said("Q"), url("a")]), role("assistant", "A")]}, ["a"], [SHOWN, "A"]),
    (
        "OpenAI two",
        {"messages": [role("user", [url("a"), url("b"), said("Q")]), role("assistant", "A")]},
        ["a", "b"],
        [(IMAGE, "\n", IMAGE, "\n", "Q"), "A"],
    ),
    (
        "OpenAI and image",
        {"image": "a", "messages": [role("user", "<image>\nQ"), role("assistant", "A")]},
        ["a"],
        [SHOWN, "A"],
    ),
    (
        "OpenAI mixed",
        {
            "image": "a",
            "messages": [
                role("user", [{"type": "image_url", "image_url": "b"}, said("Q")]),
                role("assistant", "A"),
                role("user", "<image>R"),
                role("assistant", "B"),
            ],
        },
        ["b", "a"],
        [SHOWN, "A", (IMAGE, "\n", "R"), "B"],
    ),
    ("<image> said", {"messages": [role("user", [said("<image>")]), role("assistant", "A")]}, [], ["<image>", "A"]),
    ("<image> answered", {"conversations": [["USER: </s>", "<image>"]]}, [], ["USER: </s>", "<image>"]),
]


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
@pytest.mark.parametrize(("record", "images", "texts"), [form[1:] for form in FORMS], ids=[form[0] for form in FORMS])
def test_reads_every_form(write: Write, name: str, record: dict[str, Any], images: list[str], texts: list[Any]) -> None:
    path = write([{"conversations": [["first", "one"]]}, record], name)
    sample = RecordFile(path)[1]
    resolved = [image if ":" in image else str(path.parent / image) for image in images]
    assert list(sample.images) == resolved
    roles = ("user", "assistant")
    assert sample.messages == tuple(Message(roles[n % 2], text) for n, text in enumerate(texts))
    assert sample.number == 2
    assert sample.name == f"{path}: record 2" + (" (line 2)" if name == "train.jsonl" else "")


def test_asks_as_a_chat_does(write: Write, v15: LlavaProcessor) -> None:
    """A chat's pictures go before the text, each on a line of its own."""
    records = [{"image": list("ab")[:n], "conversations": [["<image>\n" * n + "Q", "A"]]} for n in (1, 2)]
    parts = [*map(url, "ab"), said("Q")]
    records.append({"messages": [role("user", parts), role("assistant", "A")]})
    for n, sample in zip((1, 2, 2), RecordFile(write(records)), strict=True):
        chat = [Message("user", "Q", images=n), Message("assistant", "A")]
        trained, asked = (encode(render(m, TEMPLATES["vicuna_v1"]), v15.tokenizer) for m in (sample.messages, chat))
        assert trained == asked


def test_reads_the_documents_file() -> None:
    file, records = RecordFile(DOCUMENT), json.loads(DOCUMENT.read_text())
    assert len(file) == 3
    assert [sample.images for sample in file] == [(record["image"],) for record in records]
    assert file[2].messages == (Message("user", (IMAGE, "\n", "Is this a romantic book?")), Message("assistant", "No"))
    assert [json.loads(file.raw(index)) for index in range(3)] == records


def test_system_text(write: Write) -> None:
    turns = [human("Q"), gpt("A")]
    records = [{"conversations": [{"from": "system", "value": "Be brief."}, *turns]}, {"conversations": turns}]
    assert [sample.system for sample in RecordFile(write(records))] == ["Be brief.", None]


@pytest.mark.parametrize("source", ["a/b.png", "/a/b.png", "~/b.png", "http://x/b.png"])
def test_paths_begin_in_the_image_folder(write: Write, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    path = write([{"image": source, "conversations": [["<image>Q", "A"]]}])
    expected = {"a/b.png": "/pictures/a/b.png", "~/b.png": "/home/u/b.png"}.get(source, source)
    assert RecordFile(path, image_folder="/pictures")[0].images == (expected,)


def test_paths_that_are_not_beside_the_file_begin_in_the_working_directory(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in PaddleMIX's files; but not where a folder is given."""
    names = ["data/images/1.png", "both.png", "none.png"]
    (tmp_path / "data" / "images").mkdir(parents=True)
    path = write([{"image": name, "conversations": [["<image>Q", "A"]]} for name in names], "data/train.json")
    for name in ("data/images/1.png", "both.png", "data/both.png"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    beside = [str(tmp_path / "data" / name) for name in names]
    file = RecordFile(path)
    for opened in (file, pickle.loads(pickle.dumps(file))):  # noqa: S301 (our own)
        assert [sample.images[0] for sample in opened] == [names[0], *beside[1:]]
    assert [sample.images[0] for sample in RecordFile(path, image_folder=path.parent)] == beside


PAIR = ["<image>Q", "A"]
BAD: dict[str, tuple[Any, str]] = {
    "not an object": (5, "an object is expected, found 5"),
    "a list": ([1], "an object is expected, found a list"),
    "no conversation": ({"image": "a"}, "conversations .* found nothing"),
    "a picture of another name": ({"Image": "a.jpg", "conversations": [PAIR]}, "'Image' is no key of pictures here"),
    "a film": (
        {"video": "a.mp4", "messages": [human("Q"), {"role": "assistant", "content": "A"}]},
        "'video' is no key",
    ),
    "empty conversation": ({"conversations": []}, "found a list without anything"),
    "a conversation of text": ({"conversations": "Q"}, "found 'Q'"),
    "a turn of text": ({"conversations": ["Q"]}, "item 1: a pair or an object is expected, found 'Q'"),
    "a pair of one": ({"conversations": [PAIR, ["Q"]]}, "item 2: a pair of two texts"),
    "a number as answer": ({"conversations": [["Q", 5]]}, "item 1: a pair of two texts"),
    "an unknown speaker": (
        {"conversations": [human("Q"), {"from": "bot", "value": "A"}]},
        "from must .* 'bot'",
    ),
    "an unknown role": ({"messages": [role("tool", "Q")]}, "item 1: role must be one of .* 'tool'"),
    "nothing said": ({"conversations": [human("Q"), {"from": "gpt"}]}, "item 2: value must be text, found nothing"),
    "two questions": ({"conversations": [human("Q"), human("R"), gpt("A")]}, "must take turns"),
    "two opening answers": ({"conversations": [gpt("Q"), gpt("R"), human("A")]}, "must take turns"),
    "a late system text": ({"messages": [role("user", "Q"), role("system", "S")]}, "item 2: .*only come first"),
    "no answer": ({"conversations": [human("Q")]}, "no answer to learn from"),
    "only a system text": ({"messages": [role("system", "S")]}, "no answer to learn from"),
    "a blank answer": ({"conversations": [["Q", " \n"]]}, "no answer to learn from"),
    "a place too many": ({"image": "a", "conversations": [["<image><image>Q", "A"]]}, "2 <image> for 1 pictures"),
    "a place without picture": ({"conversations": [PAIR]}, "1 <image> for 0 pictures"),
    "a picture too many": ({"image": ["a", "b"], "conversations": [PAIR]}, "1 <image> for 2 pictures"),
    "pictures without place": ({"image": ["a", "b"], "conversations": [["Q", "A"]]}, "0 <image> for 2 pictures"),
    "a numbered image": ({"image": 7, "conversations": [PAIR]}, "image must be a path, URL or data URI, found 7"),
    "an empty image": ({"image": "", "conversations": [PAIR]}, "image must be a path, .*found ''"),
    "an image object": ({"image": {"bytes": "a"}, "conversations": [PAIR]}, "image must be a path, .*found an object"),
    "image and images": ({"image": "a", "images": ["a"], "conversations": [PAIR]}, "both given"),
    "an unknown part": ({"messages": [role("user", [{"type": "audio"}])]}, "part 1: a text or an image_url"),
    "a part of text": ({"messages": [role("user", ["Q"])]}, "part 1: a text or an image_url is expected, found 'Q'"),
    "an image_url without url": (
        {"messages": [role("user", [said("Q"), url("")])]},
        "2: image_url must be a path",
    ),
    "a picture in an answer": ({"messages": [role("user", "Q"), role("assistant", [url("a")])]}, "only the user shows"),
}


scraps = st.sampled_from(["Q", "<image>", "a.png", "human", "gpt", "system", "text", "image_url", "user", ""])
words = "image images conversations messages from value role content type text image_url url"
keys = st.sampled_from(words.split())
odd = st.recursive(
    scraps | st.none() | st.integers(-1, 1) | st.booleans() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


said_oddly = st.lists(st.lists(scraps, min_size=2, max_size=2) | odd, min_size=1, max_size=3)


@given(odd | st.fixed_dictionaries({"conversations": said_oddly}, optional={"image": scraps | odd}))
@settings(max_examples=400, deadline=None)
def test_whatever_stands_in_a_record_is_a_sample_or_an_error(record: Any) -> None:
    try:
        images, messages, _ = read_record(json.loads(json.dumps(record)))
    except LlavaError:
        return
    places = [part for message in messages if message.role == "user" for part in message.text if part == IMAGE]
    assert len(places) == len(images)
    assert any(message.role == "assistant" and str(message.text).strip() for message in messages)
    render(messages, TEMPLATES["vicuna_v1"])


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
@pytest.mark.parametrize("case", BAD)
def test_bad_records_are_named(write: Write, name: str, case: str) -> None:
    record, reason = BAD[case]
    path = write([{"conversations": [["Q", "A"]]}, {}, record], name)
    line = r" \(line 3\)" if name == "train.jsonl" else ""
    file = RecordFile(path)
    with pytest.raises(LlavaError, match=rf"{name}: record 3{line}: .*{reason}"):
        file[2]
    assert file[0].number == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": }', "not valid JSON: Expecting value .column 7"),
        (b'{"a": "\xff\xfe"}', "not in UTF-8"),
        (b'{"a": ' + b"[" * 100_000, "not JSON that can be read"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not JSON that can be read"),
        (b"{}{}", "not valid JSON: Extra data"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"conversations": [["Q", "A"]]}\n\n' + line + b"\n")
    file = RecordFile(path)
    assert len(file) == 2
    with pytest.raises(LlavaError, match=rf"record 2 .line 3.: {reason}"):
        file[1]


def test_a_pickled_file_does_not_search_again(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write([{"conversations": [["Q", str(n)]]} for n in range(100)])
    file = RecordFile(path)
    pickled = pickle.dumps(file)
    monkeypatch.setattr("paddle_llava.data.records.find_records", None)
    copy = pickle.loads(pickled)  # noqa: S301 (our own)
    assert list(copy) == list(file)
    path.write_text("[1]")
    with pytest.raises(LlavaError, match="has changed"):
        pickle.loads(pickled)  # noqa: S301
    path.unlink()
    with pytest.raises(LlavaError, match="cannot be read any more"):
        pickle.loads(pickled)  # noqa: S301


@pytest.mark.parametrize("text", ["[]", '[{"conversations": [["Q", "another"]]}, {}]'])
def test_a_file_that_is_written_over_meanwhile_is_told(write: Write, text: str) -> None:
    """And does not end the process, as looking beyond the end of a mapped file does."""
    path = write([{"conversations": [["Q", "A" * 10_000]]}] * 2)
    file = RecordFile(path)
    path.write_text(text)
    with pytest.raises(FileChanged, match=r"the file has changed since it was opened; start again"):
        file[1]


def test_indices_end_where_records_do(write: Write) -> None:
    file = RecordFile(write([{}]))
    for index in (1, -1):
        with pytest.raises(IndexError):
            file.raw(index)


def test_a_large_file_is_kept_as_places(tmp_path: Path) -> None:
    """100,000 records: 16 bytes of places each, and no dictionary until one is asked for."""
    path = tmp_path / "large.json"
    record = '{"id": "%07d", "image": "%07d.jpg", "conversations": [["<image>\\nWhat is it, 图?", "Number %d."]]}'
    path.write_text("[" + ",\n".join(record % (n, n, n) for n in range(100_000)) + "]", encoding="utf-8")
    file = RecordFile(path)
    assert len(file) == 100_000
    assert len(pickle.dumps(file)) < 20 * len(file)
    for index in (0, 54_321, 99_999):
        assert file[index].messages[1].text == f"Number {index}."
        assert file[index].images == (str(tmp_path / f"{index:07}.jpg"),)
