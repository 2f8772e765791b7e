"""Weight files as bytes: read at an offset, or replaced as a whole."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from paddle_llava.checkpoints.memory import empty
from paddle_llava.errors import LlavaError

MAX_DIMENSIONS = 8


class RawFile:
    """A file read piece by piece.

    There is no memory map: mapped pages count as resident memory for as long as the file is open. Every
    read is checked against the file's size before a byte is allocated; raises `LlavaError` naming the file.
    Several threads may read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()  # from seeking to having read
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise LlavaError(f"{path}: cannot be read ({error.strerror})") from error
        self.size = os.fstat(self._file.fileno()).st_size
        if self.size and self.read(0, min(24, self.size)).startswith(b"version https://git-lfs"):
            self.close()
            raise LlavaError(f"{path}: a Git LFS pointer, not the weights; fetch them with: git lfs pull")

    def read(self, offset: int, length: int) -> bytes:
        self._check(offset, length)
        with self._lock:
            self._file.seek(offset)
            data = self._file.read(length)
        self._all_of(length, len(data))
        return data

    def read_array(self, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A new C-contiguous array of the bytes at `offset`."""
        length = dtype.itemsize
        for side in shape:
            length *= side
        self._check(offset, length)
        array = empty(shape, dtype)
        if length:
            with self._lock:
                self._file.seek(offset)
                got = self._file.readinto(array.reshape(-1).view(np.uint8).data)
            self._all_of(length, got)
        return array

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise self.damaged(f"{length} bytes at {offset} lie beyond its end at {self.size}")

    def _all_of(self, wanted: int, got: int) -> None:
        if got != wanted:
            raise self.damaged(f"it has shrunk while it was read ({got} of {wanted} bytes)")

    def damaged(self, what: str) -> LlavaError:
        return LlavaError(f"{self.path}: truncated or damaged: {what}; fetch the file again")

    def close(self) -> None:
        self._file.close()


def is_shape(value: Any) -> bool:
    """Whether a file's word for a shape can be believed: a few integers of a sane size."""
    return (
        isinstance(value, (list, tuple))
        and len(value) <= MAX_DIMENSIONS
        and all(type(side) is int and 0 <= side < 2**63 for side in value)
    )


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the name `path` only when it is complete and on the disk."""
    beside = path.with_name(path.name + ".tmp")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
