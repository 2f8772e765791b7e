"""Many questions about one picture, each of which sees the picture and itself alone, without running it again for each.

The tokens of all pictures and questions lie flat, one after another, for everything but attention. There a picture's
questions stand side by side, `[pictures, heads, questions, length, …]`, and their scores are those of the picture's
tokens and those of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor

from paddle_llava.data.encoding import IGNORED
from paddle_llava.models.attention import MASKED
from paddle_llava.models.llama import LlamaLayer, rotate


class Row(NamedTuple):
    """A picture's beginning and what is asked after it: int64 ids; labels as long as the ids."""

    shared: np.ndarray
    parts: Sequence[tuple[np.ndarray, np.ndarray]]


def lay_out(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows as arrays. With P the longest beginning, K the most questions of a row, T the longest question:

    `input_ids`, `position_ids`, `labels` int64 [rows * P + tokens of all questions], labels moved left by one;
    `shape` (rows, P, K, T); `slots` int64 [rows * K * T], the flat token of each place of a question; `back`, the place
    of each question's token; `part` int64 [tokens of all questions], the question's number among `rows * K`;
    `shared_mask` float32 [rows, 1, P, P] and `mask` [rows, 1, K, T, P + T], to be added to scores.
    """
    longest = max(len(row.shared) for row in rows)
    most = max(len(row.parts) for row in rows)
    width = max(len(ids) for row in rows for ids, _ in row.parts)
    input_ids, position_ids = np.zeros((2, len(rows), longest), np.int64)
    for number, row in enumerate(rows):
        input_ids[number, : len(row.shared)] = row.shared
        position_ids[number, : len(row.shared)] = np.arange(len(row.shared))
    is_there = np.arange(longest) < np.array([len(row.shared) for row in rows])[:, None]
    causal = np.tri(longest, dtype=bool)
    parts = [(number, place, *part) for number, row in enumerate(rows) for place, part in enumerate(row.parts)]
    sizes = [len(ids) for _, _, ids, _ in parts]
    starts = [len(rows[number].shared) for number, *_ in parts]
    back = np.concatenate(
        [(number * most + place) * width + np.arange(len(ids)) for number, place, ids, _ in parts], dtype=np.int64
    )
    slots = np.zeros(len(rows) * most * width, np.int64)
    slots[back] = len(rows) * longest + np.arange(len(back))
    own = np.where(np.tri(width, dtype=bool), np.float32(0), np.float32(MASKED))
    mask = np.concatenate(
        [
            np.broadcast_to(_additive(is_there)[:, None, None, None], (len(rows), 1, most, width, longest)),
            np.broadcast_to(own, (len(rows), 1, most, width, width)),
        ],
        axis=-1,
    )
    ignored = np.full(len(rows) * longest, IGNORED)
    return {
        "input_ids": np.concatenate([input_ids.ravel(), *(ids for _, _, ids, _ in parts)]),
        "position_ids": np.concatenate(
            [position_ids.ravel(), *(start + np.arange(size) for start, size in zip(starts, sizes, strict=True))]
        ),
        "labels": np.concatenate([ignored, *(np.append(labels[1:], IGNORED) for *_, labels in parts)]),
        "shape": (len(rows), longest, most, width),
        "slots": slots,
        "back": back,
        "part": np.repeat([number * most + place for number, place, *_ in parts], sizes),
        "shared_mask": _additive(causal & is_there[:, None])[:, None],
        "mask": mask,
    }


@dataclass(frozen=True)
class Places:
    """What attention needs to know of a batch's layout."""

    shape: tuple[int, int, int, int]
    slots: Tensor
    back: Tensor
    shared_mask: Tensor
    mask: Tensor

    @staticmethod
    def of(batch: dict[str, Any], heads: int) -> Places:
        """Masks are made as large as the scores, once: adding what has to be broadcast takes many times longer."""
        shared_mask, mask = (paddle.to_tensor(batch[name]) for name in ("shared_mask", "mask"))
        return Places(
            batch["shape"],
            paddle.to_tensor(batch["slots"]),
            paddle.to_tensor(batch["back"]),
            shared_mask.tile([1, heads, 1, 1]),
            mask.tile([1, heads, 1, 1, 1]),
        )


def run_layer(
    layer: LlamaLayer, hidden_states: Tensor, rotation: tuple[Tensor, Tensor], places: Places
) -> tuple[Tensor, Tensor]:
    """`layer` on flat `hidden_states` [tokens, hidden_size], `rotation` [tokens, heads, head_dim]; as many heads of
    keys as of queries. Also gives the questions' attention, [rows, heads, K, T, P + T]."""
    attn = layer.self_attn
    normed = layer.input_layernorm(hidden_states)
    query, key, value = (
        projection(normed).reshape([normed.shape[0], -1, attn.head_dim])
        for projection in (attn.q_proj, attn.k_proj, attn.v_proj)
    )
    scale = attn.head_dim**-0.5
    output, weights = _attend(rotate(query, rotation) * scale, rotate(key, rotation), value, places)
    hidden_states = hidden_states + attn.o_proj(output)
    return hidden_states + layer.mlp(layer.post_attention_layernorm(hidden_states)), weights


def _attend(query: Tensor, key: Tensor, value: Tensor, places: Places) -> tuple[Tensor, Tensor]:
    """[tokens, heads, head_dim] each, to [tokens, heads * head_dim] and the questions' attention."""
    rows, longest, most, width = places.shape
    _, heads, head_dim = query.shape
    beginning = rows * longest
    first, rest = [beginning, query.shape[0] - beginning], [rows, most, width, heads, head_dim]

    def shared(x: Tensor) -> Tensor:
        return x.reshape([rows, longest, heads, head_dim]).transpose([0, 2, 1, 3])

    def asked(x: Tensor) -> Tensor:
        return paddle.gather(x, places.slots).reshape(rest).transpose([0, 3, 1, 2, 4])

    shared_query, shared_key, shared_value = (shared(x.split(first)[0]) for x in (query, key, value))
    scores = paddle.matmul(shared_query, shared_key, transpose_y=True) + places.shared_mask
    shared_output = paddle.matmul(F.softmax(scores), shared_value).transpose([0, 2, 1, 3])

    own_query, own_key, own_value = (asked(x) for x in (query, key, value))
    flat = [rows, heads, most * width, -1]
    on_shared = paddle.matmul(own_query.reshape(flat), shared_key, transpose_y=True)
    on_own = paddle.matmul(own_query, own_key, transpose_y=True)
    scores = paddle.concat([on_shared.reshape([rows, heads, most, width, longest]), on_own], axis=-1)
    weights = F.softmax(scores + places.mask)
    to_shared, to_own = weights.split([longest, width], axis=-1)
    output = paddle.matmul(to_shared.reshape(flat), shared_value).reshape(own_query.shape)
    output = (output + paddle.matmul(to_own, own_value)).transpose([0, 2, 3, 1, 4])
    output = paddle.gather(output.reshape([rows * most * width, heads * head_dim]), places.back)
    return paddle.concat([shared_output.reshape([beginning, heads * head_dim]), output]), weights


def _additive(visible: np.ndarray) -> np.ndarray:
    return np.where(visible, np.float32(0), np.float32(MASKED))
