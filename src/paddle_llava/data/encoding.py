"""A sample -> token ids and labels, built together from the same segments, pictures expanded to their features."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from paddle_llava.data.pictures import picture_size
from paddle_llava.data.records import Sample
from paddle_llava.errors import LlavaError
from paddle_llava.geometry import Size
from paddle_llava.processing.conversation import encode, render
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.templates import Template

IGNORED = -100


@dataclass(frozen=True, eq=False)
class EncodedSample:
    """What the decoder reads of a sample, and what it is to say.

    `input_ids` int64 [length], one image token a feature; `labels` int64 [length], the ids of answers and of what
    closes them, else -100, not shifted. `images` are the sources of the pictures that were kept, `feature_counts` their
    features, `image_sizes` their (height, width), which is None where the number of features does not depend on it
    (v1.5). `num_targets` counts the labels that a model can be scored on. `full_length` is the length of the whole
    sample, `truncated` whether it exceeded the limit.
    """

    name: str
    input_ids: np.ndarray
    labels: np.ndarray
    images: tuple[str, ...]
    image_sizes: tuple[Size | None, ...]
    feature_counts: tuple[int, ...]
    num_targets: int
    full_length: int
    truncated: bool

    def __len__(self) -> int:
        return len(self.input_ids)


def encode_sample(sample: Sample, processor: LlavaProcessor, template: Template, max_length: int) -> EncodedSample:
    """`sample` in at most `max_length` tokens.

    What exceeds them is cut off: within text, or else before a picture that would not be whole. So is all that follows
    the last target, which no loss depends on: a question that lost its answer goes, with its pictures. With a template
    that drops questions (`plain`) the loss is on the caption and what closes it. Raises `LlavaError` naming the record
    when nothing is left to learn from, or a picture's size cannot be read.
    """
    try:
        return _encode(sample, processor, template, max_length)
    except LlavaError as error:
        raise LlavaError(f"{sample.name}: {error}") from None


def _encode(sample: Sample, processor: LlavaProcessor, template: Template, max_length: int) -> EncodedSample:
    ids, target_mask, positions = encode(render(sample.messages, with_system(template, sample)), processor.tokenizer)
    anyres = processor.config.image_grid_pinpoints is not None
    sizes = tuple(picture_size(source) if anyres else None for source in sample.images)
    counts = processor.feature_counts(np.array([size or (1, 1) for size in sizes], np.int64).reshape(-1, 2))

    repeats = np.ones(len(ids), np.int64)
    repeats[positions] = counts
    input_ids = np.repeat(np.array(ids, np.int64), repeats)
    is_target = np.repeat(np.array(target_mask, bool), repeats)

    ends = np.cumsum(repeats)[positions]
    end, kept = min(len(input_ids), max_length), len(counts)
    while kept and ends[kept - 1] > end:  # not whole, or beyond the end
        kept -= 1
        end = min(end, int(ends[kept]) - counts[kept])
    targets = np.flatnonzero(is_target[1:end]) + 1  # no logit comes before the first token
    if not len(targets):
        raise LlavaError(_nothing_left(len(input_ids), sum(counts), max_length))
    end = int(targets[-1]) + 1
    kept = int(np.searchsorted(ends, end, side="right"))
    return EncodedSample(
        name=sample.name,
        input_ids=input_ids[:end],
        labels=np.where(is_target, input_ids, IGNORED)[:end],
        images=sample.images[:kept],
        image_sizes=sizes[:kept],
        feature_counts=tuple(counts[:kept]),
        num_targets=len(targets),
        full_length=len(input_ids),
        truncated=len(input_ids) > max_length,
    )


def with_system(template: Template, sample: Sample) -> Template:
    """The template with the sample's own system text; where questions are dropped, it is dropped with them."""
    if sample.system is None or not template.keeps_question:
        return template
    if not template.system:
        raise LlavaError(f"the template {template.name!r} has no place for a system text; use another, or remove it")
    return replace(template, system=sample.system)


def _nothing_left(length: int, features: int, max_length: int) -> str:
    if length <= max_length:
        return "there is no answer to learn from"
    images = f", {features} of them for pictures," if features else ""
    return f"of its {length} tokens{images} the first {max_length} hold no answer to learn from; raise max_length"
