"""The tongue's own pretraining, what Vicuna's is to LLaVA: the decoder learns to answer about scenes, without pixels.

A picture's place is taken by the contents of its cells, through a throw-away layer. What the decoder learns that way
(to look up, count, compare, and answer in two languages) is what it needs before features, and costs no tower.

A row holds a picture once and its questions after it, each of which sees the picture and itself alone. To find one
thing among three is learnt many times sooner than among sixty, so scenes begin with one or two objects and few cells
beside, and what only looks up comes before what counts and compares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from paddle_llava.data.encoding import IGNORED, EncodedSample, encode_sample
from paddle_llava.data.records import Sample
from paddle_llava.demo.cells import WIDTH, as_numbers, cells_of
from paddle_llava.demo.concepts import aligned_weight
from paddle_llava.demo.descriptions import caption, scene_as_text
from paddle_llava.demo.dialogues import KINDS_OF_QUESTION, dialogue
from paddle_llava.demo.kinds import Split
from paddle_llava.demo.loop import Say, fit
from paddle_llava.demo.model import TEMPLATE, build_tokenizer
from paddle_llava.demo.naming import LANGUAGES
from paddle_llava.demo.scenes import Scene, draw_scene
from paddle_llava.llava import LlavaForConditionalGeneration
from paddle_llava.models.attention import MASKED
from paddle_llava.models.llama import for_all_heads, rotary_embedding
from paddle_llava.processing.conversation import Message
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.templates import TEMPLATES, Template

TURNS = 12
CAPTIONS, LISTS = 0.15, 0.6
LOOKED_UP, LOOKING_UP = ("what", "colour", "box", "at_box"), 0.1  # kinds, and the part of all steps they have alone
EASIEST, HARDEST = 0.2, 0.5  # hardness at first; the part of all steps after which scenes are whole
SMALL = 64  # pixels: enough to know who covers what
SEEDS_A_STEP = 1000
_BRIEF = replace(TEMPLATE, system="")


class Questions:
    """Batches of pictures with isolated questions, or with what `llava pretrain` has told of them, as cells."""

    def __init__(
        self, processor: LlavaProcessor, batch_size: int, split: Split = "train", seed: int = 0, steps: float = 0
    ) -> None:
        """`steps` are those of the whole run, over which questions grow hard; without it they are hard at once."""
        self.processor, self.batch_size, self.split, self.seed = processor, batch_size, split, seed
        self.steps = steps

    def batch(self, step: int) -> dict[str, Any]:
        """`input_ids`, `position_ids` [rows, length], `mask` [rows, 1, length, length], `labels` [rows * length].

        `cells` [cells of all, WIDTH] take the places of image tokens. Labels are moved left by one. `weights`
        [targets] make long answers count more than short ones, but not as much as they are longer; `sizes` are the
        answers' numbers of targets and `kinds` what was asked, in order.
        """
        progress = step / self.steps if self.steps else 1.0
        hardness = min(1.0, EASIEST + (1 - EASIEST) * progress / HARDEST)
        first = (self.seed * 1_000_000 + step) * SEEDS_A_STEP
        rows, cells, kinds = [], [], []
        for seed in range(first, first + self.batch_size):
            objects = (1 + round(hardness), 2 + round(6 * hardness))
            scene = draw_scene(seed, size=SMALL, split=self.split, objects=objects)
            told = self._told(scene, seed, LOOKED_UP if progress < LOOKING_UP else tuple(KINDS_OF_QUESTION))
            if not told:
                continue
            vision = self.processor.config.vision
            of_scene = cells_of(scene, vision.image_size // vision.patch_size)
            kept = (of_scene.anchor > 0) | (np.random.default_rng(seed).random(len(of_scene.anchor)) < hardness + 0.03)
            cells.append(as_numbers(of_scene)[kept])
            rows.append(self._row([sample for _, sample in told], int(kept.sum())))
            kinds += [kind for kind, _ in told]
        batch = lay_out(rows)
        sizes = answer_sizes(batch["labels"])
        weights = np.repeat(sizes**-0.5, sizes).astype(np.float32)
        return batch | {
            "cells": np.concatenate(cells),
            "weights": weights / weights.sum(),
            "sizes": sizes,
            "kinds": kinds,
        }

    def _told(self, scene: Scene, seed: int, kinds: Sequence[str]) -> list[tuple[str, EncodedSample]]:
        rng = Random(seed)
        if kinds != LOOKED_UP and rng.random() < CAPTIONS:
            kind, text = captioned(scene, rng)
            return [(kind, encoded("", text, TEMPLATES["plain"], self.processor))]
        turns = dialogue(scene, seed, turns=TURNS, kinds=kinds)
        return [(turn.kind, encoded(turn.question, turn.answer, _BRIEF, self.processor)) for turn in turns]

    def _row(self, samples: list[EncodedSample], cells: int) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
        """Ids of what all samples begin with, the picture included; of each the ids and labels that follow."""
        image = self.processor.config.image_token_id
        (places,) = np.nonzero(samples[0].input_ids == image)
        start, end = places[0], places[-1] + 1
        shared = np.concatenate([samples[0].input_ids[:start], np.full(cells, image)])
        return shared, [(sample.input_ids[end:], sample.labels[end:]) for sample in samples]


def lay_out(rows: Sequence[tuple[np.ndarray, Sequence[tuple[np.ndarray, np.ndarray]]]]) -> dict[str, Any]:
    """The rows side by side, padded on the right; positions of each part go on from the shared beginning."""
    length = max(len(shared) + sum(len(ids) for ids, _ in parts) for shared, parts in rows)
    input_ids, position_ids = np.zeros((2, len(rows), length), np.int64)
    labels = np.full((len(rows), length), IGNORED, np.int64)
    mask = np.full((len(rows), 1, length, length), MASKED, np.float32)
    causal = np.where(np.tri(length, dtype=bool), np.float32(0), np.float32(MASKED))
    for number, (shared, parts) in enumerate(rows):
        start = len(shared)
        input_ids[number, :start], position_ids[number, :start] = shared, np.arange(start)
        mask[number, 0, :, :start] = causal[:, :start]
        for ids, targets in parts:
            end = start + len(ids)
            input_ids[number, start:end] = ids
            position_ids[number, start:end] = len(shared) + np.arange(len(ids))
            labels[number, start : end - 1] = targets[1:]
            mask[number, 0, start:end, start:end] = causal[: len(ids), : len(ids)]
            start = end
    return {"input_ids": input_ids, "position_ids": position_ids, "mask": mask, "labels": labels.reshape(-1)}


class Tongue(nn.Layer):
    """The decoder under training and the layer that stands for eye and projector."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.language_model = model.language_model
        self.reader = nn.Linear(WIDTH, model.config.text.hidden_size)
        embeddings = model.language_model.embed_tokens.weight.numpy()
        self.reader.weight.set_value(aligned_weight(embeddings, build_tokenizer()))
        self._embed, self._logits = model.embed, model.logits

    def target_logits(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The logits [targets, vocab_size] of all targets in their order, and the targets [targets]."""
        decoder = self.language_model
        features = self.reader(paddle.to_tensor(batch["cells"]))
        hidden_states = self._embed(paddle.to_tensor(batch["input_ids"]), [features])
        rotation = rotary_embedding(decoder.config, paddle.to_tensor(batch["position_ids"]), hidden_states.dtype)
        rotations, mask = for_all_heads(rotation, decoder.config), paddle.to_tensor(batch["mask"])
        for layer in decoder.layers:
            hidden_states = layer(hidden_states, rotations, mask)
        labels = batch["labels"]
        targets = np.flatnonzero(labels != IGNORED)
        chosen = paddle.gather(hidden_states.flatten(0, 1), paddle.to_tensor(targets))
        return self._logits(decoder.norm(chosen)), paddle.to_tensor(labels[targets])

    def loss(self, batch: dict[str, Any]) -> Tensor:
        logits, targets = self.target_logits(batch)
        losses = F.cross_entropy(logits, targets, reduction="none").flatten()
        return (losses * paddle.to_tensor(batch["weights"])).sum()

    def judge(self, batches: list[dict[str, Any]]) -> dict[str, float]:
        """Of each kind, the share of answers of which every token is the likeliest one after those before it.

        `box tokens` is the share of single tokens of answers that are boxes.
        """
        right: dict[str, list[bool]] = {}
        for batch in batches:
            logits, targets = self.target_logits(batch)
            hits = (logits.argmax(-1) == targets).numpy()
            starts = np.cumsum(batch["sizes"]) - batch["sizes"]
            answers = zip(batch["kinds"], starts, batch["sizes"], strict=True)
            for kind, start, size in answers:
                answer = hits[start : start + size]
                right.setdefault(kind, []).append(bool(answer.all()))
                if kind == "box":
                    right.setdefault("box tokens", []).extend(answer.tolist())
        return {kind: float(np.mean(values)) for kind, values in sorted(right.items())}


def train_tongue(
    folder: Path, base: Path, *, steps: int, batch_size: int, learning_rate: float, say: Say
) -> Tongue | None:
    """The decoder of the checkpoint `base` after `steps`, checkpoints in `folder`; None when it was stopped before."""
    processor = LlavaProcessor.from_pretrained(base)
    model = LlavaForConditionalGeneration.from_pretrained(base)
    tongue = Tongue(model)
    for parameter in tongue.parameters():
        parameter.stop_gradient = False
    easy = [Questions(processor, 8, "heldout", steps=math.inf).batch(step) for step in range(3)]
    held_out = [Questions(processor, 8, "heldout").batch(step) for step in range(8)]
    done = fit(
        tongue,
        Questions(processor, batch_size, steps=steps),
        tongue.loss,
        folder,
        steps=steps,
        learning_rate=learning_rate,
        judge=lambda: {f"easy {kind}": share for kind, share in tongue.judge(easy).items()} | tongue.judge(held_out),
        judge_every=min(250, steps),
        say=say,
    )
    return tongue if done else None


def captioned(scene: Scene, rng: Random) -> tuple[str, str]:
    """What `llava pretrain` learns to tell: ("list", everything with its box), or ("caption", a sentence)."""
    language = rng.choice(LANGUAGES)
    if rng.random() < LISTS:
        return "list", scene_as_text(scene, language)
    return "caption", caption(scene, language)


def encoded(question: str, answer: str, template: Template, processor: LlavaProcessor) -> EncodedSample:
    """A question about a picture and its answer as the recipe would read them; the picture is not looked at."""
    messages = (Message("user", question, images=1), Message("assistant", answer))
    sample = Sample(("picture",), messages, 1, "street")
    return encode_sample(sample, processor, template, processor.config.text.max_position_embeddings)


def answer_sizes(labels: np.ndarray) -> np.ndarray:
    """How many targets each answer has, in order; `labels` [positions] end each with something ignored."""
    edges = np.diff(np.concatenate([[0], (labels != IGNORED).astype(np.int8), [0]]))
    return np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
