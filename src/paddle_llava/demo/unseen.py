"""Pairs of kind and colour that training never shows, which are not to be learnt as impossible.

Where no bus is purple, a purple thing is no bus: right in training, and wrong of the first purple bus. So wherever a
purple thing's kind is to be told, "bus" is no answer to choose from, and nothing is learnt against it; nor against
"purple" where a bus's colour is. That is the adjustment of logits by log priors of Menon et al. 2021 (arXiv:2007.07314)
for the priors that are zero.
"""

from __future__ import annotations

import numpy as np
import paddle
from paddle import Tensor
from tokenizers import Tokenizer

from paddle_llava.demo.cells import COLOUR_NAMES, KIND_NAMES
from paddle_llava.demo.concepts import CONCEPTS
from paddle_llava.demo.kinds import colours_of

NO_CHOICE = -1e4  # added to a logit


def _is_unseen() -> np.ndarray:
    unseen = np.zeros((1 + len(KIND_NAMES), 1 + len(COLOUR_NAMES)), bool)
    for row, kind in enumerate(KIND_NAMES, 1):
        seen = colours_of(kind, "train")
        unseen[row, 1:] = [colour not in seen for colour in COLOUR_NAMES]
    return unseen


# [1 + kinds, 1 + colours], counted as `Cells` counts them; the background and what has no name go with everything.
UNSEEN = _is_unseen()


def without_unseen(kind_logits: Tensor, colour_logits: Tensor, kind: Tensor, colour: Tensor) -> tuple[Tensor, Tensor]:
    """Both [..., choices], of cells whose true ones are `kind` and `colour` [...], without what these never go with."""
    table = paddle.to_tensor(UNSEEN.astype(np.float32) * NO_CHOICE)
    shape = list(kind.shape)
    of_kind = paddle.gather(table, kind.flatten()).reshape([*shape, -1])
    of_colour = paddle.gather(table.t(), colour.flatten()).reshape([*shape, -1])
    return kind_logits + of_colour, colour_logits + of_kind


class UnseenWords:
    """The same for words. Row 0 of `table` [1 + kinds + colours, vocab_size] leaves every word to choose from; the next
    ones leave out the colours that a kind never has, the last ones the kinds that never have a colour."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._kinds = [_first_tokens(words, tokenizer) for words in CONCEPTS["kind"]]
        self._colours = [_first_tokens(words, tokenizer) for words in CONCEPTS["colour"]]
        self.table = np.zeros((1 + len(KIND_NAMES) + len(COLOUR_NAMES), tokenizer.get_vocab_size()), np.float32)
        for kind, colour in np.argwhere(UNSEEN):
            self.table[kind, self._colours[colour - 1]] = NO_CHOICE
            self.table[len(KIND_NAMES) + colour, self._kinds[kind - 1]] = NO_CHOICE

    def row(self, token: int, pair: tuple[str, str]) -> int:
        """The row for a place where `token` is to be told of a thing of the kind and colour `pair`."""
        kind, colour = KIND_NAMES.index(pair[0]), COLOUR_NAMES.index(pair[1])
        if token in self._colours[colour]:
            return 1 + kind
        if token in self._kinds[kind]:
            return 1 + len(KIND_NAMES) + colour
        return 0


def _first_tokens(words: tuple[str, ...], tokenizer: Tokenizer) -> list[int]:
    """What words begin with, behind a space and bare: of `traffic light`, the tokens of `traffic`."""
    forms = {form for word in words for form in (word.split()[0], f"▁{word.split()[0]}")}
    return [number for form in sorted(forms) if (number := tokenizer.token_to_id(form)) is not None]
