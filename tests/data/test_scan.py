from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_llava.data import scan
from paddle_llava.data.scan import find_records, map_file
from paddle_llava.errors import LlavaError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | texts
    | st.sampled_from(['"', "\\", "]},["]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scan")


def records_of(path: Path) -> list[object]:
    data = map_file(path)
    spans, _ = find_records(data, "file")
    return [json.loads(data[start:end]) for start, end in spans]


@given(
    records=st.lists(values, min_size=1, max_size=6),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 0, 3]),
    chunk=st.integers(1, 40),
    frame=st.sampled_from([("", ""), ("\ufeff", "\n"), (" \n", "\r\n ")]),
)
@settings(max_examples=200, deadline=None)
def test_finds_what_json_finds_wherever_chunks_end(
    folder: Path, records: list[object], ascii_only: bool, indent: int | None, chunk: int, frame: tuple[str, str]
) -> None:
    path = folder / "list.json"
    text = json.dumps(records, ensure_ascii=ascii_only, indent=indent)
    path.write_text(frame[0] + text + frame[1], encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "CHUNK", max(chunk, 8))
        assert records_of(path) == records


@given(
    records=st.lists(st.dictionaries(texts, values, max_size=3) | st.just(""), min_size=1, max_size=8),
    chunk=st.integers(8, 40),
    newline=st.sampled_from(["\n", "\r\n"]),
    ends=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_finds_lines_and_skips_blank_ones(
    folder: Path, records: list[object], chunk: int, newline: str, ends: bool
) -> None:
    path = folder / "lines.jsonl"
    lines = ["{}", *("   " if record == "" else json.dumps(record) for record in records)]
    path.write_text(newline.join(lines) + newline * ends, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "CHUNK", chunk)
        data = map_file(path)
        spans, numbers = find_records(data, "file")
    assert numbers is not None
    expected = [(number, json.loads(line)) for number, line in enumerate(lines, 1) if line.strip()]
    found = zip(numbers.tolist(), (json.loads(data[start:end]) for start, end in spans), strict=True)
    assert list(found) == expected


BROKEN = {
    "": "empty",
    "   ": "neither a JSON list",
    "hello": "neither a JSON list",
    '"text"': "neither a JSON list",
    "[]": "no records",
    "[": r"record 1 \(line 1, column 2\): the file ends",
    '[{"a": 1}': r"record 1 .*comma or the end of the list",
    '[{"a": 1},': r"record 2 .*the file ends",
    '[{"a": 1},\n]': r"record 2 \(line 2, column 1\): Expecting value",
    '[{"a": 1},\n {"b": }]': r"record 2 \(line 2, column 8\): Expecting value",
    '[{"a": 1},\n {"b": "x}]': r"record 2 \(line 2, column 8\): Unterminated string",
    '[{"a": 1} {"b": 2}]': r"record 1 \(line 1, column 11\): a comma",
    '[{"a": 1}] more': "something follows the end of the list .line 1",
    "[" + "[" * 100_000: "record 1 .*not JSON that can be read",
    "[1" + "0" * 5000 + "]": "record 1 .*not JSON that can be read",
}


@pytest.mark.parametrize("chunk", [8, 1 << 20])
@pytest.mark.parametrize("text", BROKEN)
def test_says_where_a_file_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, chunk: int) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    monkeypatch.setattr(scan, "CHUNK", chunk if len(text) < 1000 else 1 << 20)
    with pytest.raises(LlavaError, match=BROKEN[text]):
        find_records(map_file(path), "broken.json")


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    for path, reason in [(tmp_path, "folder"), (tmp_path / "none.json", "No such file"), (Path("a\0b"), "a")]:
        with pytest.raises(LlavaError, match=reason):
            map_file(path)
