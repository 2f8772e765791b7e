"""Answers to many questions: in batches, greedy unless told otherwise, each picture encoded once.

Batching spares work: what questions of a batch begin with alike is run once for all of them. Batching changes no
answer, but for ties where keys and values are rounded: rows are padded on the left, the padding is masked and takes no
position, and a row whose prompt and longest answer do not fit beside its neighbours is asked alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from paddle_llava.allocator import keep_freed_memory
from paddle_llava.data.pictures import local_source, picture_size
from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.beginnings import Part, shared_runs
from paddle_llava.evaluation.records import Prediction, Question
from paddle_llava.generation.generate import Engine, generate, without_padding
from paddle_llava.generation.sampling import SamplingParams
from paddle_llava.generation.stopping import StopFilter
from paddle_llava.processing.conversation import Message, encode, render, stop_token_ids
from paddle_llava.processing.processor import LlavaProcessor, pad_left
from paddle_llava.processing.templates import Template

HELD_FEATURES = 1 << 30
"""Bytes of image features that are kept for further questions about the same pictures."""

Pixels = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Asked:
    """A question with its ids, one image token a picture, and how long it will be."""

    question: Question
    ids: list[int]
    length: int


class Answerer:
    """Asks a model questions, `batch_size` at a time.

    `template` defaults to the processor's, and `params` to greedy; the longest answer is each question's own.
    `encoded_images` counts the pictures that went through the vision tower.
    """

    def __init__(
        self,
        engine: Engine,
        processor: LlavaProcessor,
        *,
        batch_size: int = 16,
        template: Template | None = None,
        params: SamplingParams | None = None,
    ) -> None:
        self.engine = engine
        self.processor = processor
        self.batch_size = batch_size
        self.template = template or processor.template
        self.params = params or SamplingParams()
        self.encoded_images = 0
        self._stop_ids = stop_token_ids(self.template, processor.tokenizer)
        special = processor.tokenizer.special_tokens
        self._stops = (*self.params.stop, *self.template.stop_strings)
        self._stop_texts = [text for text in self._stops if text not in special]
        self._features: OrderedDict[str, Any] = OrderedDict()

    def answer(self, questions: Sequence[Question]) -> Iterator[list[Prediction]]:
        """The answers, batch by batch, in the order that is quickest.

        A question that cannot be asked, for its pictures or its length, is answered with an `error`.
        """
        keep_freed_memory()
        asked, failed = self._prepared(questions)
        if failed:
            yield failed
        batches = [*self._batches(asked), []]
        with ThreadPoolExecutor(max_workers=1) as pool:
            waiting = pool.submit(self._pixels, batches[0])
            for batch, following in pairwise(batches):
                pixels, problems = waiting.result()
                features = self._encoded(batch, pixels)
                waiting = pool.submit(self._pixels, following)  # while the model answers
                bad = [it for it in batch if problems.keys() & set(it.question.images)]
                good = [it for it in batch if not problems.keys() & set(it.question.images)]
                answers = self._answers(good, features) if good else []
                yield [
                    *(Prediction(it.question, answer) for it, answer in zip(good, answers, strict=True)),
                    *(_failed(it.question, problems) for it in bad),
                ]

    def _prepared(self, questions: Sequence[Question]) -> tuple[list[_Asked], list[Prediction]]:
        """The questions in the order to ask them, and those that the model cannot hold.

        Those of about the same length stand together, and so do those about the same picture.
        """
        asked, failed = [], []
        limit = self.processor.config.text.max_position_embeddings
        for question in questions:
            try:
                it = self._tokens(question)
            except LlavaError as error:
                failed.append(Prediction(question, "", str(error)))
                continue
            if it.length < limit:
                asked.append(it)
            else:
                problem = f"the question and its pictures take {it.length} tokens, and the model holds {limit}"
                failed.append(Prediction(question, "", problem))
        longest: dict[tuple[Any, ...], int] = {}
        for it in asked:
            key = (it.question.max_new_tokens, it.question.images)
            longest[key] = max(longest.get(key, 0), it.length)
        asked.sort(key=lambda it: _order(it, longest), reverse=True)
        return asked, failed

    def _tokens(self, question: Question) -> _Asked:
        messages = list(question.messages)
        if not messages:
            for asked, said in question.history:
                messages += [Message("user", asked), Message("assistant", said)]
            messages.append(Message("user", question.prompt))
            messages[0] = replace(messages[0], images=len(question.images))
        template = self.template if question.system is None else replace(self.template, system=question.system)
        prompt = render(messages, template, add_generation_prompt=True)
        ids = encode(prompt, self.processor.tokenizer).ids
        return _Asked(question, ids, len(ids) + sum(map(self._features_more, question.images)))

    def _features_more(self, image: str) -> int:
        """How many features a picture has beyond the token that stands for it; of a bad one none."""
        if self.processor.config.image_grid_pinpoints is None:  # all pictures have as many
            return self.processor.config.image_layout((1, 1)).num_features - 1
        try:
            return self.processor.config.image_layout(picture_size(image)).num_features - 1
        except LlavaError:
            return 0

    def _batches(self, asked: Sequence[_Asked]) -> Iterator[list[_Asked]]:
        limit = self.processor.config.text.max_position_embeddings
        batch: list[_Asked] = []
        for it in asked:
            if it.length + it.question.max_new_tokens > limit:
                yield [it]
                continue
            if batch and (
                len(batch) == self.batch_size or batch[0].question.max_new_tokens != it.question.max_new_tokens
            ):
                yield batch
                batch = []
            batch.append(it)
        if batch:
            yield batch

    def _pixels(self, batch: Sequence[_Asked]) -> tuple[dict[str, Pixels], dict[str, str]]:
        """The prepared pictures of a batch that are not encoded yet, and what is wrong with the bad ones."""
        pixels, problems = dict[str, Pixels](), dict[str, str]()
        for image in _pictures(batch):
            if image not in self._features:
                try:
                    pixels[image] = self.processor.prepare_images([local_source(image)])
                except LlavaError as error:
                    problems[image] = str(error)
        return pixels, problems

    def _encoded(self, batch: Sequence[_Asked], pixels: dict[str, Pixels]) -> dict[str, Any]:
        """The features of a batch's good pictures: those that are kept, and new ones of `pixels`."""
        features = {image: self._features[image] for image in _pictures(batch) if image in self._features}
        if pixels:
            tiles, sizes = (
                np.concatenate([one[name] for one in pixels.values()]) for name in ("pixel_values", "image_sizes")
            )
            features |= zip(pixels, self.engine.encode_images(tiles, sizes), strict=True)
            self.encoded_images += len(pixels)
        for image, encoded in features.items():
            self._features[image] = encoded
            self._features.move_to_end(image)
        held = sum(_bytes(encoded) for encoded in self._features.values())
        while held > HELD_FEATURES:
            held -= _bytes(self._features.popitem(last=False)[1])
        return features

    def _answers(self, batch: Sequence[_Asked], features: dict[str, Any]) -> list[str]:
        tokenizer = self.processor.tokenizer
        params = replace(self.params, max_new_tokens=batch[0].question.max_new_tokens)
        questions = [Part(tuple(it.ids), it.question.images) for it in batch]
        whole = self._inputs(questions, features)
        inputs = self._begin(questions, features, params.max_new_tokens) or whole
        answers: list[list[int]] = [[] for _ in batch]
        going = set(range(len(batch)))
        steps = generate(self.engine, inputs, params, prompt_ids=without_padding(whole), stop_ids=self._stop_ids)
        for tokens in steps:
            for row in sorted(going):
                if tokens[row] in self._stop_ids:
                    going.discard(row)
                    continue
                answers[row].append(int(tokens[row]))
                if self._stop_texts and self._cut(tokenizer.decode(answers[row]))[1]:
                    going.discard(row)
            if not going:
                break
        return [self._cut(tokenizer.decode(ids))[0].strip() for ids in answers]

    def _begin(self, questions: list[Part], features: dict[str, Any], longest: int) -> dict[str, Any] | None:
        """Run what several questions begin with; what is left of each to run.

        None, and nothing is run, where the padding of several runs would leave no room for the `longest` answer.
        """
        self.engine.reset()
        runs = shared_runs(questions, self.processor.config.image_token_id)
        inputs = [self._inputs(run.parts, features) for run in runs]
        length = sum(one["input_ids"].shape[1] for one in inputs)
        if length + longest > self.processor.config.text.max_position_embeddings:
            return None
        for one, following in zip(inputs, runs[1:], strict=False):
            self.engine.prefill(one)
            self.engine.take_rows(following.rows)
        return inputs[-1]

    def _inputs(self, parts: Sequence[Part], features: dict[str, Any]) -> dict[str, Any]:
        in_order = [features[image] for part in parts for image in part.images]
        counts = iter([encoded.shape[0] for encoded in in_order])
        rows = [self.processor.expand_image_tokens(part.ids, counts) for part in parts]
        return pad_left(rows, self.processor.padding_id) | {"image_features": in_order}

    def _cut(self, text: str) -> tuple[str, bool]:
        """An answer up to the first stop string, and whether there was one."""
        stops = StopFilter(self._stops)
        passed = stops.push(text)
        return (passed, True) if stops.hit else (passed + stops.finish(), False)


def _order(it: _Asked, longest: dict[tuple[Any, ...], int]) -> tuple[int, int, tuple[str, ...], int]:
    """By the longest possible answer, by the longest question about the same pictures, then by those pictures."""
    most, images = it.question.max_new_tokens, it.question.images
    return most, longest[most, images], images, it.length


def _pictures(batch: Sequence[_Asked]) -> list[str]:
    return list(dict.fromkeys(image for it in batch for image in it.question.images))


def _failed(question: Question, problems: dict[str, str]) -> Prediction:
    return Prediction(question, "", next(problems[image] for image in question.images if image in problems))


def _bytes(tensor: Any) -> int:
    return int(tensor.size) * int(tensor.itemsize)
