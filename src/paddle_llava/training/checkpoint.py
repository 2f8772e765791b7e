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
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from paddle_llava.checkpoints.safetensors_file import SafetensorsFile, write_safetensors
from paddle_llava.checkpoints.write import ArraySource
from paddle_llava.errors import LlavaError
from paddle_llava.json_file import read_json, write_json
from paddle_llava.training.optimizer import trainable

PARAMETERS, OPTIMIZER, STATE = "trainable.safetensors", "optimizer.safetensors", "trainer_state.json"


@dataclass
class TrainerState:
    """Where a run stands: optimizer steps done, the place in the data, and what must not change on resuming."""

    step: int = 0
    position: list[int] = field(default_factory=list)
    skipped: int = 0
    best_loss: float | None = None
    fixed: dict[str, Any] = field(default_factory=dict)


def checkpoint_folders(output_dir: Path) -> list[Path]:
    """The whole checkpoints in `output_dir`, oldest first."""
    found = [
        (int(m[1]), p) for p in output_dir.glob("checkpoint-*") if (m := re.fullmatch(r"checkpoint-(\d+)", p.name))
    ]
    return [folder for _, folder in sorted(found) if (folder / STATE).is_file()]


def save_checkpoint(
    output_dir: Path,
    model: nn.Layer,
    optimizer: paddle.optimizer.Optimizer,
    state: TrainerState,
    *,
    keep: int | None = None,
    also: Callable[[Path], None] | None = None,
) -> Path:
    """Write `output_dir/checkpoint-STEP`, then remove the oldest ones beyond `keep`.

    `also` writes further files into the new folder before it takes its name. Raises `LlavaError` when the disk is full;
    earlier checkpoints stay as they were.
    """
    folder = output_dir / f"checkpoint-{state.step}"
    beside = output_dir / f".{folder.name}.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        _write(beside / PARAMETERS, {name: p.numpy() for name, p in trainable(model).items()})
        _write(beside / OPTIMIZER, _optimizer_arrays(model, optimizer))
        if also:
            also(beside)
        write_json(beside / STATE, asdict(state))
        for path in (*beside.iterdir(), beside):
            _sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
        _sync(output_dir)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        if error.errno == errno.ENOSPC:
            raise LlavaError(
                f"{folder}: the disk is full; earlier checkpoints are untouched. Free space, resume"
            ) from None
        raise LlavaError(f"{folder}: cannot be written ({error.strerror or error})") from None
    for old in checkpoint_folders(output_dir)[:-keep] if keep else []:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def load_checkpoint(
    folder: Path, model: nn.Layer, optimizer: paddle.optimizer.Optimizer, fixed: dict[str, Any]
) -> TrainerState:
    """Put the checkpoint in `folder` into `model` and `optimizer`; returns where the run stood.

    Raises `LlavaError` when it is damaged, of other parameters, or of a run with other `fixed` settings.
    """
    raw = read_json(folder / STATE)
    try:
        state = TrainerState(**raw)
    except TypeError:
        raise LlavaError(
            f"{folder / STATE}: not written by this version; start anew or use the version that did"
        ) from None
    for key, value in json.loads(json.dumps(fixed)).items():
        if state.fixed.get(key) != value:
            was = state.fixed.get(key)
            raise LlavaError(
                f"{folder}: was made with {key} = {was!r}, now it is {value!r}; resume with the same value"
            )
    parameters = trainable(model)
    stored = _read(folder / PARAMETERS)
    if stored.keys() != parameters.keys():
        odd = sorted(stored.keys() ^ parameters.keys())[0]
        raise LlavaError(f"{folder}: other parameters learnt in that run than in this one ({odd})")
    for name, parameter in parameters.items():
        parameter.set_value(paddle.to_tensor(stored[name]))
    _restore_optimizer(optimizer, model, _read(folder / OPTIMIZER))
    return state


def _optimizer_arrays(model: nn.Layer, optimizer: paddle.optimizer.Optimizer) -> dict[str, np.ndarray]:
    """The optimizer's tensors under our parameters' names; Paddle's own depend on the order of construction."""
    names = {parameter.name: name for name, parameter in trainable(model).items()}
    arrays = {}
    held = optimizer.state_dict()
    for key, tensor in held.pop("master_weights", {}).items():
        arrays[f"{names[key]}/master"] = tensor.numpy()
    held.pop("LR_Scheduler", None)
    for key, tensor in held.items():
        parameter, slot = _slot(key)
        arrays[f"{names[parameter]}/{slot}"] = tensor.numpy()
    return arrays


def _restore_optimizer(optimizer: paddle.optimizer.Optimizer, model: nn.Layer, arrays: dict[str, np.ndarray]) -> None:
    parameters = trainable(model)
    state: dict[str, Any] = {"master_weights": {}}
    for key, array in arrays.items():
        name, slot = key.rsplit("/", 1)
        tensor = paddle.to_tensor(array)
        if slot == "master":
            state["master_weights"][parameters[name].name] = tensor
        else:
            state[f"{parameters[name].name}_{slot}"] = tensor
    if not state["master_weights"]:
        del state["master_weights"]
    optimizer.set_state_dict(state)


def _slot(key: str) -> tuple[str, str]:
    found = re.fullmatch(r"(.+?)_((?:fp32_master_0_)?(?:moment[12]|beta[12]_pow_acc)(?:_max)?_0)", key)
    if found is None:
        raise ValueError(f"an optimizer state of an unknown kind: {key}")
    return found[1], found[2]


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    source = ArraySource(arrays)
    specs = {name: (source.dtype(name), source.shape(name)) for name in source.names()}
    write_safetensors(path, specs, source.read)


def _read(path: Path) -> dict[str, np.ndarray]:
    file = SafetensorsFile(path)
    try:
        return {name: file.read(name) for name in file.names()}
    finally:
        file.close()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
