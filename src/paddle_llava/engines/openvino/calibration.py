"""What a calibration has found, and a model's tensors with it in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from paddle_llava.checkpoints.dtypes import to_dtype
from paddle_llava.checkpoints.write import TensorSource


@dataclass(frozen=True)
class Calibration:
    """By the names of modules: `factors` float32 [in], with which the channels of a Linear's weight are multiplied;
    `divisors` float32 [out], by which what a norm or a Linear gives is divided; `importance` float32 [in], the mean
    squares of a Linear's divided input."""

    factors: dict[str, np.ndarray] = field(default_factory=dict)
    divisors: dict[str, np.ndarray] = field(default_factory=dict)
    importance: dict[str, np.ndarray] = field(default_factory=dict)


class Folded:
    """The tensors of a model with the factors and divisors of a calibration in them: the same function."""

    def __init__(self, base: TensorSource, calibration: Calibration) -> None:
        self._base, self._calibration = base, calibration

    @property
    def folder(self) -> Path | None:
        return self._base.folder

    def names(self) -> list[str]:
        return self._base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name)

    def dtype(self, name: str) -> str:
        module = name.rpartition(".")[0]
        changed = module in self._calibration.factors or module in self._calibration.divisors
        return "float32" if changed else self._base.dtype(name)

    def read(self, name: str) -> np.ndarray:
        module, _, kind = name.rpartition(".")
        factors, divisors = self._calibration.factors.get(module), self._calibration.divisors.get(module)
        if factors is None and divisors is None:
            return self._base.read(name)
        array = to_dtype(self._base.read(name), self._base.dtype(name), "float32", where=name)
        if factors is not None and kind == "weight":
            array = array * factors[:, None]
        return array if divisors is None else array / divisors
