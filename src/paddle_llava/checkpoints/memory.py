"""Memory for tensors that are read and cast."""

from __future__ import annotations

import math
import mmap

import numpy as np

_LARGE = 1 << 22  # bytes from which numpy asks Linux for huge pages


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """`np.empty` without huge pages.

    Where memory is fragmented Linux moves other pages to get them together: a gigabyte took 4.2 s to fill, and 0.4 s in
    small pages.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < _LARGE:
        return np.empty(shape, dtype)
    return np.frombuffer(mmap.mmap(-1, size), dtype).reshape(shape)
