from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from paddle_llava.checkpoints.safetensors_file import SafetensorsFile, write_safetensors
from paddle_llava.errors import LlavaError

ARRAYS = {
    "odd": np.arange(3, dtype=np.uint16),  # before a wider one, which must stay aligned
    "wide": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.arange(4, dtype=np.float16).reshape(2, 2, 1),
    "scalar": np.array(2.5, np.float32),
}
SPECS: dict[str, tuple[str, tuple[int, ...]]] = {
    "odd": ("bfloat16", (3,)),
    "wide": ("float32", (2, 3)),
    "half": ("float16", (2, 2, 1)),
    "scalar": ("float32", ()),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, SPECS, ARRAYS.__getitem__)
    return path


def test_the_library_reads_ours(path: Path) -> None:
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(SPECS)
        assert file.get_slice("odd").get_dtype() == "BF16"
        for name in ("wide", "half", "scalar"):
            assert np.array_equal(file.get_tensor(name), ARRAYS[name])
            assert file.get_tensor(name).dtype == ARRAYS[name].dtype


def test_we_read_ours(path: Path) -> None:
    file = SafetensorsFile(path)
    for name, spec in SPECS.items():
        assert (file.dtype(name), file.shape(name)) == spec
        assert np.array_equal(file.read(name), ARRAYS[name])
    assert list(path.parent.iterdir()) == [path]


def test_every_tensor_is_aligned(path: Path) -> None:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0
    entries = json.loads(data[8 : 8 + length])
    assert all(entries[name]["data_offsets"][0] % 4 == 0 for name in ("wide", "scalar"))


def test_we_read_the_library(tmp_path: Path) -> None:
    arrays = {
        "b": np.ones((2, 3), np.float16),
        "a": np.arange(4.0),
        "i": np.arange(3),
        "empty": np.ones((0, 2), "f4"),
    }
    save_file(arrays, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert {name: file.dtype(name) for name in sorted(file.names())} == {
        "a": "F64",
        "b": "float16",
        "empty": "float32",
        "i": "I64",
    }
    assert np.array_equal(file.read("b"), arrays["b"])
    assert file.read("empty").shape == (0, 2)


def test_an_array_that_was_not_announced(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="announced"):
        write_safetensors(tmp_path / "x", {"a": ("float16", (2,))}, lambda _: np.ones(2, np.float32))
    assert not list(tmp_path.iterdir())


def raw(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: object = (1,), offsets: object = (0, 4), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BAD = {
    "empty": (b"", "lie beyond its end"),
    "three bytes": (b"abc", "lie beyond its end"),
    "header bomb": (raw({}, length=1 << 62), "a header of"),
    "header beyond the end": (raw({}, length=5000), "lie beyond its end"),
    "not JSON": (raw(b"{'a': 1}"), "not JSON"),
    "nested too deeply": (raw(b"[" * 100_000), "not JSON"),
    "endless number": (raw(b'{"a": ' + b"9" * 10_000 + b"}"), "not JSON"),
    "not an object": (raw([1]), "not a JSON object"),
    "entry is no object": (raw({"a": 3}), "'a' is malformed"),
    "no offsets": (raw({"a": {"dtype": "F32", "shape": [1]}}), "'a' is malformed"),
    "three offsets": (raw({"a": entry(offsets=[0, 4, 8])}, b"abcd"), "'a' is malformed"),
    "unknown type": (raw({"a": entry(dtype="F31")}, b"abcd"), "'a' is malformed"),
    "type is a list": (raw({"a": entry(dtype=["F32"])}, b"abcd"), "'a' is malformed"),
    "negative shape": (raw({"a": entry([-1, -1])}, b"abcd"), "impossible"),
    "boolean shape": (raw({"a": entry([True])}, b"abcd"), "impossible"),
    "fractional shape": (raw({"a": entry([1.0])}, b"abcd"), "impossible"),
    "many dimensions": (raw({"a": entry([1] * 9)}, b"abcd"), "impossible"),
    "negative offset": (raw({"a": entry(offsets=[-4, 0])}, b"abcd"), "impossible"),
    "size and shape differ": (raw({"a": entry([2])}, b"abcd"), "'a' has 4 bytes for shape [2]"),
    "backwards": (raw({"a": entry(offsets=[4, 0])}, b"abcd"), "'a' has -4 bytes"),
    "overlap": (raw({"a": entry(), "b": entry()}, b"abcd"), "'b' begins at 0, where 4 is expected"),
    "hole": (raw({"a": entry(offsets=[4, 8])}, b"abcdefgh"), "'a' begins at 4"),
    "truncated": (raw({"a": entry()}, b"abc"), "bytes where its header announces"),
    "longer": (raw({"a": entry()}, b"abcde"), "bytes where its header announces"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "git lfs pull"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path: Path, case: str) -> None:
    data, message = BAD[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(LlavaError) as raised:
        SafetensorsFile(path)
    text = str(raised.value)
    assert str(path) in text
    assert message in text
    assert "\n" not in text


def test_truncated_anywhere(path: Path) -> None:
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(LlavaError):
            SafetensorsFile(path)


def test_truncated_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"a": ("float32", (10**6,))}, lambda _: np.ones(10**6, np.float32))
    file = SafetensorsFile(path)
    os.truncate(path, 10**6)
    with pytest.raises(LlavaError, match="shrunk"):
        file.read("a")


def test_threads_read_one_file(tmp_path: Path) -> None:
    names = [f"tensor {number}" for number in range(400)]
    write_safetensors(
        tmp_path / "x", dict.fromkeys(names, ("float32", (5000,))), lambda n: np.full(5000, names.index(n), "f4")
    )
    file = SafetensorsFile(tmp_path / "x")
    with ThreadPoolExecutor(8) as pool:
        assert [set(array) for array in pool.map(file.read, names)] == [{number} for number in range(400)]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LlavaError, match="cannot be read"):
        SafetensorsFile(tmp_path / "no.safetensors")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def read(name: str) -> np.ndarray:
        if name == "half":
            raise KeyboardInterrupt
        return ARRAYS[name]

    with pytest.raises(KeyboardInterrupt):
        write_safetensors(tmp_path / "model.safetensors", SPECS, read)
    assert not list(tmp_path.iterdir())


def test_the_earlier_file_survives_a_failed_write(path: Path) -> None:
    before = path.read_bytes()
    fail: Callable[[str], np.ndarray] = {}.__getitem__
    with pytest.raises(KeyError):
        write_safetensors(path, SPECS, fail)
    assert path.read_bytes() == before
