"""Casts between the three floating-point types that weights come in; bfloat16 is kept as `uint16` bits."""

from __future__ import annotations

import numpy as np

from paddle_llava.errors import LlavaError

FLOATS: dict[str, np.dtype] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}
_CHUNK = 1 << 16


def to_dtype(array: np.ndarray, source_dtype: str, target_dtype: str, where: str = "a tensor") -> np.ndarray:
    """`array` of `source_dtype` as `target_dtype` (names of `FLOATS`), rounded to nearest, ties to even.

    An array that is of `target_dtype` already is returned as it is. Raises `LlavaError` naming `where` when a
    finite value is beyond float16's range, where a cast would leave infinities in the model.
    """
    for name in (source_dtype, target_dtype):
        if name not in FLOATS:
            raise LlavaError(f"{where}: dtype {name!r} is not supported; use one of {', '.join(FLOATS)}")
    if source_dtype == target_dtype:
        return array
    result = np.empty(array.shape, FLOATS[target_dtype])
    source, target = np.ascontiguousarray(array).reshape(-1), result.reshape(-1)
    for start in range(0, source.size, _CHUNK):  # bounds the temporaries, and stays in the cache
        piece = slice(start, start + _CHUNK)
        values = _bfloat16_to_float32(source[piece]) if source_dtype == "bfloat16" else source[piece]
        target[piece] = _from_float(values, target_dtype, where)
    return result


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


def _bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _float32_to_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    half = ((bits >> 16) & 1) + np.uint32(0x7FFF)
    # Rounding may carry a NaN's payload into its exponent or sign: a NaN is cut instead, and kept quiet.
    return np.where(np.isnan(values), bits >> 16 | 0x40, (bits + half) >> 16).astype(np.uint16)
