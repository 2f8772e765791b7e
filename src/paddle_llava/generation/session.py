"""A conversation about pictures, turn by turn.

Each picture is encoded once, and each turn runs only its new tokens: the engine keeps the keys and values of all
earlier ones. Earlier answers stand in the prompt as the very tokens that were generated.
"""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from paddle_llava.errors import LlavaError
from paddle_llava.generation.generate import Engine, generate
from paddle_llava.generation.sampling import SamplingParams
from paddle_llava.generation.stopping import StopFilter
from paddle_llava.processing.conversation import (
    Message,
    Segment,
    answer_end,
    encode,
    prompt_string,
    render,
    stop_token_ids,
)
from paddle_llava.processing.loading import ImageSource
from paddle_llava.processing.processor import LlavaProcessor, image_sources
from paddle_llava.processing.templates import Template


class NoRoomForPictures(LlavaError):
    """No question can be asked about a question's new pictures, but one about the first `fitting` of them."""

    def __init__(self, message: str, fitting: int) -> None:
        super().__init__(message)
        self.fitting = fitting


@dataclass
class TurnStats:
    """What one turn cost: tokens in the context, run anew and generated; seconds to the first token and in all,
    both from the question on, its pictures included."""

    context_tokens: int
    new_tokens: int
    generated_tokens: int = 0
    first_token_seconds: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class _History:
    """A conversation after some turns: messages, their ids, and its pictures' features in order."""

    messages: tuple[Message, ...] = ()
    ids: tuple[int, ...] = ()
    features: tuple[Any, ...] = ()
    feature_counts: tuple[int, ...] = ()
    last: Segment | None = None


class ChatSession:
    """A conversation with a model: `ask` gives an answer as an iterator of text.

    `model` is a `LlavaForConditionalGeneration` or any engine. `template` defaults to the processor's, which is the
    checkpoint's; `system` replaces its system text. `params` hold for every answer unless `ask` overrides them.
    `notice` is told, in a sentence, what a person should know (default: `warnings.warn`).
    """

    def __init__(
        self,
        model: Any,
        processor: LlavaProcessor,
        *,
        template: Template | None = None,
        system: str | None = None,
        params: SamplingParams | None = None,
        notice: Callable[[str], object] = warnings.warn,
    ) -> None:
        self.engine: Engine = model if hasattr(model, "prefill") else _paddle_engine(model)
        self.processor = processor
        template = template or processor.template
        self.template = template if system is None else replace(template, system=system)
        self.params = params or SamplingParams()
        self.notice = notice
        self._answering: Callable[[], Generator[str, None, None] | None] = lambda: None
        self.reset()

    def reset(self) -> None:
        """Forget the conversation and its pictures."""
        self._leave_answer()
        self.engine.reset()
        self.stats: TurnStats | None = None
        # What the engine holds is always a beginning of `_in_engine.ids`, perhaps with more of a turn that failed.
        self._history = self._in_engine = _History()

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was said, questions and answers in turn."""
        return self._history.messages

    @property
    def prompt(self) -> str:
        """The conversation so far as the reference writes it, to look at."""
        return prompt_string(render(self.messages, self.template))

    def ask(
        self, text: str, image: ImageSource | Sequence[ImageSource] | None = None, **overrides: Any
    ) -> Generator[str, None, None]:
        """Put a question, with new pictures before its text if there are any; yields the answer piece by piece.

        `overrides` replace fields of the session's `SamplingParams` for this answer. A picture or a question that
        cannot be taken raises `LlavaError` (`NoRoomForPictures` where no other question would help) and leaves the
        conversation as it was. An iterator that is closed, or interrupted from the keyboard, ends the answer there;
        what was said stays in the conversation. Asking anew, or `reset`, ends an answer that was not read to its end.
        """
        self._leave_answer()
        answering = self._ask(text, image, overrides)
        self._answering = weakref.ref(answering)
        return answering

    def _leave_answer(self) -> None:
        # Else its iterator would write its turn over later ones when it is closed at last, by whoever holds it.
        answering = self._answering()
        if answering is not None:
            answering.close()

    def _ask(
        self, text: str, image: ImageSource | Sequence[ImageSource] | None, overrides: dict[str, Any]
    ) -> Generator[str, None, None]:
        start = time.perf_counter()
        params = replace(self.params, **overrides)
        sources = image_sources(image)
        pixels = self.processor.prepare_images(sources) if sources else {}
        question = Message("user", text, images=len(sources))
        history, question = self._with_room(self._with_counts(pixels), question, params)
        if pixels:
            encoded = self.engine.encode_images(pixels["pixel_values"], pixels["image_sizes"])
            history = replace(history, features=(*history.features, *encoded))
        if self._in_engine.ids != history.ids:
            self.engine.reset()
        self.engine.rewind(min(self.engine.length, len(history.ids)))
        self._in_engine = history
        yield from self._answer(history, question, params, start)

    def _with_counts(self, pixels: Mapping[str, np.ndarray]) -> _History:
        """The conversation with the sizes of new pictures, which are encoded only when there is room for them."""
        counts = self.processor.feature_counts(pixels["image_sizes"]) if pixels else []
        return replace(self._history, feature_counts=(*self._history.feature_counts, *counts))

    def _with_room(self, history: _History, question: Message, params: SamplingParams) -> tuple[_History, Message]:
        """Without the oldest exchanges if the context would overflow; their pictures move to what stays first."""
        limit = self.engine.config.text.max_position_embeddings
        room = min(params.max_new_tokens, limit // 4)
        needed = len(history.ids) + len(self._turn_ids(history, question)) + room
        new, forgotten, bound = question.images, 0, limit
        if needed > limit:
            # Much is freed at once: all that stays has to be run again, and not at every further turn. But no more than
            # half of what is not taken by pictures, which are never freed, by the question and by its answer.
            image_token_id = self.engine.config.image_token_id
            words = sum(token != image_token_id for token in history.ids)
            bound -= max(0, min(limit // 4, (limit - needed + words) // 2))
        while needed > bound and history.messages:
            first, _, *kept = [*history.messages, question]
            kept[0] = replace(kept[0], images=kept[0].images + first.images)
            question = kept.pop()
            history = self._retold(history, tuple(kept))
            needed = len(history.ids) + len(self._turn_ids(history, question)) + room
            forgotten += 1
        if needed > limit:
            self._check_pictures(history, new, limit - room)
            raise LlavaError(
                f"the question and its pictures take {needed - room} tokens, and the model holds {limit} with the "
                "answer: ask a shorter question, show fewer pictures, or start anew"
            )
        if forgotten:
            exchanges = "exchange is" if forgotten == 1 else f"{forgotten} exchanges are"
            self.notice(f"the conversation outgrew the model's {limit} tokens: the oldest {exchanges} forgotten")
        return history, question

    def _check_pictures(self, history: _History, new: int, most: int) -> None:
        """Raises `NoRoomForPictures` when a question of one letter, too, would take more than `most` tokens with all
        pictures of `history`, which has no messages any more; the `new` ones are the last."""
        counts = history.feature_counts

        def fits(pictures: int) -> bool:
            some = replace(history, feature_counts=counts[:pictures])
            return len(self._turn_ids(some, Message("user", "?", images=pictures))) <= most

        fitting = sum(fits(len(counts) - new + number) for number in range(1, new + 1))
        if fitting < new:
            raise NoRoomForPictures(
                f"the pictures take {sum(counts)} tokens, and the model holds {most} beside the "
                "answer: show fewer pictures, or start anew",
                fitting,
            )

    def _retold(self, history: _History, messages: tuple[Message, ...]) -> _History:
        """The history of `messages` alone, with the same pictures."""
        segments = render(messages, self.template)
        ids = encode(segments, self.processor.tokenizer).ids if segments else []
        ids = self.processor.expand_image_tokens(ids, iter(history.feature_counts))
        return replace(history, messages=messages, ids=tuple(ids), last=segments[-1] if segments else None)

    def _turn_ids(self, history: _History, question: Message) -> list[int]:
        """The ids that `question` adds to the conversation, up to where its answer begins."""
        turn = len(history.messages) // 2
        segments = render([*history.messages, question], self.template, add_generation_prompt=True)
        own = [segment for segment in segments if segment.turn == turn]
        counts = history.feature_counts[len(history.feature_counts) - question.images :]
        ids = encode(own, self.processor.tokenizer, after=history.last).ids
        return self.processor.expand_image_tokens(ids, iter(counts))

    def _answer(
        self, history: _History, question: Message, params: SamplingParams, start: float
    ) -> Generator[str, None, None]:
        tokenizer = self.processor.tokenizer
        prompt_ids = [*history.ids, *self._turn_ids(history, question)]
        inputs = {
            "input_ids": np.array([prompt_ids[self.engine.length :]]),
            "image_features": self._unseen_features(history),
        }
        stream, stops = tokenizer.stream(), StopFilter((*params.stop, *self.template.stop_strings))
        stop_ids = stop_token_ids(self.template, tokenizer)
        answer, answer_ids = "", list[int]()
        self.stats = stats = TurnStats(len(prompt_ids), len(prompt_ids) - self.engine.length)
        steps = generate(self.engine, inputs, params, prompt_ids=np.array([prompt_ids]), stop_ids=stop_ids)
        try:
            for (token,) in steps:
                stats.first_token_seconds = stats.first_token_seconds or time.perf_counter() - start
                if token in stop_ids:
                    break
                answer_ids.append(int(token))
                piece = stops.push(stream.push(int(token)))
                answer += piece
                if piece:
                    yield piece
                if stops.hit:
                    break
            else:
                if len(answer_ids) < params.max_new_tokens:
                    self.notice("the answer was cut: the conversation fills the model's context")
            tail = "" if stops.hit else stops.push(stream.finish()) + stops.finish()
            answer += tail
            if tail:
                yield tail
        finally:
            stats.generated_tokens, stats.seconds = len(answer_ids), time.perf_counter() - start
            if stats.first_token_seconds:
                said = self._up_to_stop(answer, answer_ids, len(prompt_ids)) if stops.hit else answer_ids
                self._commit(history, question, answer, [*prompt_ids, *said])

    def _up_to_stop(self, answer: str, generated: Sequence[int], prompt_length: int) -> list[int]:
        """The ids of an `answer` that a stop string ended: those `generated`, but the answer's own part anew from the
        piece on in which the stop string begins."""
        tokenizer, ids = self.processor.tokenizer, list(generated)
        while ids and not answer.startswith(tokenizer.decode(ids)):
            ids.pop()
        self.engine.rewind(min(self.engine.length, prompt_length + len(ids)))
        rest = answer[len(tokenizer.decode(ids)) :]
        if rest and not ids:
            rest = self.template.answer_prefix + rest
        return ids + tokenizer.encode_stretch(rest, follows="text")[0]

    def _commit(self, history: _History, question: Message, answer: str, ids: list[int]) -> None:
        """Add a turn to the conversation; `ids` reach to the end of the answer, and what closes it follows."""
        end = answer_end(self.template, len(history.messages) // 2)
        before = Segment("text", answer or self.template.assistant_prefix)
        closing = encode(end, self.processor.tokenizer, after=before).ids
        self.engine.rewind(min(self.engine.length, len(ids)))
        self._history = self._in_engine = replace(
            history,
            messages=(*history.messages, question, Message("assistant", answer.strip())),
            ids=(*ids, *closing),
            last=end[-1] if end else before,
        )

    def _unseen_features(self, history: _History) -> list[Any]:
        """The features that the engine does not hold; an interrupt may have left it in the middle of a picture."""
        held = history.ids[: self.engine.length].count(self.engine.config.image_token_id)
        ends = np.cumsum([0, *history.feature_counts])
        number = int(np.searchsorted(ends, held, side="right")) - 1
        unseen, part = list(history.features[number:]), held - int(ends[number])
        return [unseen[0][part:], *unseen[1:]] if part else unseen


def _paddle_engine(model: Any) -> Engine:
    from paddle_llava.engines.paddle import PaddleEngine  # only here: other engines need no Paddle

    return PaddleEngine(model)
