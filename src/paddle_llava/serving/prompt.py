"""A request's messages become the tokens of a prompt, and its pictures."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from paddle_llava.processing.conversation import IMAGE, Message, Segment, encode, render
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.serving.errors import ApiError
from paddle_llava.serving.schema import AssistantMessage, ChatMessage, SystemMessage, TextPart, UserMessage

_SALT = secrets.token_bytes(32)
STRIP = 256


Pixels = tuple[np.ndarray, np.ndarray]  # as `LlavaProcessor.prepare_images` gives them


@dataclass(frozen=True)
class Picture:
    """What the model is shown of a picture of `size` (height, width): its `features` if they are known, else its
    `pixels`. `key` is as `picture_key` says."""

    size: tuple[int, int]
    key: int
    pixels: Pixels | None
    features: Any | None


def picture_key(image: Image.Image) -> int:
    """The same for the same pixels, and not to be foreseen from outside."""
    digest = hashlib.blake2b(np.array(image.size, np.int64).tobytes(), digest_size=8, key=_SALT)
    for top in range(0, image.height, STRIP):  # the bytes of all of it would take twice its memory once more
        digest.update(image.crop((0, top, image.width, min(top + STRIP, image.height))).tobytes())
    # Negative: a prompt's keys are its token ids, and these in the place of image tokens.
    return -1 - (int.from_bytes(digest.digest(), "little") >> 1)


@dataclass(frozen=True)
class Prompt:
    """`ids` int64 [tokens], and `keys` of the same shape, which are equal exactly where what is run is equal: the
    image tokens of a picture are its key. `starts` and `counts` say where each picture's tokens are, and `last_size`
    is (height, width) of the last."""

    ids: np.ndarray
    keys: np.ndarray
    starts: tuple[int, ...]
    counts: tuple[int, ...]
    last_size: tuple[int, int] | None


def image_urls(messages: Sequence[ChatMessage]) -> list[tuple[str, str]]:
    """(where it stands, URL) of each picture in the order in which the prompt shows them."""
    found = []
    for number, message in enumerate(messages):
        if isinstance(message, UserMessage) and not isinstance(message.content, str):
            for place, part in enumerate(message.content):
                if not isinstance(part, TextPart):
                    found.append((f"messages.{number}.content.{place}.image_url", part.image_url.url))
    return found


def text_length(message: ChatMessage) -> int:
    """Letters of a message."""
    content = message.content or ""
    return len(content) if isinstance(content, str) else sum(len(x.text) for x in content if isinstance(x, TextPart))


def build_prompt(messages: Sequence[ChatMessage], pictures: Sequence[Picture], processor: LlavaProcessor) -> Prompt:
    """The prompt up to where the answer begins. Raises `ApiError` for an order of messages that is none here."""
    template, turns = processor.template, list(messages)
    system = [turn for turn in turns if isinstance(turn, SystemMessage)]
    if turns[: len(system)] != system:
        late = next(n for n, turn in enumerate(turns) if n >= len(system) or not isinstance(turn, SystemMessage))
        raise ApiError(400, "system messages must be the first", param=f"messages.{late}.role")
    if system:
        template = replace(template, system="\n".join(_text(turn.content) for turn in system))
    said = _taking_turns(turns[len(system) :])
    segments = render(said, template, add_generation_prompt=True)
    token_ids = encode(segments, processor.tokenizer).ids
    counts = [processor.config.image_layout(picture.size).num_features for picture in pictures]
    return _expanded(token_ids, counts, pictures, processor.config.image_token_id)


def _taking_turns(turns: Sequence[ChatMessage]) -> list[Message]:
    """User and assistant by turns: what one side says in several messages is joined."""
    if not turns or isinstance(turns[-1], AssistantMessage):
        raise ApiError(400, "the last message must be the user's", param="messages")
    if isinstance(turns[0], AssistantMessage):
        raise ApiError(400, "the first message must be the user's", param="messages")
    said: list[Message] = []
    for turn in turns:
        if isinstance(turn, AssistantMessage):
            text = _text(turn.content or "").strip()
            if said and said[-1].role == "assistant":
                said[-1] = Message("assistant", f"{said[-1].text}\n{text}")
            else:
                said.append(Message("assistant", text))
        elif isinstance(turn, UserMessage):
            content = _content(turn)
            if said and said[-1].role == "user":
                said[-1] = Message("user", [*said[-1].text, "\n", *content])
            else:
                said.append(Message("user", content))
    return said


def _content(message: UserMessage) -> list[str | Segment]:
    """Pictures before the text, each on a line of its own, unless one stands between texts."""
    if isinstance(message.content, str):
        return [message.content]
    parts = [part.text if isinstance(part, TextPart) else IMAGE for part in message.content]
    texts = [number for number, part in enumerate(parts) if part is not IMAGE]
    images = [number for number, part in enumerate(parts) if part is IMAGE]
    if texts and any(texts[0] < number < texts[-1] for number in images):
        return list(parts)
    before: list[str | Segment] = [IMAGE, "\n"]
    return [*before * len(images), "\n".join(str(parts[number]) for number in texts)]


def _text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _expanded(token_ids: list[int], counts: list[int], pictures: Sequence[Picture], image_token: int) -> Prompt:
    ids, keys, starts = list[int](), list[int](), list[int]()
    left = iter(zip(counts, pictures, strict=True))
    for token in token_ids:
        if token == image_token:
            count, picture = next(left)
            starts.append(len(ids))
            ids += [token] * count
            keys += [picture.key] * count
        else:
            ids.append(token)
            keys.append(token)
    last_size = pictures[-1].size if pictures else None
    return Prompt(np.array(ids, np.int64), np.array(keys, np.int64), tuple(starts), tuple(counts), last_size)
