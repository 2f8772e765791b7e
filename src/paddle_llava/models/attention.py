"""Scaled dot-product attention, by whichever way is fast on the device at hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

# Query rows handled at a time on the CPU: their scores stay in the processor's cache, and a causal block
# skips the keys after it. Measured on 2 cores, 600 tokens of 32 heads: 39 ms in blocks of 64, 88 ms whole.
QUERY_BLOCK = 64
# The same under training, where heads go one by one. Measured with 4 x 704 tokens of 12 heads, there and back on two
# cores: 250 ms in blocks of 256, 300 in blocks of 128, 440 of 64.
TRAINING_BLOCK = 256

MASKED = -1e9
_VIEWS = "FLAGS_use_stride_kernel"


def causal_mask(query_length: int, key_length: int, past: int, valid: Tensor | None = None) -> Tensor:
    """An additive float32 mask: 0 where a query may look, `MASKED` elsewhere.

    Query i stands at position `past + i` among the keys and sees the keys up to itself; keys beyond
    `past + query_length` (the unused end of a cache) are thereby hidden. `valid` [batch, key_length] (bool) hides
    padding too. Returns [query_length, key_length], or [batch, 1, query_length, key_length] with `valid`.
    """
    visible = paddle.arange(key_length) <= paddle.arange(past, past + query_length).unsqueeze(-1)
    if valid is not None:
        visible = visible & valid.unsqueeze([1, 2])
    return paddle.where(visible, 0.0, MASKED)


def swap_heads(x: Tensor) -> Tensor:
    """[batch, m, n, head_dim] to [batch, n, m, head_dim]: heads within tokens to tokens within heads, and back.

    On the CPU as a copy, made by the one kernel that moves whole rows of head_dim: a transposed view is copied number
    by number by what reads it next. Measured with 4 x 704 tokens of 12 heads: 3 ms instead of 24.
    """
    batch, m, n, head_dim = x.shape
    if not x.place.is_cpu_place() or x.dtype != paddle.float32 or x.is_dist():
        return x.transpose([0, 2, 1, 3])
    if m > 1 and n > 1:
        x = F.channel_shuffle(x.reshape([batch, m * n, 1, head_dim]), m)
    return x.reshape([batch, n, m, head_dim])


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, past: int | None = None
) -> Tensor:
    """Attention of `query` [batch, heads, queries, head_dim] to `key` and `value` [batch, kv_heads, keys, head_dim].

    `heads` is a multiple of `kv_heads` (grouped-query attention). `past` is None when every query sees every key; else
    attention is causal and query i stands at position `past + i` among the keys. `mask` is the additive float32 mask
    that says so, broadcastable to [batch, 1, queries, keys]; it may be left out when `past` is 0 and nothing is padded.
    Returns [batch, heads, queries, head_dim].
    """
    on_cpu = paddle.get_device() == "cpu"
    if mask is None and not on_cpu:
        return _fused(query, key, value, is_causal=past is not None)
    queries, keys = query.shape[2], key.shape[2]
    if mask is None and past == 0 and queries == keys and _has_own_gradient(query):
        return segmented_attention(query, key, value, [[queries]] * query.shape[0])
    if mask is None and past is not None:
        mask = causal_mask(queries, keys, past)
    # Under training a block's slices would each give a gradient as large as the whole.
    if queries <= QUERY_BLOCK or not on_cpu or paddle.is_grad_enabled():
        return _attend(query, key, value, mask)
    outputs = []
    for start in range(0, queries, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, queries)
        seen = keys if past is None else past + end
        rows = None if mask is None else mask[..., start:end, :seen]
        outputs.append(_attend(query[:, :, start:end], key[:, :, :seen], value[:, :, :seen], rows))
    return paddle.concat(outputs, axis=2)


def segmented_attention(query: Tensor, key: Tensor, value: Tensor, lengths: list[list[int]]) -> Tensor:
    """Causal attention in which the samples that share a row do not see each other (packing).

    `lengths[row]` are the lengths of the row's samples in order, adding up to the row's length (padding counts as one
    more sample). Every sample is attended to on its own, so that packing costs no attention across samples.
    """
    if _has_own_gradient(query):
        longest = query.shape[2]
        if len(lengths) != query.shape[0] or any(sum(row) != longest for row in lengths):
            raise ValueError(f"lengths {lengths} do not fill {query.shape[0]} rows of {longest}")
        return _CausalAttention.apply(query, key, value, lengths)
    rows = []
    for row_qkv, row_lengths in zip(_rows(query, key, value), lengths, strict=True):
        samples = zip(*(x.split(row_lengths, axis=2) for x in row_qkv), strict=True)
        rows.append(paddle.concat([attention(q, k, v, past=0) for q, k, v in samples], axis=2))
    return paddle.concat(rows) if len(rows) > 1 else rows[0]


def _rows(*tensors: Tensor) -> zip[tuple[Tensor, ...]]:
    # `split`, whose gradient is a concatenation; that of a slice is as large as the whole tensor.
    return zip(*(x.split(x.shape[0]) if x.shape[0] > 1 else [x] for x in tensors), strict=True)


def _fused(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Tensor:
    """Flash attention on GPU and NPU, which wants [batch, length, heads, head_dim] and equal head counts."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, axis=1), value.repeat_interleave(groups, axis=1)
    query, key, value = (x.transpose([0, 2, 1, 3]) for x in (query, key, value))
    output = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
    return output.transpose([0, 2, 1, 3])


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    batch, heads, queries, head_dim = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    # The heads of a group are stacked as further rows, so that keys and values are never repeated in memory.
    query = (query * (1.0 / math.sqrt(head_dim))).reshape([batch, kv_heads, -1, head_dim])
    scores = paddle.matmul(query, key, transpose_y=True).astype("float32")
    if mask is not None:
        scores = scores.reshape([batch, heads, queries, keys]) + mask
        scores = scores.reshape([batch, kv_heads, -1, keys])
    output = paddle.matmul(F.softmax(scores).astype(value.dtype), value)
    return output.reshape([batch, heads, queries, head_dim])


def _has_own_gradient(query: Tensor) -> bool:
    """Whether `_CausalAttention` is the way: not for tensors that are split over several processes, nor where slices
    are copies, as with the settings of NPUs."""
    views = paddle.get_flags(_VIEWS)[_VIEWS]
    return paddle.is_grad_enabled() and query.place.is_cpu_place() and not query.is_dist() and bool(views)


class _CausalAttention(PyLayer):
    """`segmented_attention` on the CPU with the gradient written out.

    A block of one head's queries at a time, against the keys that it may see: its scores stay in the processor's
    cache, and slices of one head are contiguous, so that none is copied. The softmaxes are kept for the way back.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, lengths: list[list[int]]) -> Tensor:
        scaled = query * (1.0 / math.sqrt(query.shape[-1]))
        masks: dict[tuple[int, int], Tensor] = {}
        outputs, kept = [], []
        for row, head, rows, keys in _blocks(query.shape, lengths):
            kv_head = head * key.shape[1] // query.shape[1]
            seen = (keys.stop - keys.start, rows.start - keys.start)
            if seen not in masks:
                masks[seen] = causal_mask(rows.stop - rows.start, seen[0], seen[1])
            scores = paddle.matmul(scaled[row, head][rows], key[row, kv_head][keys], transpose_y=True)
            kept.append(F.softmax(scores.add_(masks[seen])))
            outputs.append(paddle.matmul(kept[-1], value[row, kv_head][keys]))
        output = paddle.concat(outputs).reshape(query.shape)
        ctx.lengths, ctx.wanted = lengths, [not x.stop_gradient for x in (query, key, value)]
        ctx.save_for_backward(scaled, key, value, output, *kept)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scaled, key, value, output, *kept = ctx.saved_tensor()
        gradient = gradient.contiguous()
        # A softmax's gradient is P * (dP - rowsum(dO * O)), and dP = dO V': the difference comes out of the product
        # by itself with one more column on either side.
        rest = -(gradient * output).sum(-1, keepdim=True)
        longer_gradient = paddle.concat([gradient, rest], axis=-1)
        longer_value = paddle.concat([value, paddle.ones_like(value[..., :1])], axis=-1)
        key_gradient, value_gradient = paddle.zeros_like(key), paddle.zeros_like(value)
        query_gradients = []
        for softmax, (row, head, rows, keys) in zip(kept, _blocks(scaled.shape, ctx.lengths), strict=True):
            kv_head = head * key.shape[1] // scaled.shape[1]
            scores = paddle.matmul(
                longer_gradient[row, head][rows], longer_value[row, kv_head][keys], transpose_y=True
            ).multiply_(softmax)
            query_gradients.append(paddle.matmul(scores, key[row, kv_head][keys]))
            key_gradient[row, kv_head][keys].add_(paddle.matmul(scores, scaled[row, head][rows], transpose_x=True))
            value_gradient[row, kv_head][keys].add_(paddle.matmul(softmax, gradient[row, head][rows], transpose_x=True))
        query_gradient = paddle.concat(query_gradients).scale_(1.0 / math.sqrt(scaled.shape[-1]))
        gradients = (query_gradient.reshape(scaled.shape), key_gradient, value_gradient)
        return tuple(x if wanted else None for x, wanted in zip(gradients, ctx.wanted, strict=True))


def _blocks(shape: list[int], lengths: list[list[int]]) -> Iterator[tuple[int, int, slice, slice]]:
    """(row, head, queries, keys) of every block in memory's order; keys are the sample's up to the last query."""
    for row, samples in enumerate(lengths):
        for head in range(shape[1]):
            start = 0
            for length in samples:
                for first in range(start, start + length, TRAINING_BLOCK):
                    last = min(first + TRAINING_BLOCK, start + length)
                    yield row, head, slice(first, last), slice(start, last)
                start += length
