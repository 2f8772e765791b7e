"""A matrix of weights in 8 or 4 bits: whole numbers, and a scale for each row or each group of a row.

Rounding to the greatest magnitude spends the few steps of 4 bits on rare weights. Here the scale and the zero point of
every group are searched for the least squared error: some ways of clipping its range are tried, and to the codes that
each gives the scale is fitted that suits them best, which is a least squares problem in one unknown.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

import numpy as np

from paddle_llava.environment import physical_cores
from paddle_llava.errors import LlavaError

# Weights handled at a time: what is made of them stays in the processor's cache.
BLOCK = 1 << 16
# How much of a group's range is kept; 4 bits clip either end on its own.
CLIPS = {4: (1.0, 0.88, 0.75, 0.6), 8: (1.0, 0.98, 0.93, 0.8, 0.6, 0.4)}
CODES = {4: (0, 15), 8: (-127, 127)}
# Of the mean importance: no channel counts for nothing only because calibration has not stirred it.
LEAST_IMPORTANCE = 0.01


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

    def dequantized(self) -> np.ndarray:
        """float32 [out, in]: the weights that the graph computes with."""
        rows, groups = self.scale.shape
        values = self.values.reshape(rows, groups, -1).astype(np.float32)
        if self.zero_point is not None:
            values -= self.zero_point[..., None]
        values *= self.scale[..., None].astype(np.float32)
        return values.reshape(self.values.shape)


def quantize(weight: np.ndarray, bits: int, group_size: int | None, importance: np.ndarray | None = None) -> Quantized:
    """`weight` float32 [out, in] in 8 bits (symmetric) or 4 bits (asymmetric); `group_size` None is a whole row.

    `in` is a multiple of `group_size`. `importance` float32 [in] weighs the squared errors: with the mean squared input
    of each channel, what is least is the error of the layer's output, inputs taken as uncorrelated. Raises `LlavaError`
    for weights that are not finite, or too large for a float16 scale.
    """
    rows, columns = weight.shape
    groups = columns // (group_size or columns)
    grouped = (-1, groups, columns // groups)
    if importance is not None:
        importance = importance / max(importance.mean(), np.finfo(np.float32).tiny) + np.float32(LEAST_IMPORTANCE)
        importance = importance.reshape(grouped)
    values = np.empty((rows, columns), np.uint8 if bits == 4 else np.int8)
    scale, zero_point = np.empty((rows, groups), np.float16), np.empty((rows, groups), np.uint8)
    at_a_time = max(1, BLOCK // columns)

    def fill(start: int) -> None:
        block = slice(start, start + at_a_time)
        search = _Search(weight[block].reshape(grouped), importance, bits)
        values[block], scale[block], zero_point[block] = search.result()

    with ThreadPoolExecutor(physical_cores()) as pool:  # numpy's loops leave the other threads running
        for _ in pool.map(fill, range(0, rows, at_a_time)):
            pass
    return Quantized(values, scale, zero_point if bits == 4 else None, bits)


class _Search:
    """For `weight` [rows, groups, size]: `scale` and `zero`, each float32 [rows, groups, 1], the best offered so far,
    with their `error`."""

    def __init__(self, weight: np.ndarray, importance: np.ndarray | None, bits: int) -> None:
        self.weight, self.importance = weight, importance
        self.least, self.greatest = (np.float32(code) for code in CODES[bits])
        self.codes, self.weighted = np.empty_like(weight), np.empty_like(weight)
        low, high = weight.min(axis=-1, keepdims=True), weight.max(axis=-1, keepdims=True)
        self.error = np.full(low.shape, np.inf, np.float32)
        self.scale, self.zero = np.ones_like(low), np.zeros_like(low)
        _check(low, high, self.greatest - self.least)
        if bits == 8:
            self._symmetric(np.maximum(-low, high))
        else:
            self._asymmetric(np.minimum(low, 0), np.maximum(high, 0))

    def _symmetric(self, magnitude: np.ndarray) -> None:
        for kept in CLIPS[8]:
            self._offer(_half(kept * magnitude / self.greatest), self.zero)
        self._offer(self.scale, self.zero)

    def _asymmetric(self, low: np.ndarray, high: np.ndarray) -> None:
        for below, above in product(CLIPS[4], repeat=2):
            scale = _half((above * high - below * low) / self.greatest)
            self._offer(scale, np.rint(-below * low / scale))
        for step in (0, -1, 1):
            self._offer(self.scale, self.zero + step)

    def _offer(self, scale: np.ndarray, zero: np.ndarray) -> None:
        """Keep, where it is better, `zero` with the scale that is best for the codes that `scale` leads to."""
        zero = zero.clip(0, self.greatest)
        codes = self._rounded(scale, zero)
        codes -= zero
        with_codes, squares = self._dot(self.weight, codes), self._dot(codes, codes)
        fitted = np.divide(with_codes, squares, out=scale.copy(), where=(with_codes > 0) & (squares > 0))
        fitted = _half(fitted)
        codes *= fitted
        codes -= self.weight
        error = self._dot(codes, codes)
        better = error < self.error
        for kept, offered in ((self.error, error), (self.scale, fitted), (self.zero, zero)):
            np.copyto(kept, offered, where=better)

    def _rounded(self, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        codes = np.multiply(self.weight, 1 / scale, out=self.codes)
        codes += zero
        return np.rint(codes, out=codes).clip(self.least, self.greatest, out=codes)

    def _dot(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Of each group, weighted: [rows, groups, 1]."""
        if self.importance is not None:
            b = np.multiply(b, self.importance, out=self.weighted)
        return np.einsum("rgi,rgi->rg", a, b)[..., None]

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The codes [rows, in], and scale and zero point [rows, groups] that led to them."""
        codes = self._rounded(self.scale, self.zero)
        return codes.reshape(len(codes), -1), self.scale[..., 0], self.zero[..., 0]


def _half(scale: np.ndarray) -> np.ndarray:
    """As it is stored, and never 0: what is rounded is divided by this."""
    return np.maximum(scale, np.finfo(np.float16).smallest_subnormal).astype(np.float16).astype(np.float32)


def _check(low: np.ndarray, high: np.ndarray, steps: np.float32) -> None:
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise LlavaError("holds weights that are not finite (NaN or infinite), which no scale can express")
    if (high - low).max() / steps > np.finfo(np.float16).max:
        raise LlavaError(f"holds weights up to {max(high.max(), -low.min()):g}, too large for a float16 scale")
