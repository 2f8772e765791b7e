"""Several sequences that run in one batch, each with a KV cache of its own.

The products with the weights are made for all tokens together; attention goes sequence by sequence, each over exactly
its own keys. So nobody's memory is padded to the longest, and attention never sees the others. On processors with
AVX-512 a sequence's result is bit for bit the same whoever runs beside it: a row of a product does not depend on how
many there are, as long as there are two (measured with MKL from 2 to 256 rows, see
`tests/engines/test_paddle_batch.py`). Without it, MKL rounds otherwise at some counts.
"""

from __future__ import annotations

import math
from functools import cache
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

    `rows` counts the rows of the batch; those after the last span are padding.
    """

    def __init__(self, spans: list[Span], rows: int) -> None:
        self._spans = spans
        self._padding = rows - spans[-1].end
        self._masks = [_masks(span) for span in spans]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of `query` [tokens, heads, 1, head_dim] to the tokens before them in their sequence.

        `key` and `value` [tokens, kv_heads, 1, head_dim] are added to the caches. Returns the shape of `query`.
        """
        query = query * (1.0 / math.sqrt(query.shape[-1]))
        outputs = []
        for span, masks, rows in zip(self._spans, self._masks, self._rows(query, key, value), strict=False):
            own = rows if span.alone else [x.transpose([2, 1, 0, 3]) for x in rows]
            keys, values = span.cache.append(layer, own[1], own[2])
            if span.alone:
                outputs.append(_attend(own[0], keys, values, masks[0]))
            else:
                outputs.append(_in_blocks(own[0], keys, values, masks, span.cache.length).transpose([2, 1, 0, 3]))
        if self._padding:
            outputs.append(paddle.zeros([self._padding, *query.shape[1:]], dtype=query.dtype))
        return paddle.concat(outputs) if len(outputs) > 1 else outputs[0]

    def _rows(self, *tensors: Tensor) -> zip[tuple[Tensor, ...]]:
        """The rows of each span, of all tensors, and those of the padding."""
        counts = [span.end - span.start for span in self._spans] + ([self._padding] if self._padding else [])
        return zip(*(x.split(counts) if len(counts) > 1 else [x] for x in tensors), strict=True)

    def advance(self, count: int) -> None:
        """Mark the new tokens as used, after every layer has appended them. `count` is that of a row, 1."""
        for span in self._spans:
            span.cache.advance(span.end - span.start)


def _masks(span: Span) -> list[Tensor]:
    """One additive mask a block of queries; one for a token that is alone."""
    past, count = span.cache.length, span.end - span.start
    if span.alone:
        keys = -(-(past + 1) // CHUNK) * CHUNK
        edge = _edge(keys)
        return [edge[keys - past - 1 :][:keys]]
    own = paddle.where(paddle.arange(BLOCK) <= paddle.arange(BLOCK).unsqueeze(-1), 0.0, MASKED)
    first, last = past // BLOCK, (past + count - 1) // BLOCK
    return [paddle.concat([paddle.zeros([BLOCK, block * BLOCK]), own], axis=1) for block in range(first, last + 1)]


@cache
def _edge(keys: int) -> Tensor:
    """`keys` zeros and as many `MASKED`: every mask of one query is a part of it, and making one anew takes longer than
    the attention of a small model."""
    return paddle.concat([paddle.zeros([keys]), paddle.full([keys], MASKED)])


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
    """Of a scaled `query` [1, heads, queries, head_dim]; `mask` is [queries or none, keys].

    Written for as few operations as can be: with a small model that is what a token's time goes to.
    """
    _, heads, queries, head_dim = query.shape
    kv_heads, keys = key.shape[1], mask.shape[-1]
    if key.shape[2] != keys:
        key, value = key[:, :, :keys], value[:, :, :keys]
        mask = mask[..., : key.shape[2]]  # where a cache is exactly as long as what it holds
    if heads != kv_heads:
        query = query.reshape([1, kv_heads, -1, head_dim])
        mask = mask if queries == 1 else mask.tile([heads // kv_heads, 1])
    scores = paddle.matmul(query, key, transpose_y=True)
    if scores.dtype == paddle.float32:
        output = paddle.matmul(F.softmax(scores.add_(mask)), value)
    else:
        output = paddle.matmul(F.softmax(scores.astype("float32") + mask).astype(value.dtype), value)
    return output if heads == kv_heads else output.reshape([1, heads, queries, head_dim])
