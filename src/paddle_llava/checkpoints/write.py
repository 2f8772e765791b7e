"""Writing a checkpoint: one tensor in memory at a time, complete or not there at all."""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from paddle_llava.checkpoints.config_file import config_to_dict
from paddle_llava.checkpoints.dtypes import FLOATS, to_dtype
from paddle_llava.checkpoints.files import replacing
from paddle_llava.checkpoints.folder import STEMS
from paddle_llava.checkpoints.names import is_linear, parameter_shapes, stored_names
from paddle_llava.checkpoints.pdparams import write_pdparams
from paddle_llava.checkpoints.safetensors_file import write_safetensors
from paddle_llava.config import Layout, LlavaConfig
from paddle_llava.errors import LlavaError
from paddle_llava.json_file import read_json

MAX_SHARD_BYTES = 5 * 10**9
SUFFIXES: dict[Layout, str] = {"hf": "safetensors", "original": "safetensors", "paddle": "pdparams"}
Shape = tuple[int, ...]
Spec = tuple[str, Shape]  # dtype, shape
Progress = Callable[[int, int], None]


class TensorSource(Protocol):
    """Parameters under our names and in our orientation, as a `Checkpoint` has them.

    `read` gives the values in whatever order they lie in memory, for `to_dtype` to put right; threads may share it.
    """

    @property
    def folder(self) -> Path | None: ...  # of the files that they are read from

    def names(self) -> list[str]: ...
    def dtype(self, name: str) -> str: ...
    def shape(self, name: str) -> Shape: ...
    def read(self, name: str) -> np.ndarray: ...


class ArraySource:
    """Parameters in memory: float32, float16, or `uint16` for bfloat16."""

    folder: Path | None = None

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = arrays

    def names(self) -> list[str]:
        return list(self._arrays)

    def dtype(self, name: str) -> str:
        dtype = self._arrays[name].dtype
        return next((known for known, numpy_dtype in FLOATS.items() if numpy_dtype == dtype), str(dtype))

    def shape(self, name: str) -> Shape:
        return self._arrays[name].shape

    def read(self, name: str) -> np.ndarray:
        return self._arrays[name]


def write_checkpoint(
    folder: Path,
    config: LlavaConfig,
    tensors: TensorSource,
    layout: Layout,
    *,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write weights, their index and `config.json` in `layout` to `folder`, which is made if need be.

    `dtype` casts every tensor; None keeps each as it is. `progress` is told the bytes done and the bytes in
    all. Weights are safetensors (`.pdparams` in the Paddle layout), in shards of at most `max_shard_bytes` or
    one tensor. Each file takes its name when it is complete, `config.json` last: a write that was killed does
    not look like a checkpoint. An earlier checkpoint of the same container in `folder` is replaced.

    Raises `LlavaError` when the layout cannot express the model, when the tensors come from `folder` itself,
    and when the disk is too small or `folder` cannot be written.
    """
    if dtype is not None:
        if dtype not in FLOATS:
            raise LlavaError(f"dtype {dtype!r} is not supported; use one of {', '.join(FLOATS)}")
        config = replace(config, dtype=dtype)
    config_json = config_to_dict(config, layout)
    names = stored_names(config, layout)
    specs = _specs(config, tensors, names, layout, dtype)
    shards = _shards(specs, max_shard_bytes)
    suffix = SUFFIXES[layout]
    files = _file_names(suffix, len(shards))
    total = sum(map(_size, specs.values()))
    done = 0
    ours = {theirs: name for name, theirs in names.items()}

    def read(stored: str) -> np.ndarray:
        nonlocal done
        name = ours[stored]
        array = tensors.read(name)
        array = to_dtype(array.T if _turns(name, layout) else array, tensors.dtype(name), specs[stored][0], where=name)
        done += array.nbytes
        if progress is not None:
            progress(done, total)
        return array

    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_folder(folder, suffix, tensors.folder)
        if total > shutil.disk_usage(folder).free:
            raise _disk_full(folder, total)
        _remove_earlier(folder, suffix)
        for file, shard in zip(files, shards, strict=True):
            write = write_pdparams if suffix == "pdparams" else write_safetensors
            write(folder / file, shard, read)
        if len(files) > 1:
            weight_map = {stored: file for file, shard in zip(files, shards, strict=True) for stored in shard}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            _write_json(folder / f"{STEMS[suffix]}.{suffix}.index.json", index)
        if layout == "hf":
            generation = folder / "generation_config.json"
            _write_json(generation, _settings_in(generation) | _generation_config(config))
        _write_json(folder / "config.json", config_json)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _disk_full(folder, total - done) from error
        raise LlavaError(f"{folder}: cannot be written ({error.strerror or error})") from error


def check_target(folder: Path, config: LlavaConfig, layout: Layout) -> None:
    """Raise `LlavaError` for what `write_checkpoint` would refuse: a layout that cannot express the model of `config`,
    or a folder with weights in another container."""
    config_to_dict(config, layout)
    _check_folder(folder, SUFFIXES[layout], None)


def _turns(name: str, layout: Layout) -> bool:
    return layout != "paddle" and is_linear(name)


def _specs(
    config: LlavaConfig, tensors: TensorSource, names: Mapping[str, str], layout: Layout, dtype: str | None
) -> dict[str, Spec]:
    """What will be written, by stored name and in the order of the source, which reads fastest."""
    shapes = parameter_shapes(config)
    if {name: tensors.shape(name) for name in tensors.names()} != shapes:
        raise ValueError("the tensors are not those of the configuration")
    specs = {}
    for name in tensors.names():
        shape = shapes[name][::-1] if _turns(name, layout) else shapes[name]
        specs[names[name]] = (dtype or tensors.dtype(name), shape)
    return specs


def _size(spec: Spec) -> int:
    dtype, shape = spec
    return math.prod(shape) * FLOATS[dtype].itemsize


def _shards(specs: Mapping[str, Spec], max_bytes: int) -> list[dict[str, Spec]]:
    shards: list[dict[str, Spec]] = [{}]
    filled = 0
    for name, spec in specs.items():
        if shards[-1] and filled + _size(spec) > max_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = spec
        filled += _size(spec)
    return shards


def _file_names(suffix: str, count: int) -> list[str]:
    stem = STEMS[suffix]
    if count == 1:
        return [f"{stem}.{suffix}"]
    return [f"{stem}-{i:05d}-of-{count:05d}.{suffix}" for i in range(1, count + 1)]


def _check_folder(folder: Path, suffix: str, source: Path | None) -> None:
    if source is not None and source.resolve() == folder.resolve():
        raise LlavaError(f"{folder}: holds the weights that are being read; write to another folder")
    for other, stem in STEMS.items():
        if other != suffix and next(folder.glob(f"{stem}*.{other}"), None):
            raise LlavaError(f"{folder}: holds weights in .{other} files already; write to another folder")


def _remove_earlier(folder: Path, suffix: str) -> None:
    """Remove an earlier checkpoint, its `config.json` first: old and new shards must never look like one."""
    stem = STEMS[suffix]
    (folder / "config.json").unlink(missing_ok=True)
    (folder / f"{stem}.{suffix}.index.json").unlink(missing_ok=True)
    shards = folder.glob(f"{stem}-*-of-*.{suffix}")
    unfinished = folder.glob(f"{stem}*.{suffix}.tmp")
    for path in [folder / f"{stem}.{suffix}", *shards, *unfinished]:
        path.unlink(missing_ok=True)


def _disk_full(folder: Path, needed: int) -> LlavaError:
    free = shutil.disk_usage(folder).free
    return LlavaError(f"{folder}: the disk is too full: {needed} bytes are needed, {free} are free")


def _generation_config(config: LlavaConfig) -> dict[str, Any]:
    text = config.text
    eos = text.eos_token_id[0] if len(text.eos_token_id) == 1 else list(text.eos_token_id)
    return {"bos_token_id": text.bos_token_id, "eos_token_id": eos, "pad_token_id": text.pad_token_id}


def _settings_in(path: Path) -> dict[str, Any]:
    """What the processor has brought along, {} for nothing readable."""
    try:
        return read_json(path)
    except LlavaError:
        return {}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with replacing(path) as file:
        file.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
