"""The eye's own pretraining, what CLIP's is to LLaVA: the tower learns to tell what is in each cell of a picture.

A throw-away linear head reads kind, colour, box, place and time off each feature; so they can be read off by a
projector too. Half of the pictures are painted in colours without a name: a kind is to be known in any colour, also in
one that it never has in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from paddle_llava.demo.cells import STEPS, WIDTH, WIDTHS, Cells, cells_of, spread
from paddle_llava.demo.kinds import Split
from paddle_llava.demo.loop import Progress, Say, fit
from paddle_llava.demo.scenes import Scene, draw_scene
from paddle_llava.demo.unseen import without_unseen
from paddle_llava.llava import LlavaForConditionalGeneration
from paddle_llava.models.clip import CLIPVisionTower
from paddle_llava.processing.processor import LlavaProcessor

SIZES = (1.0, 1.0, 1.0, 1.5, 2.0)  # of the pictures, in sides of what the tower takes
SEEDS_A_STEP = 1000


class Pictures:
    """Batches of drawn pictures with their cells; in training, every other one is `unnamed`."""

    def __init__(self, processor: LlavaProcessor, batch_size: int, split: Split = "train", seed: int = 0) -> None:
        self.processor, self.batch_size, self.split, self.seed = processor, batch_size, split, seed

    def batch(self, step: int) -> dict[str, Any]:
        """What `seen` gives."""
        first = (self.seed * 1_000_000 + step) * SEEDS_A_STEP
        side = self.processor.config.vision.image_size
        seeds = range(first, first + self.batch_size)
        unnamed = [self.split == "train" and seed % 2 == 1 for seed in seeds]
        scenes = [draw_sized(seed, side, self.split, it) for seed, it in zip(seeds, unnamed, strict=True)]
        return seen(scenes, self.processor)


def draw_sized(seed: int, side: int, split: Split, unnamed: bool = False) -> Scene:
    """A scene for a tower that takes pictures of `side`: some are larger, and are made smaller as photographs are."""
    return draw_scene(seed, size=round(side * SIZES[seed % len(SIZES)]), split=split, unnamed=unnamed)


def seen(scenes: Sequence[Scene], processor: LlavaProcessor) -> dict[str, Any]:
    """`pixel_values` [pictures, 3, S, S], and each field of `Cells` [pictures, cells]."""
    vision = processor.config.vision
    cells = [cells_of(scene, vision.image_size // vision.patch_size) for scene in scenes]
    pixels = processor.prepare_images([scene.image for scene in scenes])["pixel_values"]
    return {
        "pixel_values": pixels,
        **{name: np.stack([getattr(of_one, name) for of_one in cells]) for name in Cells._fields},
    }


class Eye(nn.Layer):
    """The tower under training and the head that is thrown away."""

    def __init__(self, vision_tower: CLIPVisionTower, hidden_size: int) -> None:
        super().__init__()
        self.vision_tower = vision_tower
        self.head = nn.Linear(hidden_size, WIDTH)

    def features(self, batch: dict[str, Any]) -> Tensor:
        """Of each cell, [pictures, cells, hidden_size]."""
        return self.vision_tower(paddle.to_tensor(batch["pixel_values"]))[:, 1:]

    def read(self, features: Tensor) -> dict[str, Tensor]:
        """Logits of each of `WIDTHS`, [pictures, cells, width]; those of boxes [pictures, cells, 4, STEPS]."""
        parts = self.head(features).split(list(WIDTHS.values()), axis=-1)
        logits = dict(zip(WIDTHS, parts, strict=True))
        logits["box"] = logits["box"].reshape([*logits["box"].shape[:2], 4, STEPS])
        return logits

    def loss(self, batch: dict[str, Any]) -> Tensor:
        return self.loss_of(self.features(batch), batch)

    def loss_of(self, features: Tensor, batch: dict[str, Any]) -> Tensor:
        """Of what the head reads off `features` against the batch's cells."""
        logits = self.read(features)
        target = {name: paddle.to_tensor(batch[name]) for name in Cells._fields}
        things, named = (paddle.to_tensor(np.flatnonzero(batch[name])) for name in ("kind", "colour"))

        def of(cells: Tensor, x: Tensor) -> Tensor:
            return paddle.gather(x.flatten(0, 1), cells)

        def told(name: str, cells: Tensor) -> Tensor:
            return F.cross_entropy(of(cells, logits[name]), of(cells, target[name].unsqueeze(-1)))

        kind, colour = without_unseen(logits["kind"], logits["colour"], target["kind"], target["colour"])
        boxes = paddle.to_tensor(spread(batch["box"].reshape(-1, 4)[np.flatnonzero(batch["kind"])]))
        anchors = F.binary_cross_entropy_with_logits(logits["anchor"][..., 0], target["anchor"].astype("float32"))
        return (
            F.cross_entropy(kind, target["kind"])
            + 0.5 * F.cross_entropy(of(named, colour), of(named, target["colour"].unsqueeze(-1)))
            + 0.5 * F.cross_entropy(of(things, logits["box"]), boxes, soft_label=True)
            + 2.0 * anchors
            + 0.5 * (told("alike", things) + told("twins", named) + told("rank", things))
            + 0.1 * F.cross_entropy(logits["place"], target["place"])
            + 0.1 * F.cross_entropy(logits["time"], target["time"])
        )

    def judge(self, batches: list[dict[str, Any]]) -> dict[str, float]:
        """Shares of right cells; of those that speak for a thing (`anchor`), kind, colour and the mean IoU."""
        sums: dict[str, list[np.ndarray]] = {}
        for batch in batches:
            logits = {name: x.numpy() for name, x in self.read(self.features(batch)).items()}
            anchors = batch["anchor"] > 0
            found = {
                "cells": logits["kind"].argmax(-1) == batch["kind"],
                "kind": (logits["kind"].argmax(-1) == batch["kind"])[anchors],
                "colour": (logits["colour"].argmax(-1) == batch["colour"])[anchors],
                "iou": _iou(logits["box"].argmax(-1)[anchors], batch["box"][anchors]),
                "anchors_found": (logits["anchor"][..., 0] > 0)[anchors],
                "anchors_true": anchors[logits["anchor"][..., 0] > 0],
                **{name: (logits[name].argmax(-1) == batch[name])[anchors] for name in ("alike", "twins", "rank")},
                "place": logits["place"].mean(1).argmax(-1) == batch["place"][:, 0],
            }
            for name, values in found.items():
                sums.setdefault(name, []).append(values.ravel())
        joined = {name: np.concatenate(values) for name, values in sums.items()}
        return {name: float(values.sum() / max(values.size, 1)) for name, values in joined.items()}


def train_eye(
    folder: Path,
    base: Path,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    say: Say,
    progress: Progress | None = None,
) -> Eye | None:
    """The eye of the checkpoint `base` after `steps`, with checkpoints in `folder`; None when it was stopped before."""
    processor = LlavaProcessor.from_pretrained(base)
    model = LlavaForConditionalGeneration.from_pretrained(base)
    paddle.seed(1)
    eye = Eye(model.vision_tower, model.config.vision.hidden_size)
    for name, parameter in eye.named_parameters():
        parameter.stop_gradient = "post_layernorm" in name  # which LLaVA does not read
    held_out = [Pictures(processor, 50, "heldout").batch(step) for step in range(4)]
    done = fit(
        eye,
        Pictures(processor, batch_size),
        eye.loss,
        folder,
        steps=steps,
        learning_rate=learning_rate,
        judge=lambda: eye.judge(held_out),
        judge_every=min(250, steps),
        say=say,
        progress=progress,
    )
    return eye if done else None


def _iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of int [boxes, 4]."""
    low, high = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])
    shared = (high - low).clip(0).prod(1)
    areas = (one[:, 2:] - one[:, :2]).clip(0).prod(1) + (other[:, 2:] - other[:, :2]).prod(1)
    return shared / np.maximum(areas - shared, 1)
