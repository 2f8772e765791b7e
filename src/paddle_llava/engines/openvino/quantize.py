"""A matrix of weights in 8 or 4 bits: whole numbers, and a scale for each row or each group of a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROWS_AT_A_TIME = 256
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)


@dataclass(frozen=True)
class Quantized:
    """`(values - zero_point) * scale` is about the weight, [out, in].

    `values` is int8 [out, in], or uint8 of 0 to 15 for 4 bits, not packed. `scale` is float16 [out, groups] and
    `zero_point` uint8 [out, groups], None for 0; a group is `in / groups` neighbours of a row.
    """

    values: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None
    bits: int


def quantize(weight: np.ndarray, bits: int, group_size: int | None) -> Quantized:
    """`weight` float32 [out, in] in 8 bits (symmetric) or 4 bits (asymmetric); `group_size` None is a whole row.

    `in` is a multiple of `group_size`. The scale of 4 bits is the one of a few with the least squared error.
    """
    rows, columns = weight.shape
    groups = columns // (group_size or columns)
    one = _eight_bits if bits == 8 else _four_bits
    parts = []
    for start in range(0, rows, ROWS_AT_A_TIME):
        parts.append(one(weight[start : start + ROWS_AT_A_TIME].reshape(-1, groups, columns // groups)))
    values, scales, zero_points = zip(*parts, strict=True)
    return Quantized(
        np.concatenate(values).reshape(rows, columns),
        np.concatenate(scales),
        None if bits == 8 else np.concatenate(zero_points),
        bits,
    )


def _half(scale: np.ndarray) -> np.ndarray:
    """As it is stored, and never 0: what is rounded is divided by this."""
    return np.maximum(scale, np.finfo(np.float16).tiny).astype(np.float16)


def _eight_bits(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, None]:
    scale = _half(np.abs(weight).max(axis=-1) / 127)
    values = np.rint(weight / scale[..., None].astype(np.float32)).clip(-127, 127)
    return values.astype(np.int8), scale, None


def _four_bits(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    low, high = np.minimum(weight.min(axis=-1), 0), np.maximum(weight.max(axis=-1), 0)
    best = np.full(low.shape, np.inf, np.float32)
    values = np.zeros(weight.shape, np.uint8)
    scale, zero_point = np.ones(low.shape, np.float16), np.zeros(low.shape, np.uint8)
    for shrink in SHRINKS:
        tried = _half((high - low) * (shrink / 15))
        wide = tried[..., None].astype(np.float32)
        zero = np.rint(-low * shrink / wide[..., 0]).clip(0, 15)
        rounded = np.rint(weight / wide + zero[..., None]).clip(0, 15)
        error = np.square((rounded - zero[..., None]) * wide - weight).sum(axis=-1)
        better = error < best
        best = np.where(better, error, best)
        scale, zero_point = np.where(better, tried, scale), np.where(better, zero.astype(np.uint8), zero_point)
        values = np.where(better[..., None], rounded.astype(np.uint8), values)
    return values, scale, zero_point
