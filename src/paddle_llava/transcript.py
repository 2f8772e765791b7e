"""A conversation written down: as JSON for programs, as Markdown for people."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from paddle_llava.errors import LlavaError

if TYPE_CHECKING:
    from paddle_llava.generation.session import ChatSession
    from paddle_llava.processing.processor import LlavaProcessor


class Shown(NamedTuple):
    """A picture of a conversation: what the person called it, and its size in pixels."""

    name: str
    width: int
    height: int


def boxes_of(processor: LlavaProcessor, answer: str, picture: Shown | None) -> list[list[float]]:
    """The boxes that an answer names, in pixels of the picture shown last before it, to a tenth."""
    found = processor.answer_boxes(answer, picture.width, picture.height) if picture else []
    return [[round(value, 1) for value in box] for box in found]


def told(session: ChatSession, pictures: Sequence[Shown]) -> Iterator[dict[str, Any]]:
    """The messages of a conversation whose `pictures` were shown in that order: `role`, `content`, and where there are
    any the names of its `images`, or the `boxes` of an answer."""
    left, latest = iter(pictures), None
    for message in session.messages:
        images = [next(left) for _ in range(message.images)]
        latest = images[-1] if images else latest
        entry: dict[str, Any] = {"role": message.role, "content": message.text}
        if images:
            entry["images"] = [image.name for image in images]
        if message.role == "assistant" and (boxes := boxes_of(session.processor, str(message.text), latest)):
            entry["boxes"] = boxes
        yield entry


def as_json(session: ChatSession, pictures: Sequence[Shown], model: str) -> str:
    """One object: `model`, `template`, `system` and the `messages`."""
    head = {"model": model, "template": session.template.name, "system": session.template.system}
    return json.dumps(head | {"messages": list(told(session, pictures))}, indent=2, ensure_ascii=False) + "\n"


def as_markdown(session: ChatSession, pictures: Sequence[Shown], model: str) -> str:
    """A page with the pictures linked."""
    user, assistant = session.template.roles
    paragraphs = [f"# A conversation with {model}"]
    for message in told(session, pictures):
        paragraphs += [f"![picture](<{name}>)" for name in message.get("images", ())]
        paragraphs.append(f"**{user if message['role'] == 'user' else assistant}:** {message['content']}")
    return "\n\n".join(paragraphs) + "\n"


def save(name: str, session: ChatSession, pictures: Sequence[Shown], model: str) -> None:
    """Write a conversation to a new file, as JSON or as Markdown by its ending. Raises `LlavaError` for /save."""
    path = Path(os.path.expanduser(name))
    if path.suffix not in (".json", ".md"):
        raise LlavaError(f"/save: {name!r} must be the name of a file that ends in .json or .md")
    if not session.messages:
        raise LlavaError("/save: nothing has been said yet")
    text = (as_json if path.suffix == ".json" else as_markdown)(session, pictures, model)
    try:
        with path.open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except FileExistsError:
        raise LlavaError(f"/save: {name!r} already exists; choose another name") from None
    except (OSError, ValueError) as error:
        raise LlavaError(f"/save: {name!r} cannot be written ({error})") from None
