"""The safetensors container: eight bytes of length, a JSON header, then the tensors' bytes one after another.

The `safetensors` library writes a shard from a dict that holds all of it, and reads through a memory map;
this module does both one tensor at a time: converting needs the memory of a tensor, not of a shard.

Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llava.checkpoints.dtypes import FLOATS
from paddle_llava.checkpoints.files import RawFile, is_shape, replacing

MAX_HEADER_BYTES = 100_000_000
_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_NAMES = {code: name for name, code in _CODES.items()}
_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1, "U8": 1, "I8": 1,
    "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8,
}  # fmt: skip


class SafetensorsFile:
    """A file of named tensors, its header read and checked; raises `LlavaError` when it is damaged."""

    def __init__(self, path: Path) -> None:
        self._file = RawFile(path)
        try:
            self._start, header = _read_header(self._file)
            self._tensors = _checked(self._file, self._start, header)
        except BaseException:
            self._file.close()
            raise

    def names(self) -> list[str]:
        """In the order of their bytes."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][1]

    def dtype(self, name: str) -> str:
        """float32, float16, bfloat16, or the format's own code of another type."""
        return self._tensors[name][0]

    def read(self, name: str) -> np.ndarray:
        """A new array (`uint16` for bfloat16) of a floating-point tensor."""
        dtype, shape, begin = self._tensors[name]
        return self._file.read_array(self._start + begin, shape, FLOATS[dtype])

    def close(self) -> None:
        self._file.close()


def _read_header(file: RawFile) -> tuple[int, dict[str, Any]]:
    (length,) = struct.unpack("<Q", file.read(0, 8))
    if length > MAX_HEADER_BYTES:
        raise file.damaged(f"a header of {length} bytes (not a safetensors file?)")
    try:
        header = json.loads(file.read(8, length))
    except (ValueError, RecursionError) as error:
        raise file.damaged("its header is not JSON") from error
    if not isinstance(header, dict):
        raise file.damaged("its header is not a JSON object")
    header.pop("__metadata__", None)
    return 8 + length, header


def _checked(file: RawFile, start: int, header: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """name -> (dtype, shape, offset), in the order of the bytes, which the tensors are known to tile."""
    spans = []
    for name, entry in header.items():
        try:
            code, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            size = _BYTES[code]
        except (TypeError, KeyError, ValueError) as error:
            raise file.damaged(f"the header's entry {name[:200]!r} is malformed") from error
        if not is_shape(shape) or not is_shape((begin, end)):
            raise file.damaged(f"{name[:200]!r} has an impossible shape or offset")
        if end - begin != math.prod(shape) * size:
            raise file.damaged(f"{name[:200]!r} has {end - begin} bytes for shape {list(shape)} of {code}")
        spans.append((begin, end, name, _NAMES.get(code, code), shape))
    spans.sort()
    position = 0
    for begin, end, name, _, _ in spans:
        if begin != position:
            raise file.damaged(f"{name[:200]!r} begins at {begin}, where {position} is expected")
        position = end
    if start + position != file.size:
        raise file.damaged(f"{file.size} bytes where its header announces {start + position}")
    return {name: (dtype, shape, begin) for begin, _, name, dtype, shape in spans}


def write_safetensors(
    path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], read: Callable[[str], np.ndarray]
) -> None:
    """Write `tensors` (name -> (dtype, shape)), asking `read` for one array after another."""
    # Wider types first: every tensor is then aligned, which torch needs to view the bytes in place.
    names = sorted(tensors, key=lambda name: -FLOATS[tensors[name][0]].itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in names:
        dtype, shape = tensors[name]
        end = position + math.prod(shape) * FLOATS[dtype].itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            file.write(as_stored(read(name), name, *tensors[name]).reshape(-1).view(np.uint8).data)


def as_stored(array: np.ndarray, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """`array`, contiguous, once it is known to be what was announced."""
    if array.shape != shape or array.dtype != FLOATS[dtype]:
        raise ValueError(f"{name}: {array.dtype} {array.shape} where {dtype} {shape} was announced")
    return np.ascontiguousarray(array).reshape(shape)  # which makes a scalar a vector
