"""The forms of a training record, or of a question like one, -> pictures, messages and system text.

    {"image": "a.jpg", "conversations": [["<image>\\nWhat is it?", "A bus."], ["Which colour?", "Red."]]}
    {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                         {"from": "gpt", "value": "A bus."}]}
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.jpg"}},
                                               {"type": "text", "text": "What is it?"}]},
                  {"role": "assistant", "content": "A bus."}]}

`image` (or `images`) is a path, an http(s) URL or a base64 data URI, a list of these, or absent. Each `<image>` in
what a user says is the place of the next picture, and only a place. As in the original LLaVA, the one picture of a
question goes before its text, on a line of its own, wherever its `<image>` stood; several stay where they are. One
picture without any `<image>` goes before the first question. `<image>` in an answer or a system text, or in a text
part of a content list (whose parts stand on lines of their own), is ordinary text, as is everything else that looks
like structure.

A conversation may begin with a system text. An answer before the first question is dropped, as in the original.

A record to be answered ends with the user's question in the place of an answer, or is shorter still:

    {"image": "a.jpg", "prompt": "What is it?"}
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from paddle_llava.errors import LlavaError
from paddle_llava.processing.conversation import IMAGE, Message, Segment
from paddle_llava.processing.tokenizer import IMAGE_TOKEN

STRAY = {
    *("image", "images", "img", "imgs", "picture", "pictures", "video", "videos"),
    *("image_path", "image_paths", "image_file", "image_files", "image_url", "image_urls", "image_name"),
}

Role = Literal["system", "user", "assistant"]
ROLES: dict[Any, Role] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
}


@dataclass(frozen=True)
class _Picture:
    """A picture within what a user says; without a source, the next one of the record's own."""

    source: str | None = None


class _Turn(NamedTuple):
    role: Role
    parts: list[str | _Picture]

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))


class Contents(NamedTuple):
    """Pictures in reading order, as the record names them, and messages in which each has its place."""

    images: tuple[str, ...]
    messages: tuple[Message, ...]
    system: str | None


def read_record(record: Any) -> Contents:
    """The contents of a record of any of the forms, parsed from JSON. Raises `LlavaError`."""
    contents = _contents(record)
    if not any(message.role == "assistant" and str(message.text).strip() for message in contents.messages):
        raise LlavaError("there is no answer to learn from")
    return contents


def read_question(record: Any) -> Contents:
    """The contents of a record whose last message is the user's, parsed from JSON. Raises `LlavaError`."""
    if isinstance(record, dict) and "prompt" in record:
        if both := record.keys() & {"messages", "conversations"}:
            raise LlavaError(f"prompt and {both.pop()} are both given; use one of them")
        if not isinstance(record["prompt"], str) or not record["prompt"].strip():
            raise LlavaError(f"prompt must be text, found {_kind(record['prompt'])}")
        record = {**record, "messages": [{"role": "user", "content": record["prompt"]}]}
    contents = _contents(record)
    if not contents.messages or contents.messages[-1].role != "user":
        raise LlavaError("the last message must be the user's: it is what is answered")
    return contents


def _contents(record: Any) -> Contents:
    if not isinstance(record, dict):
        raise LlavaError(f"an object is expected, found {_kind(record)}")
    own_images = _own_images(record)
    turns = list(_turns(record))
    system = turns.pop(0).text if turns[0].role == "system" else None
    if turns and turns[0].role == "assistant":
        del turns[0]
    if any(turn.role != ("user", "assistant")[number % 2] for number, turn in enumerate(turns)):
        raise LlavaError("user and assistant must take turns, the user first")
    pictures = [part for turn in turns for part in turn.parts if isinstance(part, _Picture)]
    if len(own_images) == 1 and not pictures and turns:
        turns[0].parts.insert(0, _Picture())
        pictures = [_Picture()]
    has_any = bool(own_images) or any(picture.source is not None for picture in pictures)
    if not has_any and (stray := next(_stray_pictures(record), None)):
        raise LlavaError(f"{stray[:60]!r} is no key of pictures here, and the record has no other; name it image")
    places = pictures.count(_Picture())
    if places != len(own_images):
        raise LlavaError(f"{places} {IMAGE_TOKEN} for {len(own_images)} pictures; each needs its place in a question")
    rest = iter(own_images)
    images = tuple(next(rest) if picture.source is None else picture.source for picture in pictures)
    return Contents(images, tuple(map(_message, turns)), system)


def _stray_pictures(record: dict[str, Any]) -> Iterator[str]:
    """Keys by which other programs know pictures; such a record would be learnt blind, without a word."""
    return (key for key, value in record.items() if value and key.lower() in STRAY)


def _own_images(record: dict[str, Any]) -> list[str]:
    """The pictures listed beside the conversation."""
    key = "images" if "images" in record else "image"
    if "image" in record and "images" in record:
        raise LlavaError("image and images are both given; use one of them")
    value = record.get(key)
    listed = [] if value is None else value if isinstance(value, list) else [value]
    return [_source(item, key) for item in listed]


def _source(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise LlavaError(f"{key} must be a path, URL or data URI, found {_kind(value)}")
    return value


def _turns(record: dict[str, Any]) -> Iterator[_Turn]:
    key = "messages" if "messages" in record else "conversations"
    said = record.get(key)
    if not isinstance(said, list) or not said:
        raise LlavaError(f"conversations (or messages) must be a list of what is said, found {_kind(said)}")
    for number, item in enumerate(said, 1):
        where = f"{key}, item {number}"
        if isinstance(item, list):
            if len(item) != 2 or not all(isinstance(text, str) for text in item):
                raise LlavaError(f"{where}: a pair of two texts is expected, what the user says and the answer")
            yield _Turn("user", _marked(item[0]))
            yield _Turn("assistant", [item[1]])
        elif isinstance(item, dict):
            yield _turn(item, where, may_be_system=number == 1)
        else:
            raise LlavaError(f"{where}: a pair or an object is expected, found {_kind(item)}")


def _turn(item: dict[str, Any], where: str, *, may_be_system: bool) -> _Turn:
    speaker, said = ("role", "content") if "role" in item else ("from", "value")
    name = item.get(speaker)
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise LlavaError(f"{where}: {speaker} must be one of {', '.join(ROLES)}, found {_kind(name)}")
    if role == "system" and not may_be_system:
        raise LlavaError(f"{where}: a system text can only come first")
    content = item.get(said)
    if isinstance(content, list):
        parts = list(_content_parts(content, f"{where}, {said}"))
        if role != "user" and any(isinstance(part, _Picture) for part in parts):
            raise LlavaError(f"{where}: only the user shows pictures")
        return _Turn(role, parts)
    if not isinstance(content, str):
        raise LlavaError(f"{where}: {said} must be text, found {_kind(content)}")
    return _Turn(role, _marked(content) if role == "user" else [content])


def _marked(text: str) -> list[str | _Picture]:
    """Text whose every `<image>` is the place of a picture."""
    first, *rest = text.split(IMAGE_TOKEN)
    return [first, *(part for piece in rest for part in (_Picture(), piece))]


def _content_parts(content: list[Any], where: str) -> Iterator[str | _Picture]:
    """The parts of a content list, each on a line of its own."""
    for number, item in enumerate(content, 1):
        kind = item.get("type") if isinstance(item, dict) else None
        if number > 1:
            yield "\n"
        if kind == "text" and isinstance(item.get("text"), str):
            yield item["text"]
        elif kind == "image_url":
            address = item.get("image_url")
            url = address.get("url") if isinstance(address, dict) else address
            yield _Picture(_source(url, f"{where}, part {number}: image_url"))
        else:
            raise LlavaError(f"{where}, part {number}: a text or an image_url is expected, found {_kind(item)}")


def _message(turn: _Turn) -> Message:
    if turn.role == "assistant":
        return Message("assistant", turn.text)
    pictures = sum(isinstance(part, _Picture) for part in turn.parts)
    if not pictures:
        return Message("user", turn.text)
    if pictures == 1:
        text = turn.text.strip()
        return Message("user", (IMAGE, "\n", text) if text else (IMAGE,))
    parts: list[str | Segment] = [IMAGE if isinstance(part, _Picture) else part for part in turn.parts]
    for end, strip in ((0, str.lstrip), (-1, str.rstrip)):
        outer = parts[end]
        if isinstance(outer, str):
            parts[end] = strip(outer)
    return Message("user", tuple(part for part in parts if part != ""))


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, (str, int, float)):
        return ascii(value)[:40]
    return ("a list" if isinstance(value, list) else "an object") + ("" if value else " without anything in it")
