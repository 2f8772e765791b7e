"""Several processes under `paddle.distributed.launch`: each takes its share of the batches, gradients are summed.

What one process meets (a bad record, a signal) all of them hear of before they wait for one another again: none waits
for ever, and all end with the same words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import Tensor

from paddle_llava.errors import LlavaError
from paddle_llava.training.checkpoint import forget_slots, optimizer_slots

T = TypeVar("T")
_LONGEST_MESSAGE = 2048
_LOST = (
    "another process of this run has ended or cannot be reached; its own log says why "
    "(log/workerlog.* beside where the run was started)"
)


class PeerLost(LlavaError):
    """Nothing can be done together any more, nor saved: another process has ended, or this one cannot go on with it."""


@dataclass(frozen=True)
class World:
    """The processes of a run, and this one's place among them.

    `tensor_parallel` neighbours hold one replica of the model together and see the same batches; the replicas share
    the batches out.
    """

    rank: int = 0
    size: int = 1
    tensor_parallel: int = 1
    peers: dist.collective.Group | None = None
    """The processes with the same part of the model in all replicas; None where that is all processes."""
    in_step: bool = False
    """Whether all processes compute each batch together, as those do that share parameters or gradients out."""

    @classmethod
    def join(cls, tensor_parallel: int = 1, *, in_step: bool = False) -> World:
        """Join the processes that `paddle.distributed.launch` started; alone without it.

        Raises `LlavaError` when they cannot be divided into replicas of `tensor_parallel`.
        """
        size = dist.get_world_size()
        if size % tensor_parallel:
            raise LlavaError(
                f"tensor_parallel_degree is {tensor_parallel}, but this run has {size} processes; start a multiple of "
                f"{tensor_parallel} with paddle.distributed.launch, or leave it out"
            )
        if size == 1:
            return cls()
        if tensor_parallel > 1 and in_step:
            raise LlavaError('sharding: only "stage1" goes with a tensor_parallel_degree')
        if not dist.is_initialized():
            dist.init_parallel_env()
        rank, peers = dist.get_rank(), None
        if tensor_parallel > 1:
            groups = [dist.new_group(list(range(part, size, tensor_parallel))) for part in range(tensor_parallel)]
            peers = groups[rank % tensor_parallel]
        return cls(rank, size, tensor_parallel, peers, in_step)

    @property
    def replica(self) -> int:
        """Which replica of the model this process belongs to."""
        return self.rank // self.tensor_parallel

    @property
    def replicas(self) -> int:
        return self.size // self.tensor_parallel

    @property
    def neighbours(self) -> list[int]:
        """The ranks of this process's replica."""
        first = self.replica * self.tensor_parallel
        return list(range(first, first + self.tensor_parallel))

    def sum(self, *values: float) -> list[float]:
        """The sum of each of `values` over all replicas, in float64; the processes of one must hold the same."""
        return [value / self.tensor_parallel for value in self._sum_all(*values)]

    @property
    def computes_together(self) -> bool:
        """Whether a forward pass exchanges parts with other processes on its way."""
        return self.tensor_parallel > 1 or self.in_step

    def any(self, here: bool) -> bool:
        """Whether it is so in any process that this one computes with."""
        return self._sum_all(float(here))[0] > 0 if self.computes_together else here

    @contextmanager
    def computing(self) -> Iterator[None]:
        """For forward passes: `PeerLost` instead of what Paddle raises when an exchange within one fails."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            if self.computes_together and re.search("gloo|nccl|hccl|connection", str(error), re.IGNORECASE):
                raise PeerLost(_LOST) from None
            raise

    def _sum_all(self, *values: float) -> list[float]:
        if self.size == 1:
            return list(values)
        tensor = paddle.to_tensor(list(map(float, values)), dtype="float64")
        _exchange(dist.all_reduce, tensor)
        return tensor.tolist()

    def together(self, attempt: Callable[[], T]) -> T:
        """What `attempt` gives here; if it raises `LlavaError` anywhere, the first process's is raised everywhere."""
        error, result = None, None
        try:
            result = attempt()
        except LlavaError as found:
            if self.size == 1:
                raise
            error = found
        failed = np.flatnonzero(self._sum_all(*(float(bool(error) and rank == self.rank) for rank in range(self.size))))
        if len(failed):
            raise LlavaError(self._message(str(error), int(failed[0])))
        return result  # type: ignore[return-value]

    def told(self, lines: Sequence[str]) -> list[str]:
        """The `lines` of all processes, each once; what is too long of a process's is cut."""
        speaking = self._sum_all(*(float(bool(lines) and rank == self.rank) for rank in range(self.size)))
        texts = [self._message("\n".join(lines), int(source)) for source in np.flatnonzero(speaking)]
        return list(dict.fromkeys(line for text in texts for line in text.splitlines()))

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum the gradients over all replicas.

        A parameter that no sample of this process reached (no pictures in its batches) counts as zeros, so that all
        processes sum the same tensors and none waits for ever. One that was reached nowhere stays without a gradient:
        zeros would let the optimizer's momentum move it, which one process would not.
        """
        if self.replicas == 1:
            return
        reached = self.sum(*(float(parameter.grad is not None) for parameter in parameters))
        for parameter, anywhere in zip(parameters, reached, strict=True):
            if not anywhere:
                continue
            if parameter.grad is None:
                parameter.grad = paddle.zeros_like(parameter)
            _exchange(dist.all_reduce, here(parameter.grad), group=self.peers)

    def broadcast(self, tensor: Tensor, replica: int) -> None:
        """Let all replicas hold what the one numbered `replica` holds."""
        if self.replicas > 1:
            source = replica * self.tensor_parallel + self.rank % self.tensor_parallel
            broadcast(here(tensor), source, self.peers)

    def _message(self, text: str, source: int) -> str:
        """The `text` of the process `source`."""
        own = text.encode()[:_LONGEST_MESSAGE] if self.rank == source else b""
        padded = np.frombuffer(own.ljust(_LONGEST_MESSAGE, b"\0"), np.uint8)
        return bytes(map(int, self._sum_all(*padded))).rstrip(b"\0").decode(errors="ignore")


class ShardedOptimizer:
    """ZeRO stage 1 (Rajbhandari et al. 2020, arXiv:1910.02054): each replica keeps the optimizer's state for its share
    of the parameters, updates these, and sends them to the others. A step is that of the whole optimizer, bit for bit.
    """

    def __init__(self, optimizer: paddle.optimizer.Optimizer, parameters: dict[str, Tensor], world: World) -> None:
        self.optimizer = optimizer
        self.parameters = parameters
        self.world = world
        loads = [0] * world.replicas
        self.owners: dict[str, int] = {}
        for name in sorted(parameters, key=lambda name: -int(parameters[name].size)):
            self.owners[name] = owner = loads.index(min(loads))
            loads[owner] += int(parameters[name].size)

    def step(self) -> None:
        """Update the parameters from gradients that are summed and clipped already."""
        for name in self._others():
            self.parameters[name].clear_gradient(False)  # by its name it would not be heeded
        self.optimizer.step()
        for name, parameter in self.parameters.items():
            self.world.broadcast(parameter, self.owners[name])

    def gather_slots(self) -> dict[str, Tensor]:
        """The whole state, as `optimizer_slots` names it, in the host's memory of the first process; empty in the
        others. One parameter's is on a device at a time."""
        whole = {}
        for name, parameter in self.parameters.items():
            for key, slot in optimizer_slots(self.optimizer, {name: parameter}).items():
                self.world.broadcast(slot, self.owners[name])
                if self.world.replica == 0:
                    array = slot.numpy()  # of one that is split over a replica all its processes must ask
                    if self.world.rank == 0:
                        whole[key] = paddle.to_tensor(array, place=paddle.CPUPlace())
            if self.owners[name] != self.world.replica:
                forget_slots(self.optimizer, parameter)
        return whole

    def take_slots(self, read: Callable[[str], np.ndarray]) -> None:
        """Start from the state of which `read` gives each whole array: this replica's share of it."""
        for name, parameter in self.parameters.items():
            if self.owners[name] == self.world.replica:
                for key, slot in optimizer_slots(self.optimizer, {name: parameter}).items():
                    slot.set_value(read(key))

    def _others(self) -> list[str]:
        return [name for name, owner in self.owners.items() if owner != self.world.replica]


def here(tensor: Tensor) -> Tensor:
    """What this process holds of `tensor`, which may be split over several; the memory is the same."""
    return tensor._local_value() if tensor.is_dist() else tensor


def broadcast(tensor: Tensor, source: int, group: dist.collective.Group | None = None) -> None:
    """Let all processes hold what `source` holds. Raises `PeerLost`.

    Some of AdamW's state lies in the host's memory whatever the device, and only devices send what lies on them.
    """
    device = paddle.device.get_device()
    sent = tensor.to(device) if tensor.place.is_cpu_place() and device != "cpu" else tensor
    _exchange(dist.broadcast, sent, source, group=group)
    if sent is not tensor:
        tensor.set_value(sent.cpu())


def _exchange(operation: Callable[..., object], *arguments: Any, **settings: Any) -> None:
    try:
        operation(*arguments, **settings)
    except (RuntimeError, OSError, ValueError):
        raise PeerLost(_LOST) from None
