"""Paddle's container: a pickle of a dict from names to numpy arrays, as `paddle.save` writes it.

The arrays' bytes stay in the file until they are read, and are written one array at a time.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llava.checkpoints.dtypes import FLOATS
from paddle_llava.checkpoints.files import RawFile, is_shape, replacing
from paddle_llava.checkpoints.pickle_stream import Built, Span, read_pickle
from paddle_llava.checkpoints.safetensors_file import as_stored
from paddle_llava.errors import LlavaError

_DTYPES = {"f4": "float32", "f2": "float16", "u2": "bfloat16"}
_TABLE = "StructuredToParameterName@@"
_SPLIT = "UnpackBigParamInfor@@"  # protocols 2 and 3: arrays beyond 1 GiB are flattened and cut


class _Dtype(Built):
    """Stands for `numpy.dtype`: the name of a type, without numpy making one from a file's text."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str):
            raise TypeError("a type that is not named by text")
        self.code, self.order = code, "|"

    def build(self, state: Any) -> None:
        self.order = state[1]

    @property
    def name(self) -> str:
        if self.order == ">":
            raise ValueError("big-endian arrays")
        return _DTYPES.get(self.code, self.code)


class _Array(Built):
    """Stands for `numpy.ndarray`: its type, its shape, and where its bytes are."""

    def __init__(self, *_: Any) -> None:
        self.dtype, self.shape, self.fortran = "", (0,), False
        self.data: Span | bytes = b""

    def build(self, state: Any) -> None:
        _, shape, dtype, self.fortran, self.data = state
        if not isinstance(dtype, _Dtype) or not isinstance(self.data, (Span, bytes)):
            raise TypeError(f"an array of Python objects (dtype {getattr(dtype, 'code', '?')!r})")
        if not is_shape(shape):
            raise ValueError("an impossible shape")
        self.dtype, self.shape = dtype.name, tuple(shape)
        known = isinstance(self.data, bytes) or not self.data.latin1
        if self.dtype in FLOATS and known and self.size != _length(self.data):
            raise ValueError(f"{_length(self.data)} bytes for shape {list(shape)} of {self.dtype}")

    @property
    def size(self) -> int:
        return math.prod(self.shape) * FLOATS[self.dtype].itemsize

    def read(self, file: RawFile) -> np.ndarray:
        shape = self.shape[::-1] if self.fortran else self.shape
        if isinstance(self.data, Span) and not self.data.latin1:
            array = file.read_array(self.data.offset, shape, FLOATS[self.dtype])
        else:
            data = self.data
            if isinstance(data, Span):
                data = _encode(file.read(data.offset, data.length).decode("utf-8"), "latin1")
            if not isinstance(data, bytes) or len(data) != self.size:
                raise ValueError(f"not {self.size} bytes for shape {list(self.shape)} of {self.dtype}")
            array = np.frombuffer(bytearray(data), FLOATS[self.dtype]).reshape(shape)
        return np.ascontiguousarray(array.T) if self.fortran else array


def _length(data: Span | bytes) -> int:
    return data.length if isinstance(data, Span) else len(data)


def _encode(text: str | Span, encoding: str) -> bytes | Span:
    """Protocol 2 has no bytes: it writes text and `_codecs.encode(text, "latin1")`."""
    if encoding != "latin1":
        raise ValueError("text in an encoding other than latin1")
    return text if isinstance(text, Span) else text.encode("latin1")


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _encode,
    "collections.OrderedDict": lambda: {},
    # `paddle.save` of a Tensor: tuple((name, array)), by the module's name in Python 3 and in protocol 2.
    "builtins.tuple": tuple,
    "__builtin__.tuple": tuple,
}


class PdparamsFile:
    """A `.pdparams` file; raises `LlavaError` when it is damaged or holds anything but arrays."""

    def __init__(self, path: Path) -> None:
        self._file = RawFile(path)
        try:
            value = read_pickle(self._file, 0, self._file.size, _FUNCTIONS, markers=("numpy.ndarray",))
            self._tensors = _tensors(self._file, value)
        except BaseException:
            self._file.close()
            raise

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """float32, float16, bfloat16 (a `uint16` array), or numpy's code of another type."""
        return self._tensors[name].parts[0].dtype

    def read(self, name: str) -> np.ndarray:
        """A new array (`uint16` for bfloat16) of a floating-point tensor."""
        tensor = self._tensors[name]
        try:
            parts = [part.read(self._file) for part in tensor.parts]
        except ValueError as error:
            raise self._file.damaged(f"{name[:200]!r} holds {error}") from error
        return parts[0] if len(parts) == 1 else np.concatenate(parts).reshape(tensor.shape)

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class _Tensor:
    """A named tensor, in one array or cut into several flat ones."""

    shape: tuple[int, ...]
    parts: list[_Array]


def _tensors(file: RawFile, value: Any) -> dict[str, _Tensor]:
    if not isinstance(value, dict):
        raise LlavaError(f"{file.path}: not a dict of arrays; these are not weights")
    value.pop(_TABLE, None)
    split = value.pop(_SPLIT, {})
    tensors = {}
    for name, item in value.items():
        array = item[1] if isinstance(item, tuple) and len(item) == 2 else item
        if not isinstance(array, _Array) or not array.dtype:
            raise LlavaError(f"{file.path}: {name[:200]!r} is not an array; these are not weights")
        tensors[name] = _Tensor(array.shape, [array])
    try:
        for name, entry in split.items():
            slices = [tensors.pop(part) for part in entry["slices"] if isinstance(part, str)]
            tensors[name] = _joined(entry["OriginShape"], slices)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise file.damaged(f"its table {_SPLIT!r} does not fit its arrays") from error
    return tensors


def _joined(shape: Any, slices: list[_Tensor]) -> _Tensor:
    parts = [part for tensor in slices for part in tensor.parts]
    flat = all(len(part.shape) == 1 and part.dtype == parts[0].dtype for part in parts)
    if not is_shape(shape) or not flat or math.prod(shape) != sum(part.shape[0] for part in parts):
        raise ValueError
    return _Tensor(tuple(shape), parts)


class _Pending:
    """An array that is read when the pickler comes to it."""

    def __init__(self, read: Callable[[], np.ndarray]) -> None:
        self.read = read


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        return value.read().__reduce__() if isinstance(value, _Pending) else NotImplemented


def write_pdparams(
    path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], read: Callable[[str], np.ndarray]
) -> None:
    """Write `tensors` (name -> (dtype, shape)), asking `read` for one array after another."""

    def pending(name: str, dtype: str, shape: tuple[int, ...]) -> _Pending:
        return _Pending(lambda: as_stored(read(name), name, dtype, shape))

    with replacing(path) as file:
        pickler = _Pickler(file, protocol=4)
        pickler.fast = True  # no memo, which would keep every array until the end
        pickler.dump({name: pending(name, *spec) for name, spec in tensors.items()})
