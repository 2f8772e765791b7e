"""Conversations -> segments -> token ids, turn by turn.

A prompt is never one string that is parsed again: the template's structure and people's words are kept apart
as `Segment`s until each has its ids. So words that look like structure (`USER:`, `</s>`, `<image>`) stay
words, and every id knows whether it is part of an answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, NamedTuple

from paddle_llava.config import ORIGINAL_IMAGE_TOKEN_ID
from paddle_llava.errors import LlavaError
from paddle_llava.processing.templates import BOS, EOS, Template
from paddle_llava.processing.tokenizer import IMAGE_TOKEN, Follows, Tokenizer


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt: ordinary text, a special token by its text, or the place of a picture.

    `target` marks an answer and what closes it, on which a model is trained. `turn` counts the exchanges of a
    question and an answer from 0; the system text belongs to the first.
    """

    kind: Literal["text", "special", "image"]
    text: str
    target: bool = False
    turn: int = 0


IMAGE = Segment("image", IMAGE_TOKEN)


@dataclass(frozen=True)
class Message:
    """What one side says.

    Pictures of a user's message go before its text, each on a line of its own, as LLaVA was trained: say how
    many with `images`. Or place them: `Message("user", ["left: ", IMAGE, "right: ", IMAGE])`.
    """

    role: Literal["user", "assistant"]
    text: str | Sequence[str | Segment]
    images: int = 0


class EncodedPrompt(NamedTuple):
    """`ids`, which of them are targets, and the positions in `ids` of the pictures, one id each."""

    ids: list[int]
    target_mask: list[bool]
    image_positions: list[int]


def render(messages: Sequence[Message], template: Template, *, add_generation_prompt: bool = False) -> list[Segment]:
    """The segments of a conversation; with `add_generation_prompt`, up to where the next answer begins.

    Raises `LlavaError` unless user and assistant take turns, the user first and alone showing pictures.
    """
    for number, message in enumerate(messages):
        expected = ("user", "assistant")[number % 2]
        if message.role != expected:
            raise LlavaError(f"message {number + 1} is of role {message.role!r}, where {expected!r} is due")
    if add_generation_prompt and len(messages) % 2 == 0:
        raise LlavaError("an answer is asked for, but the last message is not the user's")
    segments: list[Segment] = []
    for number, message in enumerate(messages):
        turn = number // 2
        if message.role == "user":
            segments += _question(message, template, turn)
            if add_generation_prompt and number == len(messages) - 1:
                segments += _structure(template.assistant_prefix, template, turn)
        else:
            segments += _structure(template.assistant_prefix, template, turn)
            segments += _answer(message, template, turn)
    return segments


def answer_end(template: Template, turn: int = 0) -> list[Segment]:
    """What closes an answer, for one that was generated without it."""
    return _structure(template.answer_suffix, template, turn, target=True)


def _question(message: Message, template: Template, turn: int) -> list[Segment]:
    opening = _structure(template.turn_prefix if turn else "", template, turn)
    user = _structure(template.user_prefix, template, turn)
    system: list[Segment] = []
    if template.system and turn == 0:
        system += _structure(template.system_prefix, template, turn)
        system += [Segment("text", template.system, turn=turn)]
        system += _structure(template.system_suffix, template, turn)
    start = [*user, *system] if template.system_in_question else [*system, *user]
    end = _structure(template.user_suffix, template, turn)
    return [*opening, *start, *_content(message, template, turn), *end]


def _content(message: Message, template: Template, turn: int) -> list[Segment]:
    if isinstance(message.text, str):
        before: list[str | Segment] = [IMAGE, "\n"]
        parts: Sequence[str | Segment] = [*before * message.images, message.text]
    elif message.images:
        raise LlavaError("a message counts its pictures in `images` or places them in its text, not both")
    else:
        parts = message.text
    segments = []
    for part in parts:
        if part == IMAGE:
            segments.append(replace(IMAGE, turn=turn))
        elif not isinstance(part, str):
            raise LlavaError(f"a message is made of text and IMAGE, found {str(part)[:40]!r}")
        elif part and template.keeps_question:
            segments.append(Segment("text", part, turn=turn))
    if not segments and not template.keeps_question:
        raise LlavaError(f"template {template.name!r} keeps only the pictures of a question, and this one has none")
    return segments


def _answer(message: Message, template: Template, turn: int) -> list[Segment]:
    if not isinstance(message.text, str) or message.images:
        raise LlavaError("an assistant's message is text without pictures")
    start = _structure(template.answer_prefix, template, turn, target=True)
    answer = [Segment("text", message.text, target=True, turn=turn)] if message.text else []
    return [*start, *answer, *answer_end(template, turn)]


def _structure(text: str, template: Template, turn: int, *, target: bool = False) -> list[Segment]:
    return _split(text, (BOS, EOS, *template.markers), turn, target)


def _split(text: str, specials: Iterable[str], turn: int = 0, target: bool = False) -> list[Segment]:
    longest_first = sorted(specials, key=len, reverse=True)
    pieces = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
    kinds: tuple[Literal["text", "special"], ...] = ("text", "special")
    return [Segment(kinds[i % 2], piece, target, turn) for i, piece in enumerate(pieces) if piece]


def parse_prompt(prompt: str, tokenizer: Tokenizer) -> list[Segment]:
    """The segments of a prompt that a developer wrote whole, special tokens and `<image>` spelled out.

    Never for what a stranger typed: here special tokens in the text are structure.
    """
    segments = _split(prompt, {IMAGE_TOKEN, *tokenizer.special_tokens})
    return [IMAGE if segment.text == IMAGE_TOKEN else segment for segment in segments]


def prompt_string(segments: Iterable[Segment]) -> str:
    """The prompt as the reference writes it, to look at. The ids come from the segments, not from this."""
    return "".join(segment.text for segment in segments)


def encode(segments: Sequence[Segment], tokenizer: Tokenizer, *, after: Segment | None = None) -> EncodedPrompt:
    """The ids of a prompt; of its later part when the segment it comes `after` is given (no BOS then).

    They are what the reference gives for the whole prompt string, where nobody spelled out special tokens:
    text between special tokens is encoded as one stretch. A stretch ends with its turn, too. So a further
    turn never changes earlier ids, even where a template ends turns with text (`llava_v0`), at the price of a
    piece that would span two turns.

    The ids of a prompt for generation begin those of the same prompt with its answer, unless a piece spans
    the start of the answer. No piece of LLaMA's does: an answer starts with a space, and pieces have "▁" only
    in front; or it follows a line break, which is a byte token. The target of a piece that does is False.

    Without `<image>` in the vocabulary a picture has the id -200 and starts the text anew, as in the
    original's `tokenizer_image_token`, which encodes each stretch between pictures on its own.
    """
    ids: list[int] = []
    target_mask: list[bool] = []
    image_positions: list[int] = []
    bos = tokenizer.bos_token_id if tokenizer.adds_bos and after is None else None
    if bos is not None and not (segments and _token_id(segments[0], tokenizer) == bos):
        ids.append(bos)
        target_mask.append(False)
    for (token_id, _), group in groupby(segments, key=lambda s: (_token_id(s, tokenizer), s.turn)):
        run = list(group)
        if token_id is not None:
            first = len(ids)
            ids += [token_id] * len(run)
            target_mask += [segment.target for segment in run]
            image_positions += [first + i for i, segment in enumerate(run) if segment.kind == "image"]
        else:
            stretch, starts = tokenizer.encode_stretch(prompt_string(run), follows=_follows(after, tokenizer))
            is_target = [segment.target for segment in run for _ in segment.text]
            ids += stretch
            target_mask += [is_target[start] for start in starts]
        after = run[-1]
    return EncodedPrompt(ids, target_mask, image_positions)


def _token_id(segment: Segment, tokenizer: Tokenizer) -> int | None:
    """The one id of `segment`, or None for text; a special token that the vocabulary lacks is text."""
    if segment.kind == "text":
        return None
    if segment.kind == "image":
        return ORIGINAL_IMAGE_TOKEN_ID if tokenizer.image_token_id is None else tokenizer.image_token_id
    own = {BOS: tokenizer.bos_token_id, EOS: tokenizer.eos_token_id}
    return tokenizer.special_tokens.get(segment.text, own.get(segment.text))


def _follows(after: Segment | None, tokenizer: Tokenizer) -> Follows:
    if after is None or (after.kind == "image" and tokenizer.image_token_id is None):
        return "nothing"
    return "text" if _token_id(after, tokenizer) is None else "special"


def stop_token_ids(template: Template, tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end an answer: the end token's, and those of stop strings that are one special token."""
    stops = (tokenizer.special_tokens.get(text) for text in template.stop_strings)
    return frozenset({tokenizer.eos_token_id, *(stop for stop in stops if stop is not None)})
