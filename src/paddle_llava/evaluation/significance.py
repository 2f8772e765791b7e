"""How sure a figure is: bootstrap intervals (Efron 1979), paired for two models, and McNemar's exact test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
_AT_ONCE = 1 << 22  # numbers in memory


@dataclass(frozen=True)
class Difference:
    """The mean of b - a with its interval, and `p`: how likely one as large is when the two are alike."""

    mean: float
    low: float
    high: float
    p: float


def bootstrap_interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of the mean of `values`: from the 2.5th to the 97.5th percentile of 2000 resamples' means.

    The same values and `seed` give the same interval. NaN without values.
    """
    return _interval(_resampled_means(values, seed))


def paired_bootstrap(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> Difference:
    """Two models' scores of the same questions, resampled by question; `p` is two-sided.

    Raises `ValueError` when there are not as many of one as of the other.
    """
    differences = [after - before for before, after in zip(a, b, strict=True)]
    if not differences:
        return Difference(math.nan, math.nan, math.nan, math.nan)
    means = _resampled_means(differences, seed)
    beyond = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (RESAMPLES + 1))
    return Difference(float(np.mean(differences)), *_interval(means), p)


def mcnemar(only_a: int, only_b: int) -> float:
    """McNemar's exact two-sided p, of the questions that only one or only the other model has right.

    It is the binomial test that each is as likely as the other; 1 when there are none.
    """
    count, fewer = only_a + only_b, min(only_a, only_b)
    if not count:
        return 1.0
    total = math.lgamma(count + 1) - count * math.log(2)
    tail = sum(math.exp(total - math.lgamma(k + 1) - math.lgamma(count - k + 1)) for k in range(fewer + 1))
    return min(1.0, 2 * tail)


def _resampled_means(values: Sequence[float], seed: int) -> np.ndarray:
    """`RESAMPLES` means of as many draws with replacement as there are values, float64.

    What a resample holds of each distinct value is a multinomial draw, and most scores have few of them.
    """
    if not len(values):
        return np.full(RESAMPLES, math.nan)
    distinct, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    number = int(counts.sum())
    generator = np.random.default_rng(seed)
    rows = max(1, _AT_ONCE // len(distinct))
    means = []
    for start in range(0, RESAMPLES, rows):
        drawn = generator.multinomial(number, counts / number, size=min(rows, RESAMPLES - start))
        means.append(drawn @ distinct / number)
    return np.concatenate(means)


def _interval(means: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
