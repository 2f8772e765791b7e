from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddle_llava.checkpoints.torch_zip import TorchFile
from paddle_llava.errors import LlavaError

FIXTURES = Path(__file__).parent / "fixtures"  # see make_torch_fixtures.py
BASE = np.arange(24, dtype=np.float32).reshape(4, 6)
SEVENTHS = np.arange(6, dtype=np.float32) / 7


def test_torch_wrote_it() -> None:
    file = TorchFile(FIXTURES / "tensors.bin")
    expected = {
        "float32": SEVENTHS.reshape(2, 3),
        "float16": SEVENTHS.astype(np.float16),
        "transposed": BASE.T,
        "sliced": BASE[1:3, ::2],
        "second_row": BASE[1],
        "scalar": np.array(2.5, np.float32),
        "parameter": np.full(3, 0.5, np.float32),
    }
    for name, array in expected.items():
        found = file.read(name)
        assert found.flags.c_contiguous
        assert np.array_equal(found, array), name
        assert found.shape == file.shape(name)
        assert file.dtype(name) == str(array.dtype)
    assert file.dtype("bfloat16") == "bfloat16"
    wide = (file.read("bfloat16").astype(np.uint32) << 16).view(np.float32)
    assert np.allclose(wide, SEVENTHS, rtol=2**-8)
    assert file.dtype("position_ids") == "int64"
    assert set(file.names()) == {*expected, "bfloat16", "position_ids"}


def test_state_dict_of_a_module() -> None:
    file = TorchFile(FIXTURES / "state_dict.bin")
    assert {name: file.shape(name) for name in file.names()} == {"weight": (3, 2), "bias": (3,)}


def test_our_stand_in_for_torch_is_faithful(tmp_path: Path, write_torch: Callable[..., None]) -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(3, dtype=np.uint16)}
    write_torch(tmp_path / "x.bin", arrays)
    file = TorchFile(tmp_path / "x.bin")
    assert all(np.array_equal(file.read(name), array) for name, array in arrays.items())
    assert [file.dtype(name) for name in arrays] == ["float32", "bfloat16"]


def test_before_zip() -> None:
    with pytest.raises(LlavaError, match=r"before 1\.6.*convert it to safetensors"):
        TorchFile(FIXTURES / "before_zip.bin")


def test_a_whole_module_is_refused() -> None:
    with pytest.raises(LlavaError, match=r"'torch\.nn\.modules\.linear\.Linear'"):
        TorchFile(FIXTURES / "whole_module.bin")


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("function", "argument", "name"),
    [
        (os.system, "touch {}", "system"),
        (eval, "open('{}', 'w')", "eval"),
        (exec, "open('{}', 'w')", "exec"),
        (Path, "{}", "Path"),
        (getattr, "{}", "getattr"),
    ],
)
def test_nothing_is_called(
    tmp_path: Path, zipped: Callable[..., None], protocol: int, function: Any, argument: str, name: str
) -> None:
    mark = tmp_path / "mark"
    pickled = pickle.dumps({"weight": Call(function, argument.format(mark))}, protocol)
    zipped(tmp_path / "evil.bin", pickled)
    with pytest.raises(LlavaError, match=name) as raised:
        TorchFile(tmp_path / "evil.bin")
    assert "\n" not in str(raised.value)
    assert not mark.exists()


TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
REST = b"\x89ccollections\nOrderedDict\n)RtR"


def tensor(offset: bytes = b"K\x00", shape: bytes = b"K\x04\x85", strides: bytes = b"K\x01\x85") -> bytes:
    return b"\x80\x02}X\x01\x00\x00\x00a" + TENSOR + b"(" + STORAGE + offset + shape + strides + REST + b"s."


def test_the_hand_made_tensor_is_good(tmp_path: Path, zipped: Callable[..., None]) -> None:
    zipped(tmp_path / "x.bin", tensor(), {"0": np.arange(4, dtype=np.float32).tobytes()})
    assert TorchFile(tmp_path / "x.bin").read("a").tolist() == [0, 1, 2, 3]


BAD_TENSORS = {
    "offset beyond": (tensor(offset=b"K\x01"), "beyond its storage"),
    "shape beyond": (tensor(shape=b"K\x05\x85"), "beyond its storage"),
    "stride beyond": (tensor(strides=b"K\x02\x85"), "beyond its storage"),
    "expanded bomb": (tensor(shape=b"J\xff\xff\xff\x7f\x85", strides=b"K\x00\x85"), "beyond its storage"),
    "negative offset": (tensor(offset=b"J\xff\xff\xff\xff"), "malformed tensor"),
    "negative stride": (tensor(strides=b"J\xff\xff\xff\xff\x85"), "impossible shape"),
    "more strides": (tensor(strides=b"K\x01K\x01\x86"), "impossible shape"),
    "shape is a number": (tensor(shape=b"K\x04"), "impossible shape"),
    "storage is a number": (tensor().replace(STORAGE, b"K\x04"), "malformed tensor"),
    "no such storage type": (tensor().replace(b"FloatStorage", b"QUInt8Storage"), "'torch.QUInt8Storage'"),
    "no such record": (
        tensor().replace(b"\x00\x00\x000X", b"\x00\x00\x001X"),
        "storage of 'a' is not all there",
    ),
    "storage too short": (tensor().replace(b"cpuK\x04", b"cpuK\x05"), "storage of 'a' is not all there"),
    "a list": (b"\x80\x02].", "not a dict of tensors"),
    "a number": (b"\x80\x02}X\x01\x00\x00\x00aK\x01s.", "'a' is not a tensor"),
    "an empty pickle": (b"", "ends too early"),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_tensors(tmp_path: Path, zipped: Callable[..., None], case: str) -> None:
    pickled, message = BAD_TENSORS[case]
    zipped(tmp_path / "x.bin", pickled, {"0": bytes(16)})
    with pytest.raises(LlavaError) as raised:
        TorchFile(tmp_path / "x.bin")
    assert message in str(raised.value)


def test_truncated_anywhere(tmp_path: Path) -> None:
    data = (FIXTURES / "tensors.bin").read_bytes()
    path = tmp_path / "x.bin"
    for length in range(0, len(data), 11):
        path.write_bytes(data[:length])
        with pytest.raises(LlavaError):
            TorchFile(path)


def test_damaged_anywhere(tmp_path: Path) -> None:
    """A flipped byte gives other numbers, other names, or a `LlavaError`; never another exception."""
    data = (FIXTURES / "tensors.bin").read_bytes()
    path = tmp_path / "x.bin"
    for place in range(0, len(data), 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        try:
            file = TorchFile(path)
            for name in file.names():
                if file.dtype(name) == "float32":
                    file.read(name)
        except LlavaError:
            pass


def test_compressed_records_are_refused(tmp_path: Path, zipped: Callable[..., None]) -> None:
    zipped(tmp_path / "x.bin", tensor(), {"0": bytes(16)}, method=zipfile.ZIP_DEFLATED)
    with pytest.raises(LlavaError, match="not a zip archive as PyTorch writes it"):
        TorchFile(tmp_path / "x.bin")


def test_other_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(LlavaError, match=r"no data\.pkl"):
        TorchFile(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", tensor())
        archive.writestr("x/byteorder", "big")
    with pytest.raises(LlavaError, match="big-endian"):
        TorchFile(path)
