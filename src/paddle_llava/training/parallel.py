"""Several processes under `paddle.distributed.launch`: each takes its share of the batches, gradients are summed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import paddle
import paddle.distributed as dist
from paddle import Tensor


@dataclass(frozen=True)
class World:
    """The processes of a run, and this one's place among them."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> World:
        """Join the processes that `paddle.distributed.launch` started; alone without it."""
        if dist.get_world_size() > 1 and not dist.is_initialized():
            dist.init_parallel_env()
        return cls(dist.get_rank(), dist.get_world_size())

    def sum(self, value: float) -> float:
        """The sum of `value` over all processes, in float64."""
        if self.size == 1:
            return value
        tensor = paddle.to_tensor(float(value), dtype="float64")
        dist.all_reduce(tensor)
        return float(tensor)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum the gradients over all processes.

        A parameter that no sample of this process reached (no pictures in its batches) counts as zeros, so that all
        processes sum the same tensors and none waits for ever.
        """
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = paddle.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
