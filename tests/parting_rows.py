"""Two beginnings of which three rows go on, as every engine must be able to run them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from paddle_llava.generation.generate import Engine
from paddle_llava.processing.processor import pad_left

BEGINNINGS = [[5, 6, 7], [8, 9, 10, 11, 12]]
ROWS, ENDS, OTHER_ENDS = [1, 0, 1], [[13], [14, 15, 16], [17, 18]], [[19, 20], [21, 22], [23, 24]]


def check_parting_rows(engine: Engine, alone: Callable[[list[int]], np.ndarray]) -> None:
    """`alone` gives what follows the last of some ids, float32 [vocab_size]."""

    def check(found: np.ndarray, ends: list[list[int]]) -> None:
        for row, beginning, end in zip(found, ROWS, ends, strict=True):
            assert np.abs(row - alone(BEGINNINGS[beginning] + end)).max() < 1e-4

    engine.prefill(pad_left(BEGINNINGS, 0))
    engine.take_rows(ROWS)
    check(engine.prefill(pad_left(ENDS, 0)), ENDS)
    check(engine.decode(np.array([25, 26, 27])), [[*end, 25 + row] for row, end in enumerate(ENDS)])
    engine.rewind(5)
    check(engine.prefill(pad_left(OTHER_ENDS, 0)), OTHER_ENDS)
