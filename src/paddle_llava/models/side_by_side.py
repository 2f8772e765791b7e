"""Several sequences that run in one batch, each with a KV cache of its own.

The products with the weights are made for all tokens together; attention goes sequence by sequence, each over exactly
its own keys. So nobody's memory is padded to the longest, and a sequence's result is bit for bit the same whoever runs
beside it: a row of a product does not depend on how many there are, as long as there are two (measured with MKL from 2
to 256 rows, see `tests/engines/test_paddle_batch.py`), and attention never sees the others.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from paddle_llava.models.attention import MASKED
from paddle_llava.models.kv_cache import CHUNK, KVCache

# Queries of a prompt are attended to in blocks at fixed positions, whichever part of the prompt was there before, so
# that a prompt gives the same bits when its beginning is taken from a cache.
BLOCK = 64


class Span(NamedTuple):
    """The tokens [start, end) of a batch's rows, which follow what `cache` holds.

    `alone` is for one token that was generated just now; tokens of a prompt go in blocks, even if only one is left.
    """

    cache: KVCache
    start: int
    end: int
    alone: bool = False


class SideBySide:
    """The caches of one step's sequences: `attend` runs a layer's attention, `advance` ends the step.

    Rows after the last span are padding.
    """

    def __init__(self, spans: list[Span]) -> None:
        self._spans = spans
        self._masks = [_masks(span) for span in spans]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of `query` [tokens, heads, 1, head_dim] to the tokens before them in their sequence.

        `key` and `value` [tokens, kv_heads, 1, head_dim] are added to the caches. Returns the shape of `query`.
        """
        query = query * (1.0 / math.sqrt(query.shape[-1]))
        outputs = []
        for (cache, start, end, alone), masks in zip(self._spans, self._masks, strict=True):
            rows = [x[start:end] if alone else x[start:end].transpose([2, 1, 0, 3]) for x in (query, key, value)]
            keys, values = cache.append(layer, rows[1], rows[2])
            if alone:
                outputs.append(_attend(rows[0], keys, values, masks[0]))
            else:
                outputs.append(_in_blocks(rows[0], keys, values, masks, cache.length).transpose([2, 1, 0, 3]))
        padding = query.shape[0] - self._spans[-1].end
        if padding:
            outputs.append(paddle.zeros([padding, *query.shape[1:]], dtype=query.dtype))
        return paddle.concat(outputs) if len(outputs) > 1 else outputs[0]

    def advance(self, count: int) -> None:
        """Mark the new tokens as used, after every layer has appended them. `count` is that of a row, 1."""
        for span in self._spans:
            span.cache.advance(span.end - span.start)


def _masks(span: Span) -> list[Tensor]:
    """One additive mask a block of queries; one for a token that is alone."""
    past, count = span.cache.length, span.end - span.start
    if span.alone:
        keys = -(-(past + 1) // CHUNK) * CHUNK
        return [paddle.where(paddle.arange(keys) <= past, 0.0, MASKED)]
    own = paddle.where(paddle.arange(BLOCK) <= paddle.arange(BLOCK).unsqueeze(-1), 0.0, MASKED)
    first, last = past // BLOCK, (past + count - 1) // BLOCK
    return [paddle.concat([paddle.zeros([BLOCK, block * BLOCK]), own], axis=1) for block in range(first, last + 1)]


def _in_blocks(query: Tensor, keys: Tensor, values: Tensor, masks: list[Tensor], past: int) -> Tensor:
    """Attention of `query` [1, heads, count, head_dim] from position `past` on."""
    count, first = query.shape[2], past // BLOCK
    last = first + len(masks) - 1
    query = F.pad(
        query, [0, 0, 0, 0, past - first * BLOCK, (last + 1) * BLOCK - past - count, 0, 0], pad_from_left_axis=True
    )
    outputs = []
    for block, mask in enumerate(masks):
        seen = (first + block + 1) * BLOCK
        rows = query[:, :, block * BLOCK : (block + 1) * BLOCK]
        outputs.append(_attend(rows, keys[:, :, :seen], values[:, :, :seen], mask))
    output = paddle.concat(outputs, axis=2) if len(outputs) > 1 else outputs[0]
    return output[:, :, past - first * BLOCK :][:, :, :count]


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Of a scaled `query` [1, heads, queries, head_dim]; `mask` [queries or none, keys]."""
    _, heads, queries, head_dim = query.shape
    kv_heads, keys = key.shape[1], mask.shape[-1]
    if key.shape[2] != keys:
        key, value = key[:, :, :keys], value[:, :, :keys]
    scores = paddle.matmul(query.reshape([1, kv_heads, -1, head_dim]), key, transpose_y=True).astype("float32")
    if queries == 1 or heads == kv_heads:
        scores = scores + mask
    else:
        scores = (scores.reshape([1, heads, queries, keys]) + mask).reshape([1, kv_heads, -1, keys])
    output = paddle.matmul(F.softmax(scores).astype(value.dtype), value)
    return output.reshape([1, heads, queries, head_dim])
