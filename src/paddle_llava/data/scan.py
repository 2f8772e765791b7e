"""Where the records of a training file begin and end, found by reading it through once.

The file's bytes stay on disk (mapped); what is kept are two integers a record, so that 558,000 records cost 9 MB.
A record is parsed again when it is asked for.
"""

from __future__ import annotations

import json
import mmap
import re
from array import array
from pathlib import Path

import numpy as np

from paddle_llava.errors import LlavaError

CHUNK = 16 << 20
MAX_RECORD = 256 << 20
BOM = b"\xef\xbb\xbf"
SPACE = re.compile(r"[ \t\n\r]*")
LONGEST_LITERAL = 16  # "-Infinity", an escape: what the end of a chunk can cut in two besides strings


def map_file(path: Path) -> mmap.mmap:
    """The bytes of the file at `path`, read from disk as they are looked at. Raises `LlavaError`."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except IsADirectoryError:
        raise LlavaError(f"{path}: a folder; give the JSON or JSONL file itself") from None
    except OSError as error:
        raise LlavaError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError:  # nothing can be mapped of an empty file, nor of a path with a NUL
        raise LlavaError(f"{path}: empty; a list of records is expected") from None


def find_records(data: mmap.mmap, where: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The records of a JSON list, or of JSONL when the text begins with an object.

    Gives `spans`, int64 [records, 2], each record's first byte and the one after its last; and for JSONL `lines`,
    int64 [records], counted from 1 (blank lines are skipped), else None. A JSON list is checked to be well-formed; a
    line of JSONL is so only when its record is asked for. Raises `LlavaError` naming `where`, record and line.
    """
    start = len(BOM) if data[: len(BOM)] == BOM else 0
    head = data[start : start + CHUNK].lstrip()
    if head[:1] == b"[":
        return _list_records(data, start, where), None
    if head[:1] == b"{":
        return _line_records(data, start)
    raise LlavaError(f"{where}: neither a JSON list of records ([...]) nor JSONL (an object a line), in UTF-8")


def _list_records(data: mmap.mmap, start: int, where: str) -> np.ndarray:
    # As Latin-1 each byte is a character, so that the decoder's positions are the file's. It sees wrong letters in
    # strings, but the structure, and what ends a string, is ASCII.
    decode = json.JSONDecoder().raw_decode
    spans = array("q")
    text, base, at = "", start, 0  # a window of the file, where it begins, and the place in it

    def move_on() -> bool:
        """Begin the window at the present place and reach further than now; False at the end of the file."""
        nonlocal text, base, at
        end = base + len(text)
        if end == len(data):
            return False
        base, at = base + at, 0
        text = data[base : end + max(CHUNK, end - base)].decode("latin-1")
        return True

    def past_space() -> str:
        """The next character that is no space, empty at the end of the file."""
        nonlocal at
        while True:
            at = SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too
            if at < len(text):
                return text[at]
            if not move_on():
                return ""

    def fault(reason: str, position: int) -> LlavaError:
        line, column = _line_and_column(data, position)
        return LlavaError(f"{where}: record {len(spans) // 2 + 1} (line {line}, column {column}): {reason}")

    past_space()
    at += 1  # the opening bracket
    separator = past_space()
    while separator != "]":
        if not past_space():
            raise fault("the file ends before its list does; is it cut?", len(data))
        try:
            _, end = decode(text, at)
            if text[at] not in '{["' and end > len(text) - LONGEST_LITERAL and move_on():
                continue  # a number, which may go on
        except json.JSONDecodeError as error:
            cut = error.msg.startswith("Unterminated") or error.pos > len(text) - LONGEST_LITERAL
            position = base + error.pos
            if cut and len(text) - at < MAX_RECORD and move_on():
                continue
            raise fault(error.msg, position) from None
        except (RecursionError, ValueError):  # nested too deep, or a number of thousands of digits
            raise fault("not JSON that can be read", base + at) from None
        span = base + at, base + end
        at = end
        separator = past_space()
        if separator not in (",", "]"):  # nor is the end of the file
            raise fault("a comma or the end of the list is expected after it", base + at)
        spans.extend(span)
        at += 1
    if not spans:
        raise LlavaError(f"{where}: the list has no records")
    if past_space():
        line, _ = _line_and_column(data, base + at)
        raise LlavaError(f"{where}: something follows the end of the list (line {line})")
    return np.frombuffer(spans, np.int64).reshape(-1, 2)


def _line_records(data: mmap.mmap, start: int) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for offset in range(start, len(data), CHUNK):
        chunk = np.frombuffer(data[offset : offset + CHUNK], np.uint8)
        found.append(np.flatnonzero(chunk == ord("\n")) + offset)
    ends = np.concatenate([*found, [len(data)]]).astype(np.int64)
    starts = np.concatenate([[start], ends[:-1] + 1])
    blank = starts == ends
    for line in np.flatnonzero(~blank):
        if data[starts[line]] <= ord(" "):
            blank[line] = not data[starts[line] : ends[line]].strip()
    lines = np.flatnonzero(~blank)
    return np.stack([starts[lines], ends[lines]], axis=1), lines + 1


def _line_and_column(data: mmap.mmap, position: int) -> tuple[int, int]:
    line = 1 + sum(data[at : min(at + CHUNK, position)].count(b"\n") for at in range(0, position, CHUNK))
    return line, position - data.rfind(b"\n", 0, position)
