"""Benchmarks' files, read with errors that name file and record."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from paddle_llava.data.pictures import cache_folder
from paddle_llava.data.records import ADDRESS, record_name
from paddle_llava.data.scan import find_records, map_file
from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.records import Question
from paddle_llava.json_file import read_json

MAX_BYTES = 4 << 30

Value = TypeVar("Value")
_KINDS: dict[type, str] = {str: "text", int: "a whole number", list: "a list", dict: "an object", float: "a number"}


@dataclass(frozen=True)
class Data:
    """What `--data` and `--image-folder` name: files, folders of them, and where pictures are."""

    paths: tuple[Path, ...]
    image_folder: Path | None = None

    def files(self, *endings: str) -> list[Path]:
        """The files with one of these endings; of a folder those directly in it. Raises `LlavaError` without any."""
        found = []
        for path in self.paths:
            if path.is_dir():
                found += sorted(file for file in path.iterdir() if file.is_file() and file.name.endswith(endings))
            else:
                found.append(path)
        if not found:
            wanted = " or ".join(endings)
            where = self.paths[0] if self.paths else "--data"
            raise LlavaError(f"{where}: no {wanted} file is there; give the benchmark's own files with --data")
        return found

    def image(self, name: str, near: Path, *folders: str) -> str:
        """The path of the picture `name`, in the image folder or else near the file that names it.

        `folders` are where the benchmark's own layout puts pictures, tried after that place itself. URLs stay.
        """
        if ADDRESS.match(name):
            return name
        start = near.parent if self.image_folder is None else self.image_folder
        places = [os.path.join(start, name), *(os.path.join(start, folder, name) for folder in folders)]
        return next((place for place in places if os.path.isfile(place)), places[0])


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, no key twice. Raises `LlavaError` naming the file, and the place of a mistake."""
    return read_json(path, MAX_BYTES, unique_keys=True)


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON list or a JSONL file, each with its name for a message to a person."""
    data = map_file(path)
    spans, lines = find_records(data, str(path))
    for index, (start, end) in enumerate(spans):
        where = record_name(str(path), index + 1, None if lines is None else int(lines[index]))
        try:
            record = json.loads(data[start:end])
        except (ValueError, RecursionError):
            raise LlavaError(f"{where}: not valid JSON in UTF-8") from None
        yield where, as_object(record, where)


def listed(record: dict[str, Any], key: str, where: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects in the list `record[key]`, each with its name for a message to a person."""
    for number, item in enumerate(get(record, key, list, where), 1):
        place = f"{where}: {key}, item {number}"
        yield place, as_object(item, place)


def as_object(value: Any, where: str | Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise LlavaError(f"{where}: an object is expected, found {_shown(value)}")
    return value


def get(record: dict[str, Any], key: str, kind: type[Value], where: str | Path) -> Value:
    """`record[key]`, which must be of `kind`."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, kind):
        raise LlavaError(f"{where}: {key} must be {_KINDS[kind]}, found {_shown(value)}")
    return value


def by_id(record: dict[str, Any], key: str, name: str, where: str | Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """The objects in the list `record[key]`, with their names for messages, by their `name`, which must be unique."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for place, item in listed(record, key, where):
        id = get_id(item, name, place)
        if id in found:
            raise LlavaError(f"{place}: the {name} {id[:60]!r} is that of {found[id][0]} already")
        found[id] = place, item
    return found


def get_id(record: dict[str, Any], key: str, where: str | Path) -> str:
    """`record[key]`, a number or a text, as a text."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise LlavaError(f"{where}: {key} must be a number or a name, found {_shown(value)}")
    return str(value)


def texts(values: Iterable[Any], where: str | Path, what: str) -> tuple[str, ...]:
    """`values`, each of which must be text."""
    values = tuple(values)
    for value in values:
        if not isinstance(value, str):
            raise LlavaError(f"{where}: {what} must be texts, found {_shown(value)}")
    return values


def get_box(record: dict[str, Any], key: str, where: str | Path) -> tuple[float, float, float, float]:
    """`record[key]`, four finite numbers."""
    value = record.get(key)
    good = isinstance(value, list) and len(value) == 4
    if not good or not all(type(number) in (int, float) and abs(number) < 1e9 for number in value):  # type: ignore[union-attr]
        raise LlavaError(f"{where}: {key} must be four numbers, found {_shown(value)}")
    x, y, z, w = map(float, value)  # type: ignore[arg-type]
    return x, y, z, w


def letter_place(answer: str, options: int, where: str | Path) -> int:
    """Which option a letter names, from 0."""
    place = ord(answer) - ord("A") if len(answer) == 1 else -1
    if not 0 <= place < options:
        raise LlavaError(f"{where}: the answer must be the letter of one of {options} options, found {answer[:40]!r}")
    return place


def keep_picture(content: bytes, where: str) -> str:
    """The path of a picture's copy in the cache, named after its SHA-256; it appears whole or not at all."""
    digest = hashlib.sha256(content).hexdigest()
    path = cache_folder() / digest[:2] / digest
    if not path.is_file():
        part = path.with_name(f".part-{digest}-{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(content)
            os.replace(part, path)
        except OSError as error:
            raise LlavaError(
                f"{where}: its picture cannot be kept in {path.parent}: {error.strerror or error}"
            ) from None
    return str(path)


def unique(questions: Sequence[tuple[str, Question]]) -> list[Question]:
    """Questions without their records' names, once it is certain that no id comes twice."""
    seen: dict[str, str] = {}
    for where, question in questions:
        if question.id in seen:
            raise LlavaError(f"{where}: the id {question.id[:60]!r} is that of {seen[question.id]} already")
        seen[question.id] = where
    return [question for _, question in questions]


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, (str, int, float)):
        return ascii(value)[:40]
    return "a list" if isinstance(value, list) else "an object"
