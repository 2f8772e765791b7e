"""A folder's weight files: which there are, in which container, and which tensors they hold."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import numpy as np

from paddle_llava.checkpoints.pdparams import PdparamsFile
from paddle_llava.checkpoints.safetensors_file import SafetensorsFile
from paddle_llava.checkpoints.torch_zip import TorchFile
from paddle_llava.errors import LlavaError

MAX_INDEX_BYTES = 100_000_000
STEMS = {"safetensors": "model", "bin": "pytorch_model", "pdparams": "model_state"}  # as they are preferred


class TensorFile(Protocol):
    """What the three containers have in common; `dtype` is a key of `dtypes.FLOATS` for what can be read."""

    def names(self) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def dtype(self, name: str) -> str: ...
    def read(self, name: str) -> np.ndarray: ...
    def close(self) -> None: ...


_READERS: dict[str, Callable[[Path], TensorFile]] = {
    "safetensors": SafetensorsFile,
    "bin": TorchFile,
    "pdparams": PdparamsFile,
}


def open_folder(folder: Path, files: ExitStack) -> dict[str, TensorFile]:
    """Which file, open until `files` is closed, holds each tensor of `folder`.

    Raises `LlavaError` when there are no weights, when a shard is missing, or a file is damaged.
    """
    contents: dict[str, TensorFile] = {}
    for path in weight_files(folder):
        file = _READERS[path.suffix[1:]](path)
        files.callback(file.close)
        for name in file.names():
            if name in contents:
                raise LlavaError(f"{folder}: {name[:200]!r} is in two files; remove the wrong one")
            contents[name] = file
    return contents


def weight_files(folder: Path) -> list[Path]:
    """The weights of `folder`: the files of an index, or a single one, or a full set of numbered shards."""
    if not folder.is_dir():
        raise LlavaError(f"{folder}: no such folder")
    for suffix, stem in STEMS.items():
        index = folder / f"{stem}.{suffix}.index.json"
        single = folder / f"{stem}.{suffix}"
        if index.is_file():
            return _existing(folder, _indexed(index, suffix))
        if single.is_file():
            return [single]
        if shards := _numbered(folder, stem, suffix):
            return _existing(folder, shards)
    known = ", ".join(f"{stem}.{suffix}" for suffix, stem in STEMS.items())
    raise LlavaError(f"{folder}: no weights (none of {known}, whole or in shards)")


def _indexed(index: Path, suffix: str) -> list[str]:
    """The files that an index names, each a plain name: an index must not reach outside its folder."""
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise LlavaError(f"{index}: larger than {MAX_INDEX_BYTES} bytes, which no index of weights is")
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
    except OSError as error:
        raise LlavaError(f"{index}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise LlavaError(f"{index}: not an index with a weight_map; fetch the file again") from error
    for shard in shards:
        if not isinstance(shard, str) or not re.fullmatch(rf"[\w.-]+\.{suffix}", shard, re.ASCII):
            raise LlavaError(f"{index}: {str(shard)[:200]!r} is not the name of a .{suffix} file beside it")
    return list(shards)


def _numbered(folder: Path, stem: str, suffix: str) -> list[str]:
    """All the names of a set of shards of which at least one is there."""
    for path in sorted(folder.glob(f"{stem}-*-of-*.{suffix}")):
        parts = re.fullmatch(rf"{stem}-([0-9]{{5}})-of-([0-9]{{5}})\.{suffix}", path.name)
        if parts:
            return [f"{stem}-{i:05d}-of-{parts[2]}.{suffix}" for i in range(1, int(parts[2]) + 1)]
    return []


def _existing(folder: Path, shards: Iterable[str]) -> list[Path]:
    paths = [folder / shard for shard in sorted(shards)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise LlavaError(f"{folder}: shards are missing: {some(missing)}; fetch them")
    return paths


def some(items: list[str]) -> str:
    """The first five of a list, and how many more there are."""
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")
