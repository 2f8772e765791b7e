"""Samples of random words and pictures as training feeds them, one by one or packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from paddle_llava.config import LlavaConfig
from paddle_llava.models.llava import LlavaNetwork

Rows = Sequence[Sequence["Sample"]]
IGNORED = -100


@dataclass(frozen=True)
class Sample:
    """`labels` are moved left by one already: `labels[i]` is learnt from what stands up to position i."""

    input_ids: np.ndarray
    labels: np.ndarray
    pixel_values: np.ndarray
    image_sizes: list[tuple[int, int]]


def make_sample(
    config: LlavaConfig,
    random: np.random.Generator,
    question: int,
    answer: int,
    *sizes: tuple[int, int],
) -> Sample:
    """`question` and `answer` words, after the first of which pictures of the `sizes` (height, width) stand."""
    layouts = [config.image_layout(size) for size in sizes]
    words = random.integers(5, 300, question + answer)
    features = sum(layout.num_features for layout in layouts)
    ids = np.concatenate([words[:1], np.full(features, config.image_token_id), words[1:]])
    labels = np.full_like(ids, IGNORED)
    labels[len(ids) - answer - 1 : -1] = ids[len(ids) - answer :]
    side = config.vision.image_size
    tiles = sum(layout.tiles for layout in layouts)
    pixels = random.standard_normal((tiles, 3, side, side), dtype=np.float32)
    return Sample(ids, labels, pixels, list(sizes))


def inputs(rows: Rows) -> dict[str, Any]:
    """What `LlavaNetwork.loss` takes, as arrays: a row of `rows` is packed into one, padding after it."""
    lengths = [[len(sample.input_ids) for sample in row] for row in rows]
    longest = max(map(sum, lengths))
    shape = (len(rows), longest)
    arrays = {"input_ids": np.zeros(shape, np.int64), "labels": np.full(shape, IGNORED, np.int64)}
    arrays["position_ids"] = np.zeros(shape, np.int64)
    for number, row in enumerate(rows):
        start = 0
        for sample in row:
            places = slice(start, start + len(sample.input_ids))
            arrays["input_ids"][number, places] = sample.input_ids
            arrays["labels"][number, places] = sample.labels
            arrays["position_ids"][number, places] = np.arange(len(sample.input_ids))
            start = places.stop
    padded = [[*row, longest - sum(row)] if sum(row) < longest else row for row in lengths]
    pictured = [sample for row in rows for sample in row if sample.image_sizes]
    if not pictured:
        return {**arrays, "lengths": padded}
    pixels = np.concatenate([sample.pixel_values for sample in pictured])
    sizes = [list(size) for sample in pictured for size in sample.image_sizes]
    return {**arrays, "lengths": padded, "pixel_values": pixels, "image_sizes": sizes}


def loss(model: LlavaNetwork, rows: Rows, **changed: Any) -> paddle.Tensor:
    """The summed loss of `rows`, with some of the `inputs` changed."""
    arrays = {**inputs(rows), **changed}
    return model.loss(**{k: paddle.to_tensor(v) if isinstance(v, np.ndarray) else v for k, v in arrays.items()})


def gradients(model: LlavaNetwork) -> dict[str, np.ndarray]:
    """Those there are, by parameter; they are cleared."""
    found = {n: p.grad.numpy() for n, p in model.named_parameters() if not p.stop_gradient and p.grad is not None}
    model.clear_gradients()
    return found
