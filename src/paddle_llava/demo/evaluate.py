"""How well a model knows the street world: every question alone with its held-out picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from PIL import Image

from paddle_llava.demo.dialogues import KINDS_OF_QUESTION, Turn, dialogue
from paddle_llava.demo.loop import Progress
from paddle_llava.demo.model import IMAGE_SIZE, TEMPLATE
from paddle_llava.demo.scenes import draw_scene
from paddle_llava.demo.scoring import score
from paddle_llava.llava import LlavaForConditionalGeneration
from paddle_llava.processing.conversation import Message, encode, render
from paddle_llava.processing.processor import LlavaProcessor, pad_left

BATCH = 32
SEED = 77_000_000
TURNS = 8


def longest_answer(kind: str) -> int:
    """How many tokens the answer to a `kind` of question may have."""
    return {"describe": 110, "box": 12}.get(kind, 8)


@dataclass(frozen=True)
class Answered:
    """A question, the picture's number, and what the model said."""

    turn: Turn
    picture: int
    answer: str


def ask_all(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    pictures: int,
    *,
    turns: int = TURNS,
    progress: Progress | None = None,
) -> list[Answered]:
    """At most `turns` questions, each alone, about each of `pictures` held-out pictures; greedy answers."""
    scenes = [draw_scene(SEED + number, size=IMAGE_SIZE, split="heldout") for number in range(pictures)]
    asked = [
        (turn, number) for number, scene in enumerate(scenes) for turn in dialogue(scene, SEED + number, turns=turns)
    ]
    asked.sort(key=lambda pair: (longest_answer(pair[0].kind), len(pair[0].question)))
    answered = []
    for _, group in groupby(asked, key=lambda pair: longest_answer(pair[0].kind)):  # or one would cut another short
        alike = list(group)
        for start in range(0, len(alike), BATCH):
            batch = alike[start : start + BATCH]
            pairs = [(scenes[number].image, turn.question) for turn, number in batch]
            answers = ask(model, processor, pairs, batch[0][0])
            answered += [Answered(*pair, answer) for pair, answer in zip(batch, answers, strict=True)]
            if progress:
                progress(len(answered), len(asked))
    return answered


def ask(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    questions: Sequence[tuple[Image.Image, str]],
    like: Turn,
) -> list[str]:
    """The answers to questions about pictures, in one batch, as long as those to `like` can be."""
    rows = []
    pixels = processor.prepare_images([image for image, _ in questions])
    counts = iter(processor.feature_counts(pixels["image_sizes"]))
    for _, question in questions:
        prompt = render([Message("user", question, images=1)], TEMPLATE, add_generation_prompt=True)
        rows.append(processor.expand_image_tokens(encode(prompt, processor.tokenizer).ids, counts))
    inputs = pad_left(rows, processor.padding_id) | pixels
    tokens = model.generate(**inputs, max_new_tokens=longest_answer(like.kind), temperature=0.0).numpy()
    end = processor.tokenizer.eos_token_id
    ended = [row[: int(np.append(row, end).tolist().index(end))] for row in tokens]
    return [processor.tokenizer.decode(row.tolist()).strip() for row in ended]


def figures(answered: Sequence[Answered]) -> dict[str, dict[str, float]]:
    """For each kind of question and `vqa` (all with one right answer), also of each `kind language` and of each
    `kind pair`, which is about kinds and colours that training never has together: its figures and `asked`.

    `exact`; for boxes `iou` and `hit`; for descriptions `named`, the share of the large objects, and `invented`, the
    share of what is mentioned. `new` is `exact` over the wordings that training never has.
    """
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for it in answered:
        scores = score(it.turn, it.answer)
        if it.turn.new_wording and "exact" in scores:
            scores |= {"new": scores["exact"], "new_asked": 1.0}
        sorts = [it.turn.kind, "vqa"] if "exact" in scores else [it.turn.kind]
        parts = ["", f" {it.turn.language}", *([" pair"] if it.turn.new_pair else [])]
        for name in (sort + part for sort in sorts for part in parts):
            for key, value in {**scores, "asked": 1.0}.items():
                sums[name][key] += value
    return {name: dict(_means(sums[name])) for name in sorted(sums)}


def lines(table: dict[str, dict[str, float]]) -> Iterator[str]:
    """The figures, to print: English, Chinese and pairs never trained on beside all."""
    yield f"{'':10} {'asked':>6}  {'all':>6} {'en':>6} {'zh':>6} {'pair':>6}"
    for kind in ("vqa", *KINDS_OF_QUESTION):
        for key in ("exact", "new", "iou", "hit", "named", "invented"):
            if key in table.get(kind, {}):
                values = [
                    table.get(f"{kind}{suffix}", {}).get(key, float("nan")) for suffix in ("", " en", " zh", " pair")
                ]
                shown = " ".join(f"{value:6.3f}" for value in values)
                yield f"{kind:10} {table[kind]['asked']:6.0f}  {shown}  {key}"


def _means(sums: dict[str, float]) -> Iterator[tuple[str, float]]:
    divisors = {"named": "required", "invented": "mentions", "new": "new_asked"}
    for key, value in sums.items():
        if key not in ("required", "mentions", "new_asked", "asked"):
            yield key, value / max(sums[divisors.get(key, "asked")], 1.0)
    yield "asked", sums["asked"]
