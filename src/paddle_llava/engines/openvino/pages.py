"""The memory of a graph's file, once its matrices are copied into the order that the processor multiplies in."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAPS = Path("/proc/self/maps")
PAGEOUT = 21  # MADV_PAGEOUT of Linux 5.4
SECONDS = 0.1


@contextmanager
def released(path: Path) -> Iterator[None]:
    """While the block runs, and at its end, give the mapped pages of the file at `path` back to the system.

    The CPU plug-in maps the file, and makes a packed copy of each matrix when it first runs; without this, original and
    copy count as the process's memory together. A page that is wanted after all is read again from the file. Nothing is
    lost where the plug-in has meanwhile let go of the file and something else lies at its address: such a page is only
    swapped out, if at all. Elsewhere than on Linux nothing is done.
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
            madvise(start, end - start, PAGEOUT)
