"""JSON files: read with bounds, and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paddle_llava.errors import LlavaError

MAX_BYTES = 16 << 20


def read_json(path: Path, max_bytes: int = MAX_BYTES, *, unique_keys: bool = False) -> dict[str, Any]:
    """The object in the file at `path`, of at most `max_bytes`; with `unique_keys` no key may stand in one twice.

    A byte order mark before it is left aside, for programs on Windows write one. Raises `LlavaError` naming the file,
    and the line of a mistake.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in found if keys.count(key) > 1)
            raise LlavaError(f"{path}: {twice[:60]!r} is there twice, and only one of them can count")
        return found

    try:
        if path.stat().st_size > max_bytes:
            raise LlavaError(f"{path}: larger than {max_bytes >> 20} MiB, which no such file is")
        value = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique if unique_keys else None)
    except json.JSONDecodeError as error:
        raise LlavaError(f"{path}: not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except (UnicodeDecodeError, RecursionError, ValueError):
        raise LlavaError(f"{path}: not valid JSON") from None
    except OSError as error:
        raise LlavaError(f"{path}: cannot be read ({error.strerror})") from None
    if not isinstance(value, dict):
        raise LlavaError(f"{path}: a JSON object is expected, found {type(value).__name__}")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write `value` to `path`, indented, Chinese text left readable."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
