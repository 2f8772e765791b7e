"""Tensor parallel (Shoeybi et al. 2019, arXiv:1909.08053): each decoder layer's attention and MLP, over processes.

The split itself, the sums and their gradients are `paddle.distributed.parallelize`'s, by the plan below; the model's
code knows nothing of it. Everything else (embeddings, norms, vision tower, projector, head) every process holds whole
and computes alike. Distributed tensors stay inside the split layers, for Paddle makes an ordinary tensor that meets one
in an operation distributed too, in place.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import paddle
import paddle.distributed as dist
from paddle import Tensor, nn
from paddle.distributed.auto_parallel.api import dtensor_from_local, dtensor_to_local

from paddle_llava.config import TextConfig
from paddle_llava.errors import LlavaError
from paddle_llava.models.llava import LlavaNetwork
from paddle_llava.models.lora import LoRALinear
from paddle_llava.training.checkpoint import optimizer_slots
from paddle_llava.training.optimizer import trainable
from paddle_llava.training.parallel import World

COLUMNS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # each process computes some of the outputs
ROWS = ("o_proj", "down_proj")  # each process takes some of the inputs, and the results are summed


def split(model: LlavaNetwork, world: World) -> None:
    """Leave to each of the processes of a replica its part of `model`'s decoder layers, adapters included.

    Raises `LlavaError` when heads or the MLP's width cannot be divided among them.
    """
    if world.tensor_parallel == 1:
        return
    _check_divisible(model.config.text, world.tensor_parallel)
    mesh = dist.ProcessMesh(world.neighbours, dim_names=["mp"])
    for layer in model.language_model.layers:
        for part in (layer.self_attn, layer.mlp):
            config = {"mp_config": {"parallelize_plan": _plan(part, mesh)}}
            dist.parallelize(part, mesh=mesh, config=config)
            part.register_forward_pre_hook(_enter)
            part.register_forward_post_hook(_leave)


def put_together(model: LlavaNetwork) -> None:
    """Undo `split`: every process holds the whole model again, and can run it alone."""
    for parameters, name, parameter in _split_parameters(model):
        parameters[name] = _whole(parameter)


@contextmanager
def whole(model: LlavaNetwork, optimizer: paddle.optimizer.Optimizer | None, world: World) -> Iterator[None]:
    """Let the first process hold whole parameters and an `optimizer`'s state meanwhile, in the host's memory, to be
    written.

    All processes must come here; the model cannot be run meanwhile.
    """
    put_back: list[tuple[MutableMapping[str, Any], str, Tensor]] = []
    if world.tensor_parallel > 1 and world.replica == 0:
        states: list[dict[str, Tensor]] = []
        if optimizer is not None:
            optimizer_slots(optimizer, trainable(model))  # all there, in the same order everywhere
            states = [*optimizer._accumulators.values(), optimizer._master_weights]
        slots = [(state, key, tensor) for state in states for key, tensor in state.items() if tensor.is_dist()]
        for holder, key, tensor in (*_split_parameters(model), *slots):
            stand_in = _whole(tensor, paddle.CPUPlace())
            if world.rank == 0:
                holder[key] = stand_in
                put_back.append((holder, key, tensor))
    try:
        yield
    finally:
        for holder, key, tensor in put_back:
            holder[key] = tensor


def allow_split(optimizer: paddle.optimizer.AdamW) -> None:
    """Let `optimizer` update split parameters beside whole ones."""
    rate = optimizer._create_param_lr
    # A tensor of its own for each parameter: one that has met a split parameter would make the next one distributed.
    optimizer._create_param_lr = lambda parameter_and_gradient: rate(parameter_and_gradient).clone()


def _plan(part: nn.Layer, mesh: dist.ProcessMesh) -> dict[str, Any]:
    """How `parallelize` splits attention or an MLP; the adapters' thin matrices are split here, as their base is."""
    plan = {}
    for name, layer in part.named_children():
        columns = name in COLUMNS
        if isinstance(layer, LoRALinear):
            thin, axis = ("lora_B", 1) if columns else ("lora_A", 0)
            setattr(layer, thin, dist.shard_tensor(getattr(layer, thin), mesh, [dist.Shard(axis)]))
            name = f"{name}.base"
        plan[name] = dist.ColWiseParallel() if columns else dist.RowWiseParallel()
    return plan


def _check_divisible(text: TextConfig, parts: int) -> None:
    for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(text, key) % parts:
            raise LlavaError(
                f"tensor_parallel_degree: {parts} does not divide this model's {key}, {getattr(text, key)}; "
                "take a smaller one"
            )


def _enter(part: nn.Layer, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs of a split layer, which all processes hold alike, as distributed tensors."""
    mesh = _mesh(part)
    return inputs if mesh is None else _distributed(inputs, mesh)


def _distributed(value: Any, mesh: dist.ProcessMesh) -> Any:
    if isinstance(value, tuple):
        return tuple(_distributed(each, mesh) for each in value)
    return dtensor_from_local(value, mesh, [dist.Replicate()]) if isinstance(value, Tensor) else value


def _leave(part: nn.Layer, _: tuple[Any, ...], output: Tensor) -> Tensor:
    """The sum of the processes' results, as an ordinary tensor."""
    mesh = _mesh(part)
    if mesh is None:
        return output
    return dtensor_to_local(dist.reshard(output, mesh, [dist.Replicate()]), mesh, [dist.Replicate()])


def _mesh(part: nn.Layer) -> dist.ProcessMesh | None:
    """The processes that `part` is split over; None when it has been put together."""
    return next((parameter.process_mesh for parameter in part.parameters() if parameter.is_dist()), None)


def _split_parameters(model: LlavaNetwork) -> list[tuple[MutableMapping[str, Any], str, Tensor]]:
    return [
        (layer._parameters, name, parameter)
        for layer in model.sublayers()
        for name, parameter in layer._parameters.items()
        if parameter is not None and parameter.is_dist()
    ]


def _whole(tensor: Tensor, place: Any = None) -> Tensor:
    """All of a split `tensor`, which every process that holds a part must ask for."""
    value = paddle.to_tensor(tensor.numpy(), place=place, stop_gradient=tensor.stop_gradient)
    value.name = tensor.name
    return value
