"""Checkpoints of a run: written beside, synced, renamed, so that one that is there is whole.

A checkpoint holds what the base model does not: the parameters that learn, the optimizer's state, and the place in the
data. Random numbers need no place in it: each step's are drawn from the seed and the step's number.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from paddle_llava.checkpoints.safetensors_file import SafetensorsFile, write_safetensors
from paddle_llava.errors import LlavaError
from paddle_llava.json_file import read_json, write_json
from paddle_llava.training.loss_scale import is_scaler_state
from paddle_llava.training.optimizer import trainable

PARAMETERS, OPTIMIZER, STATE = "trainable.safetensors", "optimizer.safetensors", "trainer_state.json"


@dataclass
class TrainerState:
    """Where a run stands: optimizer steps done, whether the evaluation after the last is still to be made, the place in
    the data, the state of fp16's loss `scaler` as `scaler_state` gives it, and what must not change on resuming.

    `batches` counts what was learnt from, over all replicas; `samples` are those of an epoch. Both are 0 in a state of
    a version that did not keep them.
    """

    step: int = 0
    unevaluated: bool = False
    position: list[int] = field(default_factory=list)
    batches: int = 0
    samples: int = 0
    skipped: int = 0
    best_loss: float | None = None
    scaler: dict[str, float] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)


def checkpoint_folders(output_dir: Path) -> list[Path]:
    """The whole checkpoints in `output_dir`, oldest first."""
    found = []
    for folder in output_dir.glob("checkpoint-*"):
        name = re.fullmatch(r"checkpoint-([0-9]+)(\.old)?", folder.name)
        if name and (folder / STATE).is_file():
            found.append((int(name[1]), name[2] is None, folder))
    return [folder for _, _, folder in sorted(found)]


def step_of(folder: Path) -> int:
    """The steps that were done when the checkpoint `folder`, one of `checkpoint_folders`, was written."""
    return int(folder.name.removeprefix("checkpoint-").removesuffix(".old"))


def save_checkpoint(
    output_dir: Path,
    model: nn.Layer,
    optimizer: paddle.optimizer.Optimizer,
    state: TrainerState,
    *,
    slots: Mapping[str, paddle.Tensor] | None = None,
    keep: int | None = None,
    also: Callable[[Path], None] | None = None,
) -> Path:
    """Write `output_dir/checkpoint-STEP`, then remove the oldest other ones until `keep` are left.

    `slots` is the optimizer's state where `optimizer` itself holds only a share of it. `also` writes further files into
    the new folder before it takes its name. Raises `LlavaError` when the disk is full; earlier checkpoints stay as they
    were.
    """
    folder = output_dir / f"checkpoint-{state.step}"
    beside = output_dir / f".{folder.name}.tmp"
    parameters = trainable(model)
    try:
        for leftover in output_dir.glob(".checkpoint-*.tmp"):
            shutil.rmtree(leftover)
        beside.mkdir(parents=True)
        _write(beside / PARAMETERS, parameters)
        _write(beside / OPTIMIZER, optimizer_slots(optimizer, parameters) if slots is None else slots)
        if also:
            also(beside)
        write_json(beside / STATE, asdict(state))
        for path in (*beside.rglob("*"), beside):
            _sync(path)
        _take_name(beside, folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = "the disk is full; earlier checkpoints are untouched. Free space, then resume"
        else:
            why = f"cannot be written ({error.strerror or error})"
        raise LlavaError(f"{folder}: {why}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    others = [other for other in checkpoint_folders(output_dir) if other != folder]
    for other in others[: max(len(others) - keep + 1, 0)] if keep else []:
        _remove(other)
    return folder


def load_checkpoint(
    folder: Path,
    model: nn.Layer,
    optimizer: paddle.optimizer.Optimizer,
    fixed: dict[str, Any],
    *,
    with_slots: bool = True,
) -> TrainerState:
    """Put the checkpoint in `folder` into `model` and `optimizer`, its schedule too; returns where the run stood.

    Without `with_slots` the optimizer's state is left to be read with `open_slots`. Raises `LlavaError` when it is
    damaged, of other parameters, or of a run with other `fixed` settings.
    """
    state = read_state(folder)
    for key, value in json.loads(json.dumps(fixed)).items():
        was = state.fixed.get(key)
        if was != value:
            raise LlavaError(
                f"{folder}: was made with {key} = {was!r}, now it is {value!r}; resume with the same value"
            )
    parameters = trainable(model)
    _read(folder / PARAMETERS, parameters)
    if with_slots:
        _read(folder / OPTIMIZER, optimizer_slots(optimizer, parameters))
    optimizer._learning_rate.step(state.step)
    return state


@contextmanager
def open_slots(folder: Path) -> Iterator[Callable[[str], np.ndarray]]:
    """Gives what reads an array of the optimizer's state from the checkpoint in `folder`, by its name."""
    file = SafetensorsFile(folder / OPTIMIZER)
    try:
        yield file.read
    finally:
        file.close()


def optimizer_slots(
    optimizer: paddle.optimizer.Optimizer, parameters: dict[str, paddle.Tensor]
) -> dict[str, paddle.Tensor]:
    """The tensors of an AdamW's state as `PARAMETER/SLOT`, made where no gradient has come yet.

    Paddle's `state_dict` would not do: it names them by the order of construction, lacks those of a parameter without a
    gradient so far (the projector's, before the first picture), and `set_state_dict` then fails at its first one.
    """
    optimizer._create_accumulators(paddle.static.default_main_program().global_block(), list(parameters.values()))
    slots = {}
    for name, parameter in parameters.items():
        master = optimizer._master_weights.get(parameter.name)
        if master is not None:
            slots[f"{name}/master"] = master
        key = parameter.name if master is None else master.name
        for slot, tensors in optimizer._accumulators.items():
            slots[f"{name}/{slot}"] = tensors[key]
    return slots


def forget_slots(optimizer: paddle.optimizer.Optimizer, parameter: paddle.Tensor) -> None:
    """Free the state that `optimizer` holds for `parameter`."""
    master = optimizer._master_weights.pop(parameter.name, None)
    key = parameter.name if master is None else master.name
    for slots in optimizer._accumulators.values():
        slots.pop(key, None)
    optimizer._already_create_accumulator.discard(parameter.name)


def _take_name(beside: Path, folder: Path) -> None:
    """Rename `beside` to `folder`; one that is there steps back first, and counts as whole until it is replaced."""
    old = folder.with_name(f"{folder.name}.old")
    if folder.exists():
        _remove(old)
        folder.rename(old)
    beside.rename(folder)
    _sync(folder.parent)
    _remove(old)


def _remove(folder: Path) -> None:
    """Remove a checkpoint under a name that the next save clears: half of one must not look whole, nor stay."""
    going = folder.with_name(f".{folder.name}.tmp")
    try:
        folder.rename(going)
    except OSError:
        going = folder
    shutil.rmtree(going, ignore_errors=True)


def read_state(folder: Path) -> TrainerState:
    """Where the run stood that wrote the checkpoint `folder`. Raises `LlavaError`."""
    path = folder / STATE
    raw = read_json(path)
    try:
        state = TrainerState(**raw)
        whole = [state.step, state.skipped, state.batches, state.samples, *state.position]
        valid = all(type(number) is int and number >= 0 for number in whole)
        valid &= isinstance(state.fixed, dict) and isinstance(state.best_loss, (float, int, type(None)))
        valid &= is_scaler_state(state.scaler) and type(state.unevaluated) is bool
    except TypeError:
        valid = False
    if not valid:
        raise LlavaError(f"{path}: not written by this version; start anew or use the version that did")
    return state


def _write(path: Path, tensors: Mapping[str, paddle.Tensor]) -> None:
    specs = {name: (_dtype(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_safetensors(path, specs, lambda name: tensors[name].numpy())


def _read(path: Path, tensors: dict[str, paddle.Tensor]) -> None:
    """Put what the file at `path` holds, which must be just what `tensors` can take, into them."""
    file = SafetensorsFile(path)
    try:
        odd = sorted(set(file.names()) ^ tensors.keys())
        if odd:
            raise LlavaError(f"{path}: other parameters learnt in that run than in this one ({odd[0]})")
        for name, tensor in tensors.items():
            there, here = (file.dtype(name), file.shape(name)), (_dtype(tensor), tuple(tensor.shape))
            if there != here:
                raise LlavaError(f"{path}: {name} is {there[0]} {there[1]} there, {here[0]} {here[1]} in this run")
        for name, tensor in tensors.items():
            tensor.set_value(file.read(name))
    finally:
        file.close()


def _dtype(tensor: paddle.Tensor) -> str:
    return str(tensor.dtype).removeprefix("paddle.")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
