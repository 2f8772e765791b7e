"""Averages over all predictions and over kinds of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from paddle_llava.evaluation.records import Prediction


def mean(values: Iterable[float]) -> float:
    """0 without any value."""
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def percent_by(predictions: Sequence[Prediction], scores: Mapping[str, float], key: str) -> dict[str, float]:
    """For each value that `meta[key]` takes the mean of its predictions' scores, in percent."""
    groups: dict[str, list[float]] = defaultdict(list)
    for prediction in predictions:
        name = prediction.question.meta.get(key)
        if name and prediction.id in scores:
            groups[str(name)].append(scores[prediction.id])
    return {name: 100 * mean(groups[name]) for name in sorted(groups)}
