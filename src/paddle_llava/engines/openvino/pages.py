"""The memory of a graph's file, once its matrices are copied into the order that the processor multiplies in."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAPS = Path("/proc/self/maps")
DONTNEED = 4  # MADV_DONTNEED: not mapped any more; unlike PAGEOUT it leaves them in the system's cache of the disk
SECONDS = 0.1


@contextmanager
def released(path: Path) -> Iterator[None]:
    """While the block runs, and at its end, give the mapped pages of the file at `path` back to the system.

    The CPU plug-in maps the file, and makes a packed copy of each matrix when it first runs; without this, original and
    copy count as the process's memory together. A page that is wanted after all is mapped again. The caller holds the
    graph that was read from the file while the block runs: else the file might be let go of, and the address be that of
    something else by the time its pages are dropped. Elsewhere than on Linux nothing is done.
    """
    done = threading.Event()

    def release_until_done() -> None:
        while not done.wait(SECONDS):
            _release(path)

    thread = threading.Thread(target=release_until_done, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _release(path)


def _release(path: Path) -> None:
    try:
        lines = MAPS.read_text().splitlines()
        madvise = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, AttributeError):
        return
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    place = str(path.resolve())
    for line in lines:
        addresses, rights, _, _, _, *name = line.split(maxsplit=5)
        if name == [place] and "w" not in rights:
            start, end = (int(address, 16) for address in addresses.split("-"))
            madvise(start, end - start, DONTNEED)
