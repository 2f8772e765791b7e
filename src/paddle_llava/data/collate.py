"""Encoded samples -> the arrays of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from paddle_llava.data.encoding import IGNORED, EncodedSample
from paddle_llava.data.pictures import local_source
from paddle_llava.errors import LlavaError
from paddle_llava.processing.processor import LlavaProcessor

Batch = dict[str, Any]


class PreparedSample(NamedTuple):
    """A sample and its pictures: `pixel_values` float32 [tiles, 3, S, S] and `image_sizes` int64, or no arrays."""

    sample: EncodedSample
    pixels: dict[str, np.ndarray]


def prepare_sample(sample: EncodedSample, processor: LlavaProcessor) -> PreparedSample:
    """`sample` with its pictures, made by the very function that chat uses. Raises `LlavaError` naming the record."""
    if not sample.images:
        return PreparedSample(sample, {})
    try:
        pixels = processor.prepare_images([local_source(source) for source in sample.images])
        if tuple(processor.feature_counts(pixels["image_sizes"])) != sample.feature_counts:
            raise LlavaError("a picture has changed while it was read, or its header lies about its size")
    except LlavaError as error:
        raise LlavaError(f"{sample.name}: {error}") from None
    return PreparedSample(sample, pixels)


def collate(rows: Sequence[Sequence[PreparedSample]], padding_id: int) -> Batch:
    """The arrays of a batch whose rows hold one sample each, or several (packed).

    - `input_ids` int64 [rows, longest], padded on the right with `padding_id`;
    - `labels` int64 of that shape, moved left by one within each sample: the logits at a position are scored against
      the label at the same position. -100 where nothing is scored, at the last token of a sample too;
    - `position_ids` int64, from 0 within each sample;
    - `segment_ids` int32, from 1 for the samples of a row, 0 for padding: attention stays within a segment;
    - `pixel_values` float32 [tiles, 3, S, S] and `image_sizes` int64 [pictures, 2] (height, width), of all pictures in
      reading order, row after row; both absent without pictures;
    - `num_targets` and `num_tokens`, ints: labels to be scored, and ids that are not padding;
    - `records`: for each row the names of its samples, of which the first is segment 1.
    """
    length = max(sum(len(prepared.sample) for prepared in row) for row in rows)
    input_ids = np.full((len(rows), length), padding_id, np.int64)
    labels = np.full((len(rows), length), IGNORED, np.int64)
    position_ids = np.zeros((len(rows), length), np.int64)
    segment_ids = np.zeros((len(rows), length), np.int32)
    for number, row in enumerate(rows):
        start = 0
        for segment, (sample, _) in enumerate(row, 1):
            end = start + len(sample)
            input_ids[number, start:end] = sample.input_ids
            labels[number, start : end - 1] = sample.labels[1:]
            position_ids[number, start:end] = np.arange(len(sample))
            segment_ids[number, start:end] = segment
            start = end
    batch: Batch = {
        "input_ids": input_ids,
        "labels": labels,
        "position_ids": position_ids,
        "segment_ids": segment_ids,
        "num_targets": int((labels != IGNORED).sum()),
        "num_tokens": int((segment_ids > 0).sum()),
        "records": [[prepared.sample.name for prepared in row] for row in rows],
    }
    pixels = [prepared.pixels for row in rows for prepared in row if prepared.pixels]
    if pixels:
        batch |= {key: np.concatenate([each[key] for each in pixels]) for key in ("pixel_values", "image_sizes")}
    return batch
