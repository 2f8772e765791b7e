"""What the C library does with memory that tensors no longer need."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Keep it for the next step of a training or the next batch of questions, where that can be asked for (glibc).

    Left alone, glibc hands large blocks back to the system, which fills every page with zeros when as many are asked
    for again: a third of the time that attention takes to learn on a CPU, a tenth of a small model's batches.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)
