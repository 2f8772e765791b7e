"""How sure a figure is: bootstrap intervals (Efron 1979), paired for two models, and McNemar's exact test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paddle_llava.evaluation.records import Scores, Stratum

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


def fraction_interval(strata: Sequence[Stratum], *, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of a sum of fractions, each of whose strata is resampled by itself; NaN without any."""
    total = np.zeros(RESAMPLES) if any(map(len, strata)) else np.full(RESAMPLES, math.nan)
    generator = np.random.default_rng(seed)
    for rows in filter(len, strata):
        above, below = _resampled_sums(np.asarray(rows, np.float64), generator).T
        total += np.divide(above, below, out=np.zeros(RESAMPLES), where=below != 0)
    return _interval(total)


def figure_intervals(scores: Scores) -> dict[str, tuple[float, float]]:
    """The 95% intervals of the figures with strata, of which some hold anything, and of the mean of all questions."""
    told = [name for name in scores.figures if any(scores.strata.get(name, ()))]
    found = {name: fraction_interval(scores.strata[name]) for name in told}
    values = list(scores.per_sample.values())
    for name, figure in scores.figures.items():
        if name not in scores.strata and (interval := mean_interval(figure, values)):
            found[name] = interval
    return found


def mean_interval(figure: float, values: Sequence[float]) -> tuple[float, float] | None:
    """The interval of a figure that is the mean of `values`, as it is or in percent; else None."""
    mean = sum(values) / len(values) if values else 0.0
    scale = next((scale for scale in (100, 1) if math.isclose(figure, scale * mean, rel_tol=1e-9)), None)
    if scale is None or not mean:
        return None
    low, high = bootstrap_interval(values)
    return scale * low, scale * high


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
    """`RESAMPLES` means of as many draws with replacement as there are values, float64."""
    if not len(values):
        return np.full(RESAMPLES, math.nan)
    column = np.asarray(values, np.float64)[:, None]
    return _resampled_sums(column, np.random.default_rng(seed))[:, 0] / len(values)


def _resampled_sums(rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Sums [RESAMPLES, columns] of as many draws with replacement as there are `rows` [rows, columns], float64.

    What a resample holds of each distinct row is a multinomial draw, and most scores have few of them.
    """
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    at_once = max(1, _AT_ONCE // len(distinct))
    sums = []
    for start in range(0, RESAMPLES, at_once):
        drawn = generator.multinomial(len(rows), counts / len(rows), size=min(at_once, RESAMPLES - start))
        sums.append(drawn @ distinct)
    return np.concatenate(sums)


def _interval(means: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
