"""How fast the memory is read: what bounds the decoding of a model that fits no cache."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

BYTES = 2**30


class Reader:
    """A process of its own, which gives its memory back."""

    def bandwidth(self, threads: int, rounds: int = 7) -> float:
        """The best of `rounds`, in bytes a second: each thread looks for the greatest number of its part."""
        parts = np.array_split(np.ones(BYTES // 8, np.int64), threads)
        seconds = []
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(rounds):
                start = time.perf_counter()
                list(pool.map(np.max, parts))
                seconds.append(time.perf_counter() - start)
        return BYTES / min(seconds)
