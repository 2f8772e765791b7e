"""Where the tongue is to look while it learns: the cells of what a question is about, and of what is named next.

A decoder finds by itself which cells a question means, but only after long training at the level of chance. Told where
some of its heads should look (as Mi et al. 2016, arXiv:1608.00112, told translation models), it learns that first, and
what to make of the cells after it. Nothing of this stays in the model: guidance ends with the tongue's pretraining.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import Tensor

FIRST, SECOND, COUNTED = 0, 1, 2  # heads
GUIDED_LAYERS = (1, 2)
SINK = 4.0  # objects that the row's first token stands for, so that attention to n objects tells n


class Focus(NamedTuple):
    """At which of a question's tokens which head should look where: float32 [row's beginning], adding up to 1."""

    token: int
    head: int
    weights: np.ndarray


def focuses_of_question(
    sort: str, objects: Sequence[int], owner: np.ndarray, anchor: np.ndarray, first_cell: int, tokens: np.ndarray
) -> Iterator[Focus]:
    """For a question of `sort` about `objects`; `owner` and `anchor` of the cells, the first of which is the row's
    `first_cell`; `tokens` are those that predict the answer's, what closes it left out."""
    if sort in ("count", "exists"):
        beginning = np.zeros(first_cell, np.float32)
        beginning[0] = SINK
        counted = np.isin(owner - 1, objects) & (anchor > 0)
        shares = np.concatenate([beginning, counted.astype(np.float32)])
        yield Focus(int(tokens[0]), COUNTED, shares / shares.sum())
        return
    for head, number in zip((FIRST, SECOND), objects, strict=False):
        weights = _uniform(owner == number + 1, first_cell)
        if weights is not None:
            yield from (Focus(int(token), head, weights) for token in tokens)


def focuses_of_text(
    mentions: Sequence[tuple[str, Sequence[int]]],
    text: str,
    token_starts: Sequence[int],
    owner: np.ndarray,
    first_cell: int,
    tokens: np.ndarray,
) -> Iterator[Focus]:
    """For a text that names things one after another; `token_starts` is where each of `tokens`' targets begins."""
    lowered, end, ends = text.lower(), 0, []
    for name, _ in mentions:
        end = lowered.index(name.lower(), end) + len(name)
        ends.append(end)
    for token, start in zip(tokens, token_starts, strict=True):
        number = int(np.searchsorted(ends, start, side="right"))
        if number < len(mentions):
            weights = _uniform(np.isin(owner - 1, mentions[number][1]), first_cell)
            if weights is not None:
                yield Focus(int(token), FIRST, weights)


def lay_out_focuses(focuses: Sequence[tuple[int, int, Focus]], shape: tuple[int, int, int, int]) -> dict[str, Any]:
    """Of (row, question, focus), with the `shape` that `shared_picture.lay_out` gives:

    `focus_places` int64 [n, 4], row, head, question and token; `focus` float32 [n, P + T].
    """
    _, longest, _, width = shape
    weights = np.zeros((len(focuses), longest + width), np.float32)
    places = np.zeros((len(focuses), 4), np.int64)
    for number, (row, question, focus) in enumerate(focuses):
        weights[number, : len(focus.weights)] = focus.weights
        places[number] = row, focus.head, question, focus.token
    return {"focus_places": places, "focus": weights}


def guidance_loss(attention: Tensor, batch: dict[str, Any]) -> Tensor:
    """Cross entropy of the heads' attention [rows, heads, K, T, P + T] and where they should look, the mean."""
    _, heads, most, width, keys = attention.shape
    row, head, question, token = batch["focus_places"].T
    rows = ((row * heads + head) * most + question) * width + token
    looked = paddle.gather(attention.reshape([-1, keys]), paddle.to_tensor(rows))
    return -(paddle.to_tensor(batch["focus"]) * paddle.log(looked + 1e-6)).sum() / max(len(rows), 1)


def _uniform(cells: np.ndarray, first_cell: int) -> np.ndarray | None:
    if not cells.any():
        return None
    return np.concatenate([np.zeros(first_cell, np.float32), cells.astype(np.float32) / cells.sum()])
