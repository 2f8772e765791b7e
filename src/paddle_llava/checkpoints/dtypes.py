"""Casts between the three floating-point types that weights come in; bfloat16 is kept as `uint16` bits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from paddle_llava.checkpoints.memory import empty
from paddle_llava.errors import LlavaError

FLOATS: dict[str, np.dtype] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}
# Arrays are worked on in pieces that stay in the cache, which also bounds the temporaries.
_CHUNK = 1 << 16
_STRIP, _LENGTH = 16, 4096  # of a matrix that is turned: more columns at a time and its rows drive each other out
_HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def to_dtype(array: np.ndarray, source_dtype: str, target_dtype: str, where: str = "a tensor") -> np.ndarray:
    """`array` of `source_dtype` as `target_dtype` (names of `FLOATS`), rounded to nearest, ties to even.

    The result is C-contiguous: the view of a transposed matrix is cast and turned in one pass. An array that is all
    that already is returned as it is. Raises `LlavaError` naming `where` when a finite value is beyond float16's
    range, where a cast would leave infinities in the model.
    """
    for name in (source_dtype, target_dtype):
        if name not in FLOATS:
            raise LlavaError(f"{where}: dtype {name!r} is not supported; use one of {', '.join(FLOATS)}")
    if source_dtype == target_dtype and array.flags.c_contiguous:
        return array
    result = empty(array.shape, FLOATS[target_dtype])
    for values, place in _pieces(array, result):
        place[...] = _cast(values, source_dtype, target_dtype, where)
    return result


def _pieces(source: np.ndarray, target: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Views of both that go together, in the order in which `source` lies in memory."""
    if source.ndim == 2 and source.flags.fnc:  # and not C-contiguous as well
        for column in range(0, source.shape[1], _STRIP):
            for row in range(0, source.shape[0], _LENGTH):
                piece = (slice(row, row + _LENGTH), slice(column, column + _STRIP))
                yield source[piece].T, target[piece].T
    else:
        flat, flat_target = np.ascontiguousarray(source).reshape(-1), target.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            yield flat[start : start + _CHUNK], flat_target[start : start + _CHUNK]


def _cast(values: np.ndarray, source_dtype: str, target_dtype: str, where: str) -> np.ndarray:
    if source_dtype == target_dtype:
        return values
    if source_dtype == "float16" and target_dtype == "float32":
        return _float16_to_float32(values)
    return _from_float(_bfloat16_to_float32(values) if source_dtype == "bfloat16" else values, target_dtype, where)


def _from_float(values: np.ndarray, target_dtype: str, where: str) -> np.ndarray:
    if target_dtype == "bfloat16":
        return _float32_to_bfloat16(values.astype(np.float32, copy=False))
    if target_dtype == "float32":
        return values.astype(np.float32, copy=False)
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if np.any(np.isinf(halves) & np.isfinite(values)):
        raise LlavaError(f"{where}: values beyond 65504 do not fit float16; use bfloat16 or float32")
    return halves


def _float16_to_float32(halves: np.ndarray) -> np.ndarray:
    """Looked up in a table of all halves, which takes half the time of numpy's cast."""
    return np.take(_HALVES, halves.view(np.uint16), mode="clip")


def _bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _float32_to_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    half = ((bits >> 16) & 1) + np.uint32(0x7FFF)
    # Rounding may carry a NaN's payload into its exponent or sign: a NaN is cut instead, and kept quiet.
    return np.where(np.isnan(values), bits >> 16 | 0x40, (bits + half) >> 16).astype(np.uint16)
