"""A matrix of weights in 8 or 4 bits: whole numbers, and a scale for each row or each group of a row.

Rounding to the greatest magnitude spends the few steps of 4 bits on rare weights. Here the scale of every group is
searched for the least squared error: some ways of clipping its range are tried, and to the codes that each gives the
scale is fitted that suits them best, which is a least squares problem in one unknown. There are no zero points, with
which OpenVINO takes longer to unpack 4 bits; smaller groups serve better. 4 bits have one code more below 0, so
their scales may be negative, which gives that code to the end of a group that needs it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from paddle_llava.environment import physical_cores
from paddle_llava.errors import LlavaError

# Weights handled at a time: what is made of them stays in the processor's cache.
BLOCK = 1 << 16
# Scales that are tried, as parts of the one with which the greatest weight just fits. Finer steps gain less than 0.5%.
PARTS = {4: (1.08, 1.0, 0.92, 0.84, 0.76, 0.66), 8: (1.0, 0.98, 0.93, 0.8, 0.6, 0.4)}
CODES = {4: (-8, 7), 8: (-127, 127)}
# Of the mean importance: no channel counts for nothing only because calibration has not stirred it.
LEAST_IMPORTANCE = 0.01


@dataclass(frozen=True)
class Quantized:
    """`values * scale` is about the weight, [out, in].

    `values` is int8 [out, in], of -8 to 7 for 4 bits, not packed. `scale` is float16 [out, groups]; a group is
    `in / groups` neighbours of a row.
    """

    values: np.ndarray
    scale: np.ndarray
    bits: int

    def dequantized(self) -> np.ndarray:
        """float32 [out, in]: the weights that the graph computes with."""
        rows, groups = self.scale.shape
        values = self.values.reshape(rows, groups, -1).astype(np.float32)
        values *= self.scale[..., None].astype(np.float32)
        return values.reshape(self.values.shape)


def quantize(weight: np.ndarray, bits: int, group_size: int | None, importance: np.ndarray | None = None) -> Quantized:
    """`weight` float32 [out, in] in 8 or 4 bits; `group_size` None is a whole row.

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
    values, scale = np.empty((rows, columns), np.int8), np.empty((rows, groups), np.float16)
    at_a_time = max(1, BLOCK // columns)

    def fill(start: int) -> None:
        block = slice(start, start + at_a_time)
        search = _Search(weight[block].reshape(grouped), importance, bits)
        values[block], scale[block] = search.result()

    with ThreadPoolExecutor(physical_cores()) as pool:  # numpy's loops leave the other threads running
        for _ in pool.map(fill, range(0, rows, at_a_time)):
            pass
    return Quantized(values, scale, bits)


class _Search:
    """For `weight` [rows, groups, size]: `scale` float32 [rows, groups, 1], the best so far, with its `error`."""

    def __init__(self, weight: np.ndarray, importance: np.ndarray | None, bits: int) -> None:
        self.weight, self.importance = weight, importance
        self.least, self.greatest = (np.float32(code) for code in CODES[bits])
        self.codes, self.weighted = np.empty_like(weight), np.empty_like(weight)
        low, high = weight.min(axis=-1, keepdims=True), weight.max(axis=-1, keepdims=True)
        fitting = np.maximum(-low, high) / -self.least
        _check(fitting * max(PARTS[bits]), low, high)
        self.error = np.full(low.shape, np.inf, np.float32)
        self.scale = np.ones_like(low)
        for part in PARTS[bits]:
            self._offer(_half(part * fitting))
            if bits == 4:  # as there is a code -8, but no 8
                self._offer(_half(-part * fitting))
        self._offer(self.scale)

    def _offer(self, scale: np.ndarray) -> None:
        """Keep, where it is better, the scale that is best for the codes that `scale` leads to."""
        codes = self._rounded(scale)
        with_codes, squares = self._dot(self.weight, codes), self._dot(codes, codes)
        fitted = _half(np.divide(with_codes, squares, out=scale.copy(), where=squares > 0))
        codes *= fitted
        codes -= self.weight
        error = self._dot(codes, codes)
        better = error < self.error
        np.copyto(self.error, error, where=better)
        np.copyto(self.scale, fitted, where=better)

    def _rounded(self, scale: np.ndarray) -> np.ndarray:
        codes = np.multiply(self.weight, 1 / scale, out=self.codes)
        return np.rint(codes, out=codes).clip(self.least, self.greatest, out=codes)

    def _dot(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Of each group, weighted: [rows, groups, 1]."""
        if self.importance is not None:
            b = np.multiply(b, self.importance, out=self.weighted)
        return np.einsum("rgi,rgi->rg", a, b)[..., None]

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """The codes [rows, in] and the scale [rows, groups] that led to them."""
        codes = self._rounded(self.scale)
        return codes.reshape(len(codes), -1), self.scale[..., 0]


def _half(scale: np.ndarray) -> np.ndarray:
    """As it is stored, and never 0: what is rounded is divided by this."""
    least = np.finfo(np.float16).smallest_subnormal
    return np.where(np.abs(scale) < least, least, scale).astype(np.float16).astype(np.float32)


def _check(scale: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise LlavaError("holds weights that are not finite (NaN or infinite), which no scale can express")
    if scale.max() > np.finfo(np.float16).max:
        raise LlavaError(f"holds weights up to {max(high.max(), -low.min()):g}, too large for a float16 scale")
