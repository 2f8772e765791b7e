"""Where the tongue is to look while it learns: the cells of what a question is about, and of what is named next.

A decoder finds by itself which cells a question means, but only after long training at the level of chance. Told where
some of its heads should look (as Mi et al. 2016, arXiv:1608.00112, told translation models), it learns that first, and
what to make of the cells after it. Guided heads are like any others afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import Tensor

from paddle_llava.demo.dialogues import Turn

LOOKED_UP, COUNTED = 0, 2  # heads
GUIDED_LAYERS = (1, 2)
SINK = 4.0  # objects that the row's first token stands for, so that attention to n objects tells n


class Focus(NamedTuple):
    """At which of a question's tokens which head should look where: float32 [row's beginning], adding up to 1."""

    token: int
    head: int
    weights: np.ndarray


def focuses_of_question(
    turn: Turn, pieces: Sequence[str], owner: np.ndarray, anchor: np.ndarray, first_cell: int, answer: np.ndarray
) -> Iterator[Focus]:
    """Where the question names something, and where it is answered.

    `pieces` are the texts of its tokens, of which `answer` predict the answer, what closes it left out; `owner` and
    `anchor` are of the cells, the first of which is the row's `first_cell`.
    """
    if turn.sort in ("count", "exists"):
        beginning = np.zeros(first_cell, np.float32)
        beginning[0] = SINK
        counted = np.isin(owner - 1, turn.objects) & (anchor > 0)
        shares = np.concatenate([beginning, counted.astype(np.float32)])
        for token in (*_last_tokens(turn.names, pieces), answer[0]):
            yield Focus(int(token), COUNTED, shares / shares.sum())
        return
    looked_up = [_uniform(owner == number + 1, first_cell) for number in turn.objects]
    for token, weights in zip(_last_tokens(turn.names, pieces), looked_up, strict=False):
        if weights is not None:
            yield Focus(token, LOOKED_UP, weights)
    if looked_up and looked_up[0] is not None:
        yield from (Focus(int(token), LOOKED_UP, looked_up[0]) for token in answer)


def focuses_of_text(
    mentions: Sequence[tuple[str, Sequence[int]]],
    pieces: Sequence[str],
    owner: np.ndarray,
    first_cell: int,
    tokens: np.ndarray,
) -> Iterator[Focus]:
    """For a text that names things one after another: each token before the end of a name is about what it names.

    `tokens` predict the text's, which are the `pieces` after them.
    """
    for token, number in mentioned(mentions, pieces, tokens):
        weights = _uniform(np.isin(owner - 1, mentions[number][1]), first_cell)
        if weights is not None:
            yield Focus(token, LOOKED_UP, weights)


def mentioned(
    mentions: Sequence[tuple[str, Sequence[int]]], pieces: Sequence[str], tokens: np.ndarray
) -> Iterator[tuple[int, int]]:
    """Those of `tokens` that predict a piece before the end of a name, each with that name's number in `mentions`."""
    ends = _last_tokens([name for name, _ in mentions], pieces)
    for token in tokens:
        number = int(np.searchsorted(ends, token + 1))
        if number < len(ends):
            yield int(token), number


def _last_tokens(names: Sequence[str], pieces: Sequence[str]) -> list[int]:
    """The last token of each of `names`; they need not stand in this order, but like ones do."""
    text, ends = "".join(pieces).lower(), np.cumsum([len(piece) for piece in pieces])
    found: list[int] = []
    after: dict[str, int] = {}
    for name in names:
        start = text.index(name.lower(), after.get(name, 0))
        after[name] = start + len(name)
        found.append(int(np.searchsorted(ends, start + len(name))))
    return found


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
