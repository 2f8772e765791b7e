"""A training file, a JSON list or JSONL, as a sequence of samples. The forms of a record: `paddle_llava.data.forms`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddle_llava.data.forms import Contents, read_record
from paddle_llava.data.scan import find_records, map_file
from paddle_llava.errors import LlavaError
from paddle_llava.processing.conversation import Message

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)


@dataclass(frozen=True)
class Sample:
    """One record: its pictures in reading order, each a path, URL or data URI, and its messages.

    `number` counts the records of `file` from 1; `line` is that of a JSONL file. `system` replaces the template's
    system text.
    """

    images: tuple[str, ...]
    messages: tuple[Message, ...]
    number: int
    file: str
    line: int | None = None
    system: str | None = None

    @property
    def name(self) -> str:
        """The record, for a message to a person."""
        return record_name(self.file, self.number, self.line)


def record_name(file: str, number: int, line: int | None) -> str:
    return f"{file}: record {number}" + (f" (line {line})" if line else "")


class FileChanged(LlavaError):
    """A training file was written to while it was read: no record of it is where it was."""


class RecordFile:
    """The samples of a training file, each parsed when it is asked for: `len(file)`, `file[0]`.

    Relative paths of pictures start at `image_folder`, or else at the file's own folder or, where nothing is there, at
    the working directory, as in PaddleMIX's files. Opening reads the file through once and raises `LlavaError` when it
    is no list of records; asking for a record raises it, with its number, when it cannot be a sample, and
    `FileChanged`. `read` makes the contents of a sample of what its JSON says. Pickling carries the places of the
    records, so that a worker process need not search again.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        image_folder: str | Path | None = None,
        read: Callable[[Any], Contents] = read_record,
    ) -> None:
        self.path = Path(path)
        self.read = read
        self.image_folder = self.path.parent if image_folder is None else Path(os.path.expanduser(image_folder))
        self._looks_here = image_folder is None
        with map_file(self.path) as data:
            self._spans, self._lines = find_records(data, str(self.path))
        # Read and not mapped from here on: of a mapped file that somebody shortens, the next look ends the process.
        self._file = self.path.open("rb", buffering=0)
        self._state = self._present_state()

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Sample:
        name, raw = self.name(index), self.raw(index)
        try:
            images, messages, system = self.read(json.loads(raw.decode()))
        except json.JSONDecodeError as error:
            raise LlavaError(f"{name}: not valid JSON: {error.msg} (column {error.pos + 1})") from None
        except UnicodeDecodeError:
            raise LlavaError(f"{name}: not in UTF-8") from None
        except (RecursionError, ValueError):  # nested too deep, or a number of thousands of digits
            raise LlavaError(f"{name}: not JSON that can be read") from None
        except LlavaError as error:
            raise LlavaError(f"{name}: {error}") from None
        sources = tuple(map(self._resolved, images))
        return Sample(sources, messages, index + 1, str(self.path), self._line(index), system)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    @property
    def is_jsonl(self) -> bool:
        return self._lines is not None

    def name(self, index: int) -> str:
        """Record `index`, counted from 0, for a message to a person."""
        return record_name(str(self.path), index + 1, self._line(index))

    def raw(self, index: int) -> bytes:
        """The bytes of a record as they stand in the file."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = map(int, self._spans[index])
        content = os.pread(self._file.fileno(), end - start, start)
        self._check_state()
        return content

    def _present_state(self) -> tuple[int, int]:
        """Size and time."""
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def _check_state(self) -> None:
        if self._present_state() != self._state:
            raise FileChanged(f"{self.path}: the file has changed since it was opened; start again")

    def _line(self, index: int) -> int | None:
        return None if self._lines is None else int(self._lines[index])

    def _resolved(self, source: str) -> str:
        if ADDRESS.match(source):
            return source
        path = os.path.expanduser(source)
        beside = os.path.join(self.image_folder, path)
        return path if self._looks_here and not os.path.exists(beside) and os.path.exists(path) else beside

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        try:
            self._file = self.path.open("rb", buffering=0)
        except OSError as error:
            raise FileChanged(f"{self.path}: cannot be read any more ({error.strerror or error})") from None
        self._check_state()
