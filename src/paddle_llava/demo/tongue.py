"""The tongue's own pretraining, what Vicuna's is to LLaVA: the decoder learns to answer about scenes, without pixels.

A picture's place is taken by the contents of its cells, through a throw-away layer. What the decoder learns that way
(to look up, count, compare, and answer in two languages) is what it needs before features, and costs no tower.

A row holds a picture once and its questions after it, each of which sees the picture and itself alone. To find one
thing among three is learnt many times sooner than among sixty, so scenes begin with one or two objects and few cells
beside, and what only looks up comes before what counts and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from paddle_llava.data.encoding import IGNORED, EncodedSample, encode_sample
from paddle_llava.data.records import Sample
from paddle_llava.demo.cells import WIDTH, Cells, as_numbers, cells_of
from paddle_llava.demo.concepts import aligned_weight
from paddle_llava.demo.descriptions import caption, mentions, scene_as_text
from paddle_llava.demo.dialogues import KINDS_OF_QUESTION, Turn, dialogue
from paddle_llava.demo.guidance import (
    GUIDED_LAYERS,
    Focus,
    focuses_of_question,
    focuses_of_text,
    guidance_loss,
    lay_out_focuses,
    mentioned,
)
from paddle_llava.demo.kinds import Split
from paddle_llava.demo.loop import Progress, Say, fit
from paddle_llava.demo.model import TEMPLATE, build_tokenizer
from paddle_llava.demo.naming import LANGUAGES, Language
from paddle_llava.demo.scenes import Scene, draw_scene
from paddle_llava.demo.shared_picture import Places, Row, lay_out, run_layer
from paddle_llava.demo.unseen import UnseenWords
from paddle_llava.llava import LlavaForConditionalGeneration
from paddle_llava.models.llama import rotary_embedding
from paddle_llava.processing.conversation import Message
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.templates import TEMPLATES, Template

TURNS = 12
TELLING = 4  # every so many steps, texts about pictures are told, which are long; else questions are asked
LISTS = 0.6
LOOKED_UP, LOOKING_UP = ("what", "colour", "box", "at_box"), 0.04  # kinds, and the part of all steps they have alone
EASIEST, HARDEST = 0.2, 0.3  # hardness at first; the part of all steps after which scenes are whole
GUIDANCE = 0.3  # of the loss of each guided layer
SMALL = 64  # pixels: enough to know who covers what
SEEDS_A_STEP = 1000
_BRIEF = replace(TEMPLATE, system="")
_SINGLED_OUT = ("what", "colour", "at_box")  # kinds whose answer is what one thing is, or its colour
_ASKED = tuple(kind for kind in KINDS_OF_QUESTION if kind != "describe")


class Told(NamedTuple):
    """A question with its answer, or a text of the form `kind`, in which `mentions` are named."""

    kind: str
    turn: Turn | None
    mentions: list[tuple[str, tuple[int, ...]]]
    sample: EncodedSample


class Questions:
    """Batches of pictures, as cells, with isolated questions, or with a text about each."""

    def __init__(
        self, processor: LlavaProcessor, batch_size: int, split: Split = "train", seed: int = 0, steps: float = 0
    ) -> None:
        """`steps` are those of the whole run, over which questions grow hard; without it they are hard at once."""
        self.processor, self.batch_size, self.split, self.seed = processor, batch_size, split, seed
        self.steps = steps
        tokenizer = build_tokenizer()
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        self.pieces = [text.replace("▁", " ") for text, _ in vocabulary]
        self.unseen = UnseenWords(tokenizer)

    def batch(self, step: int) -> dict[str, Any]:
        """What `shared_picture.lay_out` and `guidance.lay_out_focuses` give, and:

        `cells` [cells of all, WIDTH], which take the places of image tokens. `weights` [targets] make long answers
        count more than short ones, but not as much as they are longer; `sizes` are the answers' numbers of targets and
        `kinds` what was asked, in order; `unseen` int64 [targets] are rows of `UnseenWords.table`.
        """
        progress = step / self.steps if self.steps else 1.0
        hardness = min(1.0, EASIEST + (1 - EASIEST) * progress / HARDEST)
        looking_up = progress < LOOKING_UP
        telling = tells(step) and not looking_up
        objects = (1 + round(hardness), 2 + round(6 * hardness))
        first = (self.seed * 1_000_000 + step) * SEEDS_A_STEP
        seeds = range(first, first + self.batch_size * (2 if telling else 1))
        scenes = [draw_scene(seed, size=SMALL, split=self.split, objects=objects) for seed in seeds]
        return self.about(scenes, seeds, telling=telling, looking_up=looking_up, hardness=hardness)[0]

    def about(
        self,
        scenes: Sequence[Scene],
        seeds: Sequence[int],
        *,
        telling: bool,
        looking_up: bool = False,
        hardness: float = 1.0,
    ) -> tuple[dict[str, Any], list[Scene]]:
        """What `batch` gives, about these `scenes`, and those of them about which there is something to ask."""
        rows: list[Row] = []
        cells, kinds, asked, unseen = [], [], [], []
        focuses: list[tuple[int, int, Focus]] = []
        vision = self.processor.config.vision
        for scene, seed in zip(scenes, seeds, strict=True):
            told = self._text(scene, seed) if telling else self._asked(scene, seed, looking_up)
            if not told:
                continue
            asked.append(scene)
            of_scene = cells_of(scene, vision.image_size // vision.patch_size)
            kept = (of_scene.anchor > 0) | (np.random.default_rng(seed).random(len(of_scene.anchor)) < hardness + 0.03)
            of_row = Cells(*(values[kept] for values in of_scene))
            row = self._row([it.sample for it in told], len(of_row.kind))
            for number, it in enumerate(told):
                focuses += [(len(rows), number, focus) for focus in self._focuses(it, scene, of_row, row, number)]
                unseen += self._unseen(it, scene, *row.parts[number])
            cells.append(as_numbers(of_row))
            rows.append(row)
            kinds += [it.kind for it in told]
        batch = lay_out(rows)
        sizes = answer_sizes(batch["labels"])
        weights = np.repeat(sizes**-0.5, sizes).astype(np.float32)
        more = {
            "cells": np.concatenate(cells),
            "weights": weights / weights.sum(),
            "sizes": sizes,
            "kinds": kinds,
            "unseen": np.array(unseen),
        }
        return batch | lay_out_focuses(focuses, batch["shape"]) | more, asked

    def _asked(self, scene: Scene, seed: int, looking_up: bool) -> list[Told]:
        turns = dialogue(scene, seed, turns=TURNS, kinds=LOOKED_UP if looking_up else _ASKED)
        return [self._told(turn, scene) for turn in turns]

    def _text(self, scene: Scene, seed: int) -> list[Told]:
        rng = Random(seed)
        if rng.random() < 0.5:
            return [self._told(turn, scene) for turn in dialogue(scene, seed, turns=1, kinds=("describe",))]
        form, text, language = captioned(scene, rng)
        sample = encoded("", text, TEMPLATES["plain"], self.processor)
        return [Told(form, None, mentions(scene, language, form), sample)]

    def _told(self, turn: Turn, scene: Scene) -> Told:
        named = mentions(scene, turn.language, turn.kind) if turn.kind == "describe" else []
        return Told(turn.kind, turn, named, encoded(turn.question, turn.answer, _BRIEF, self.processor))

    def _row(self, samples: list[EncodedSample], cells: int) -> Row:
        """Ids of what all samples begin with, the picture included; of each the ids and labels that follow."""
        image = self.processor.config.image_token_id
        (places,) = np.nonzero(samples[0].input_ids == image)
        start, end = places[0], places[-1] + 1
        shared = np.concatenate([samples[0].input_ids[:start], np.full(cells, image)])
        return Row(shared, [(sample.input_ids[end:], sample.labels[end:]) for sample in samples])

    def _focuses(self, told: Told, scene: Scene, cells: Cells, row: Row, number: int) -> Iterator[Focus]:
        ids, labels = row.parts[number]
        pieces = [self.pieces[number] for number in ids]
        tokens = np.flatnonzero(labels[1:] != IGNORED)[:-1]
        first_cell = len(row.shared) - len(cells.kind)
        if told.turn and told.kind != "describe":
            yield from focuses_of_question(told.turn, pieces, cells.owner, cells.anchor, first_cell, tokens)
        else:
            yield from focuses_of_text(told.mentions, pieces, cells.owner, first_cell, tokens)

    def _unseen(self, told: Told, scene: Scene, ids: np.ndarray, labels: np.ndarray) -> list[int]:
        """For each target the row of `UnseenWords.table`, by what is named there."""
        rows = np.zeros(len(ids), np.int64)
        tokens = np.flatnonzero(labels[1:] != IGNORED)
        about: list[tuple[int, int]] = []
        if told.kind in _SINGLED_OUT and told.turn:
            about = [(int(token), told.turn.objects[0]) for token in tokens]
        elif told.mentions:
            names = mentioned(told.mentions, [self.pieces[number] for number in ids], tokens)
            about = [(token, told.mentions[number][1][0]) for token, number in names]
        for token, number in about:
            thing = scene.objects[number]
            rows[token] = self.unseen.row(int(ids[token + 1]), (thing.kind, thing.colour))
        return rows[tokens].tolist()


class Tongue(nn.Layer):
    """The decoder under training and the layer that stands for eye and projector."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.language_model = model.language_model
        self.reader = nn.Linear(WIDTH, model.config.text.hidden_size)
        embeddings = model.language_model.embed_tokens.weight.numpy()
        tokenizer = build_tokenizer()
        self.reader.weight.set_value(aligned_weight(embeddings, tokenizer))
        self._unseen = paddle.to_tensor(UnseenWords(tokenizer).table)
        self._embed, self._logits = model.embed, model.logits

    def told(self, batch: dict[str, Any]) -> Tensor:
        """What stands for image features: of the contents of all cells, [cells of all, hidden_size]."""
        return self.reader(paddle.to_tensor(batch["cells"]))

    def target_logits(self, batch: dict[str, Any], features: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The logits [targets, vocab_size] of all targets in their order, the targets [targets], and the guided
        layers' attention; `features` [cells of all, hidden_size] take the places of image tokens."""
        decoder = self.language_model
        heads = decoder.config.num_attention_heads
        hidden_states = self._embed(paddle.to_tensor(batch["input_ids"]).unsqueeze(0), [features])[0]
        rotation = rotary_embedding(decoder.config, paddle.to_tensor(batch["position_ids"]), hidden_states.dtype)
        rotations = tuple(x.reshape([-1, 1, x.shape[-1]]).tile([1, heads, 1]) for x in rotation)
        places = Places.of(batch, heads)
        attention = []
        for number, layer in enumerate(decoder.layers):
            hidden_states, weights = run_layer(layer, hidden_states, rotations, places)
            if number in GUIDED_LAYERS:
                attention.append(weights)
        labels = batch["labels"]
        targets = np.flatnonzero(labels != IGNORED)
        chosen = paddle.gather(hidden_states, paddle.to_tensor(targets))
        return self._logits(decoder.norm(chosen)), paddle.to_tensor(labels[targets]), attention

    def loss(self, batch: dict[str, Any]) -> Tensor:
        return self.loss_of(self.told(batch), batch)

    def loss_of(self, features: Tensor, batch: dict[str, Any]) -> Tensor:
        """Of what is answered where `features` [cells of all, hidden_size] are seen."""
        logits, targets, attention = self.target_logits(batch, features)
        logits = logits + paddle.gather(self._unseen, paddle.to_tensor(batch["unseen"]))
        losses = F.cross_entropy(logits, targets, reduction="none").flatten()
        answers = (losses * paddle.to_tensor(batch["weights"])).sum()
        return answers + GUIDANCE * sum(guidance_loss(weights, batch) for weights in attention)

    def judge(
        self, batches: list[dict[str, Any]], features_of: Callable[[dict[str, Any]], Tensor] | None = None
    ) -> dict[str, float]:
        """Of each kind, the share of answers of which every token is the likeliest one after those before it.

        `box tokens` and `text tokens` are the shares of single tokens, of boxes and of texts; `guidance` is its loss.
        """
        right: dict[str, list[float]] = {}
        for batch in batches:
            logits, targets, attention = self.target_logits(batch, (features_of or self.told)(batch))
            hits = (logits.argmax(-1) == targets).numpy()
            starts = np.cumsum(batch["sizes"]) - batch["sizes"]
            answers = zip(batch["kinds"], starts, batch["sizes"], strict=True)
            for kind, start, size in answers:
                answer = hits[start : start + size]
                right.setdefault(kind, []).append(float(answer.all()))
                if kind in ("box", "describe"):
                    right.setdefault(f"{kind} tokens", []).extend(answer.tolist())
            right.setdefault("guidance", []).append(float(guidance_loss(attention[-1], batch)))
        return {kind: float(np.mean(values)) for kind, values in sorted(right.items())}


def train_tongue(
    folder: Path,
    base: Path,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    say: Say,
    progress: Progress | None = None,
) -> Tongue | None:
    """The decoder of the checkpoint `base` after `steps`, checkpoints in `folder`; None when it was stopped before."""
    processor = LlavaProcessor.from_pretrained(base)
    model = LlavaForConditionalGeneration.from_pretrained(base)
    tongue = Tongue(model)
    for parameter in tongue.parameters():
        parameter.stop_gradient = False
    held_out = [Questions(processor, 8, "heldout").batch(step) for step in range(2 * TELLING)]
    done = fit(
        tongue,
        Questions(processor, batch_size, steps=steps),
        tongue.loss,
        folder,
        steps=steps,
        learning_rate=learning_rate,
        judge=lambda: tongue.judge(held_out),
        judge_every=min(250, steps),
        say=say,
        progress=progress,
    )
    return tongue if done else None


def tells(step: int) -> bool:
    """Whether texts are told in this step, rather than questions asked."""
    return step % TELLING == TELLING - 1


def captioned(scene: Scene, rng: Random) -> tuple[str, str, Language]:
    """What `llava pretrain` learns to tell: a "list" of everything with its box, or a "caption", a sentence."""
    language = rng.choice(LANGUAGES)
    if rng.random() < LISTS:
        return "list", scene_as_text(scene, language), language
    return "caption", caption(scene, language), language


def encoded(question: str, answer: str, template: Template, processor: LlavaProcessor) -> EncodedSample:
    """A question about a picture and its answer as the recipe would read them; the picture is not looked at."""
    messages = (Message("user", question, images=1), Message("assistant", answer))
    sample = Sample(("picture",), messages, 1, "street")
    return encode_sample(sample, processor, template, processor.config.text.max_position_embeddings)


def answer_sizes(labels: np.ndarray) -> np.ndarray:
    """How many targets each answer has, in order; `labels` [positions] end each with something ignored."""
    edges = np.diff(np.concatenate([[0], (labels != IGNORED).astype(np.int8), [0]]))
    return np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
