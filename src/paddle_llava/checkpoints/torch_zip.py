"""PyTorch's container (`pytorch_model-*.bin`), read without torch: a zip of a pickle and of raw storages.

Source: torch/serialization.py and caffe2/serialize/inline_container.h: `data.pkl` describes the tensors,
`data/<key>` holds a storage's bytes, uncompressed.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llava.checkpoints.dtypes import FLOATS
from paddle_llava.checkpoints.files import RawFile, is_shape
from paddle_llava.checkpoints.pickle_stream import Global, read_pickle
from paddle_llava.errors import LlavaError

_STORAGES = {
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.DoubleStorage": "float64",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
_BEFORE_ZIP = (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\x80\x02ctorch")


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage; `offset` and `strides` count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """Elements from the first to the last one, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((side - 1) * stride for side, stride in zip(self.shape, self.strides, strict=True))


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> _Tensor:
    if not isinstance(storage, _Storage) or not is_shape((offset,)):
        raise TypeError("a malformed tensor")
    if not is_shape(shape) or not is_shape(strides) or len(shape) != len(strides):
        raise ValueError("an impossible shape")
    tensor = _Tensor(storage, offset, tuple(shape), tuple(strides))
    if offset + tensor.span > storage.count or math.prod(shape) > storage.count:
        raise ValueError(f"a tensor beyond its storage of {storage.count} elements")
    return tensor


def _rebuild_parameter(tensor: _Tensor, *_: Any) -> _Tensor:
    return tensor


def _storage(description: Any) -> _Storage:
    kind, marker, key, _, count = description
    if kind != "storage" or not isinstance(marker, Global) or not isinstance(key, str):
        raise TypeError("a malformed storage")
    if type(count) is not int or count < 0:
        raise ValueError("an impossible storage")
    return _Storage(_STORAGES[marker.name], key, count)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda: {},
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
}


class TorchFile:
    """A torch file of named tensors; raises `LlavaError` when it is damaged or holds anything but tensors."""

    def __init__(self, path: Path) -> None:
        self._file = RawFile(path)
        try:
            records = _records(self._file)
            value = read_pickle(self._file, *records["data.pkl"], _FUNCTIONS, tuple(_STORAGES), _storage)
            self._tensors = _named(self._file, value)
            self._starts = {n: _start(self._file, n, t, records) for n, t in self._tensors.items()}
        except BaseException:
            self._file.close()
            raise

    def names(self) -> list[str]:
        """In the order of their bytes."""
        return sorted(self._tensors, key=lambda name: self._starts[name])

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        return self._tensors[name].storage.dtype

    def read(self, name: str) -> np.ndarray:
        """A new contiguous array (`uint16` for bfloat16) of a floating-point tensor, whatever its strides."""
        tensor = self._tensors[name]
        dtype = FLOATS[tensor.storage.dtype]
        flat = self._file.read_array(self._starts[name], (tensor.span,), dtype)
        strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
        view = np.lib.stride_tricks.as_strided(flat, tensor.shape, strides)
        return np.ascontiguousarray(view).reshape(tensor.shape)  # which makes a scalar a vector

    def close(self) -> None:
        self._file.close()


def _records(file: RawFile) -> dict[str, tuple[int, int]]:
    """Where each record of the archive begins and ends, by its name inside the archive's one folder."""
    if file.read(0, min(16, file.size)).startswith(_BEFORE_ZIP):
        raise LlavaError(
            f"{file.path}: written by PyTorch before 1.6, a form that cannot be read safely; "
            "load and save it once with a newer PyTorch, or convert it to safetensors"
        )
    records = {}
    try:
        with zipfile.ZipFile(file.path) as archive:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                    raise ValueError("a compressed or encrypted record")
                # The name and extra field are repeated before the data, and may differ in length there.
                lengths = struct.unpack("<2H", file.read(info.header_offset + 26, 4))
                begin = info.header_offset + 30 + sum(lengths)
                records[info.filename.partition("/")[2]] = (begin, begin + info.file_size)
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise file.damaged("not a zip archive as PyTorch writes it") from error
    if "data.pkl" not in records:
        raise file.damaged("it holds no data.pkl")
    if "byteorder" in records and file.read(records["byteorder"][0], 3) != b"lit":
        raise LlavaError(f"{file.path}: written on a big-endian machine, which is not supported")
    return records


def _named(file: RawFile, value: Any) -> dict[str, _Tensor]:
    if not isinstance(value, dict):
        raise LlavaError(f"{file.path}: not a dict of tensors; these are not weights")
    for name, item in value.items():
        if not isinstance(item, _Tensor):
            raise LlavaError(f"{file.path}: {name[:200]!r} is not a tensor; these are not weights")
    return value


def _start(file: RawFile, name: str, tensor: _Tensor, records: dict[str, tuple[int, int]]) -> int:
    """The offset of a tensor's first byte, once all bytes of its storage are known to be there."""
    storage = tensor.storage
    begin, end = records.get(f"data/{storage.key}", (0, -1))
    itemsize = FLOATS[storage.dtype].itemsize if storage.dtype in FLOATS else 0
    if begin + storage.count * itemsize > min(end, file.size):
        raise file.damaged(f"the storage of {name[:200]!r} is not all there")
    return begin + tensor.offset * itemsize
