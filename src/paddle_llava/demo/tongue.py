"""The tongue's own pretraining, what Vicuna's is to LLaVA: the decoder learns to converse about scenes, without pixels.

A picture's place is taken by the contents of its cells, through a throw-away layer of the projector's kind. What the
decoder learns that way (to look up, count, compare, and answer in two languages) is what it needs before features,
and costs no tower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from paddle_llava.demo.descriptions import caption, scene_as_text
from paddle_llava.demo.dialogues import dialogue
from paddle_llava.demo.kinds import Split
from paddle_llava.demo.loop import Say, fit
from paddle_llava.demo.model import TEMPLATE
from paddle_llava.demo.naming import LANGUAGES
from paddle_llava.demo.scenes import Scene, draw_scene
from paddle_llava.llava import LlavaForConditionalGeneration
from paddle_llava.processing.conversation import Message
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.templates import TEMPLATES, Template

TURNS = 12
CAPTIONS, LISTS = 0.25, 0.6
HARDEST = 0.4  # the part of all steps after which scenes are whole
SMALL = 64  # pixels: enough to know who covers what
SEEDS_A_STEP = 1000


class Conversations:
    """Batches of conversations, and of captions and lists of boxes as `llava pretrain` gets them, with their cells."""

    def __init__(
        self,
        processor: LlavaProcessor,
        batch_size: int,
        split: Split = "train",
        seed: int = 0,
        hardest: float = 0,
    ) -> None:
        """From step `hardest` on scenes are whole; before it they grow, from one or two objects and few cells beside.

        To find one thing among three is learnt many times sooner than among sixty.
        """
        self.processor, self.batch_size, self.split, self.seed = processor, batch_size, split, seed
        self.hardest = hardest

    def batch(self, step: int) -> dict[str, Any]:
        """All conversations packed into one row: `input_ids`, `position_ids`, `labels` and `lengths`.

        `cells` [cells of all, WIDTH] take the places of image tokens. Labels are moved left by one, as `collate` makes
        them. `weights` [targets] make long answers count more than short ones, but not as much as they are longer.
        `kinds` names the kind of each answer, in order.
        """
        vision, image = self.processor.config.vision, self.processor.config.image_token_id
        hardness = step / self.hardest if step < self.hardest else 1.0
        objects = (1 + round(hardness), 2 + round(6 * hardness))
        first = (self.seed * 1_000_000 + step) * SEEDS_A_STEP
        samples, cells, kinds = [], [], []
        for seed in range(first, first + self.batch_size):
            scene, rng = draw_scene(seed, size=SMALL, split=self.split, objects=objects), Random(seed)
            of_scene = cells_of(scene, vision.image_size // vision.patch_size)
            if rng.random() < CAPTIONS:
                kind, text = captioned(scene, rng)
                kinds.append(kind)
                sample = encoded([("", text)], TEMPLATES["plain"], self.processor)
            else:
                turns = dialogue(scene, seed, turns=TURNS)
                kinds += [turn.kind for turn in turns]
                sample = encoded([(it.question, it.answer) for it in turns], TEMPLATE, self.processor)
            kept = (of_scene.anchor > 0) | (np.random.default_rng(seed).random(len(of_scene.anchor)) < hardness + 0.03)
            cells.append(as_numbers(of_scene)[kept])
            ids_kept = np.ones(len(sample), bool)
            ids_kept[sample.input_ids == image] = kept
            samples.append((sample.input_ids[ids_kept], sample.labels[ids_kept]))
        labels = np.concatenate([np.append(labels[1:], IGNORED) for _, labels in samples])
        sizes = answer_sizes(labels)
        weights = np.repeat(sizes**-0.5, sizes).astype(np.float32)
        return {
            "cells": np.concatenate(cells),
            "input_ids": np.concatenate([ids for ids, _ in samples])[None],
            "position_ids": np.concatenate([np.arange(len(ids)) for ids, _ in samples])[None],
            "labels": labels,
            "lengths": [[len(ids) for ids, _ in samples]],
            "weights": weights / weights.sum(),
            "sizes": sizes,
            "kinds": kinds,
        }


class Tongue(nn.Layer):
    """The decoder under training and the layer that stands for eye and projector."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        width = model.config.text.hidden_size
        self.language_model = model.language_model
        # Its few ones a cell must give features as large as words, or the first layers drown them.
        self.reader = nn.Sequential(
            nn.Linear(WIDTH, width, weight_attr=nn.initializer.Normal(std=0.5)),
            nn.GELU(),
            nn.Linear(width, width, weight_attr=nn.initializer.Normal(std=0.8 * width**-0.5)),
        )
        self._embed, self._logits = model.embed, model.logits

    def target_logits(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The logits [targets, vocab_size] of all targets in their order, and the targets [targets]."""
        features = self.reader(paddle.to_tensor(batch["cells"]))
        embeds = self._embed(paddle.to_tensor(batch["input_ids"]), [features])
        position_ids = paddle.to_tensor(batch["position_ids"])
        hidden_states = self.language_model(embeds, position_ids, lengths=batch["lengths"])
        labels = batch["labels"]
        targets = np.flatnonzero(labels != IGNORED)
        chosen = paddle.gather(hidden_states.flatten(0, 1), paddle.to_tensor(targets))
        return self._logits(chosen), paddle.to_tensor(labels[targets])

    def loss(self, batch: dict[str, Any]) -> Tensor:
        logits, targets = self.target_logits(batch)
        losses = F.cross_entropy(logits, targets, reduction="none").flatten()
        return (losses * paddle.to_tensor(batch["weights"])).sum()

    def judge(self, batches: list[dict[str, Any]]) -> dict[str, float]:
        """Of each kind, the share of answers of which every token is the likeliest one after those before it."""
        right: dict[str, list[bool]] = {}
        for batch in batches:
            logits, targets = self.target_logits(batch)
            hits = (logits.argmax(-1) == targets).numpy()
            starts = np.cumsum(batch["sizes"]) - batch["sizes"]
            for kind, whole in zip(batch["kinds"], np.logical_and.reduceat(hits, starts), strict=True):
                right.setdefault(kind, []).append(bool(whole))
        return {kind: float(np.mean(values)) for kind, values in sorted(right.items())}


def train_tongue(
    folder: Path, base: Path, *, steps: int, batch_size: int, learning_rate: float, say: Say
) -> Tongue | None:
    """The decoder of the checkpoint `base` after `steps`, checkpoints in `folder`; None when it was stopped before."""
    processor = LlavaProcessor.from_pretrained(base)
    model = LlavaForConditionalGeneration.from_pretrained(base)
    paddle.seed(2)
    tongue = Tongue(model)
    for parameter in tongue.parameters():
        parameter.stop_gradient = False
    easy = [Conversations(processor, 20, "heldout", hardest=math.inf).batch(step) for step in range(2)]
    held_out = [Conversations(processor, 20, "heldout").batch(step) for step in range(4)]
    done = fit(
        tongue,
        Conversations(processor, batch_size, hardest=HARDEST * steps),
        tongue.loss,
        folder,
        steps=steps,
        learning_rate=learning_rate,
        judge=lambda: {f"easy {kind}": share for kind, share in tongue.judge(easy).items()} | tongue.judge(held_out),
        judge_every=min(200, steps),
        say=say,
    )
    return tongue if done else None


def captioned(scene: Scene, rng: Random) -> tuple[str, str]:
    """What `llava pretrain` learns to tell: ("list", everything with its box), or ("caption", a sentence)."""
    language = rng.choice(LANGUAGES)
    if rng.random() < LISTS:
        return "list", scene_as_text(scene, language)
    return "caption", caption(scene, language)


def encoded(turns: Sequence[tuple[str, str]], template: Template, processor: LlavaProcessor) -> EncodedSample:
    """Questions and answers about one picture as the recipe would read them; the picture itself is not looked at."""
    messages = []
    for number, (question, answer) in enumerate(turns):
        messages.append(Message("user", question, images=int(number == 0)))
        messages.append(Message("assistant", answer))
    sample = Sample(("picture",), tuple(messages), 1, "street")
    return encode_sample(sample, processor, template, processor.config.text.max_position_embeddings)


def answer_sizes(labels: np.ndarray) -> np.ndarray:
    """How many targets each answer of a packed row has, in order."""
    edges = np.diff(np.concatenate([[0], (labels != IGNORED).astype(np.int8), [0]]))
    return np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
