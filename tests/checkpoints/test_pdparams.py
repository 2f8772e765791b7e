from __future__ import annotations

import os
import pickle
import struct
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from paddle_llava.checkpoints import pickle_stream
from paddle_llava.checkpoints.pdparams import PdparamsFile, write_pdparams
from paddle_llava.errors import LlavaError

LARGE = np.arange(3000, dtype=np.float32).reshape(60, 50)  # its bytes are text of more than 4096 bytes in protocol 2


def load(path: Path) -> dict[str, np.ndarray]:
    file = PdparamsFile(path)
    return {name: file.read(name) for name in file.names()}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(
        np.array_equal(array, expected[name]) and array.dtype == expected[name].dtype for name, array in found.items()
    )


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_we_read_paddle(tmp_path: Path, protocol: int) -> None:
    layer = paddle.nn.Linear(60, 50)
    state = layer.state_dict()
    state["half"] = paddle.to_tensor(LARGE).cast("float16")
    state["brain"] = paddle.to_tensor(LARGE).cast("bfloat16")
    path = tmp_path / "model_state.pdparams"
    paddle.save(state, str(path), protocol=protocol)
    expected = {name: tensor.numpy() for name, tensor in state.items()}
    assert same(load(path), expected)
    assert [PdparamsFile(path).dtype(name) for name in expected] == [
        "float32",
        "float32",
        "float16",
        "bfloat16",
    ]


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_we_read_tensors_with_their_names(tmp_path: Path, protocol: int) -> None:
    """In a dict that is not a state dict, `paddle.save` writes (name, array) for a Tensor."""
    path = tmp_path / "x.pdparams"
    tensors = {"a": paddle.to_tensor(LARGE), "b": paddle.ones([2], "bfloat16")}
    with path.open("wb") as file:
        paddle.framework.io._pickle_save(tensors, file, protocol)
    assert b"tuple" in path.read_bytes()
    assert same(load(path), {name: tensor.numpy() for name, tensor in tensors.items()})


@pytest.mark.parametrize("protocol", [2, 3])
def test_arrays_that_paddle_has_cut(tmp_path: Path, protocol: int) -> None:
    """Beyond 1 GiB `paddle.save` cuts arrays in protocols 2 and 3; here as if beyond a few numbers."""
    cut = {
        "b": LARGE,
        "a@@.0": LARGE.reshape(-1)[:2000],
        "a@@.1": LARGE.reshape(-1)[2000:],
        "UnpackBigParamInfor@@": {"a": {"OriginShape": (60, 50), "slices": ["a@@.0", "a@@.1"]}},
    }
    path = tmp_path / "x.pdparams"
    path.write_bytes(pickle.dumps(cut, protocol))
    assert same(load(path), {"a": LARGE, "b": LARGE})
    assert PdparamsFile(path).shape("a") == (60, 50)


def test_plain_numpy(tmp_path: Path) -> None:
    arrays = OrderedDict(
        fortran=np.asfortranarray(LARGE),
        reversed=LARGE[::-1, ::2],
        scalar=np.array(1.5, np.float32),
        small=np.ones(2, np.float16),
    )
    for protocol in (2, 3, 4):
        path = tmp_path / f"{protocol}.pdparams"
        path.write_bytes(pickle.dumps(arrays, protocol))
        assert same(load(path), dict(arrays))


def test_names_of_older_numpy(tmp_path: Path) -> None:
    path = tmp_path / "x.pdparams"
    path.write_bytes(pickle.dumps({"a": LARGE}, 3).replace(b"numpy._core.", b"numpy.core."))
    assert b"numpy.core.multiarray" in path.read_bytes()
    assert same(load(path), {"a": LARGE})


def test_paddle_reads_ours(tmp_path: Path) -> None:
    arrays = {"w": LARGE, "b": np.arange(3, dtype=np.float16), "bf": np.full((2, 2), 0x3FC0, np.uint16)}
    specs: dict[str, tuple[str, tuple[int, ...]]] = {
        "w": ("float32", (60, 50)),
        "b": ("float16", (3,)),
        "bf": ("bfloat16", (2, 2)),
    }
    path = tmp_path / "x.pdparams"
    write_pdparams(path, specs, arrays.__getitem__)
    assert same(load(path), arrays)
    assert same(paddle.load(str(path), return_numpy=True), arrays)
    layer = paddle.nn.Layer()
    layer.w = layer.create_parameter([60, 50])
    layer.bf = layer.create_parameter([2, 2], dtype="bfloat16")
    missing, unexpected = layer.set_state_dict(paddle.load(str(path)))
    assert (missing, unexpected) == ([], ["b"])
    assert np.array_equal(layer.w.numpy(), LARGE)
    assert layer.bf.cast("float32").numpy().tolist() == [[1.5, 1.5], [1.5, 1.5]]


def test_an_array_that_was_not_announced(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="announced"):
        write_pdparams(tmp_path / "x", {"a": ("float16", (2,))}, lambda _: np.ones(2, np.float32))
    assert not list(tmp_path.iterdir())


class Call:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


class Loaded:
    """Pickles as an object of a class, by NEWOBJ and BUILD."""


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_nothing_is_called(tmp_path: Path, protocol: int) -> None:
    mark, path = tmp_path / "mark", tmp_path / "x.pdparams"
    values = [
        Call(os.system, (f"touch {mark}",)),
        Call(eval, (f"open({str(mark)!r}, 'w')",)),
        Call(eval, ("data", {"data": 1})),  # as `paddle.save` writes a DenseTensor
        Call(np.load, (str(mark),)),
        Call(np.memmap, (str(mark), "u1", "w+", 0, 8)),
        Loaded(),
        LARGE.view(np.recarray),
        {1, 2},
    ]
    for value in values:
        path.write_bytes(pickle.dumps({"a": value}, protocol))
        with pytest.raises(LlavaError) as raised:
            load(path)
        assert "\n" not in str(raised.value)
        assert not mark.exists()


def test_the_forbidden_global_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pdparams"
    path.write_bytes(pickle.dumps({"a": Call(os.system, ("true",))}, 4))
    with pytest.raises(LlavaError, match=rf"'{os.name}\.system'.*is not run"):
        load(path)


def dumped(value: Any) -> bytes:
    return pickle.dumps(value, 4)


SHORT = np.ones(2, np.float32)
BAD = {
    "empty": (b"", "ends too early"),
    "object array": (dumped({"a": np.array([None, 1], object)}), "array of Python objects (dtype 'O8')"),
    "big-endian": (dumped({"a": np.ones(2, ">f4")}), "big-endian"),
    "shape too large": (dumped({"a": SHORT}).replace(b"K\x02\x85", b"K\x03\x85"), "8 bytes for shape [3]"),
    "negative shape": (
        dumped({"a": np.ones(70000, "f4")}).replace(struct.pack("<i", 70000), struct.pack("<i", -70000)),
        "impossible shape",
    ),
    "a list": (dumped([SHORT]), "not a dict of arrays"),
    "a number": (dumped({"a": 3}), "'a' is not an array"),
    "nested dict": (dumped({"a": {"b": SHORT}}), "'a' is not an array"),
    "unfinished array": (
        b"\x80\x04}\x8c\x01acnumpy._core.multiarray\n_reconstruct\n)Rs.",
        "'a' is not an array",
    ),
    "bytes beyond the end": (b"\x80\x04}\x8c\x01aB\xff\xff\xff\x7fs.", "ends too early"),
    "endless text": (b"\x80\x04}\x8d\xff\xff\xff\xff\xff\xff\xff\x7fs.", "ends too early"),
    "memo of nothing": (b"\x80\x04h\x07.", "KeyError"),
    "empty stack": (b"\x80\x04.", "IndexError"),
    "no mark": (b"\x80\x04t.", "no mark"),
    "keys that are not text": (b"\x80\x04}K\x01K\x01s.", "keys other than text"),
    "half an item": (b"\x80\x04}(X\x01\x00\x00\x00au.", "makes no sense"),
    "call of a marker": (b"\x80\x04cnumpy\nndarray\n)R.", "makes no sense"),
    "call of a number": (b"\x80\x04K\x01)R.", "makes no sense"),
    "state for a function": (b"\x80\x04ccollections\nOrderedDict\n}b.", "takes none"),
    "persistent id": (b"\x80\x04K\x01Q.", "opcode b'Q'"),
    "INST": (b"(ios\nsystem\n.", "opcode b'i'"),
    "extension": (b"\x80\x04\x82\x01.", "opcode"),
    "long name": (b"c" + b"a" * 1000 + b"\nb\n.", "200 bytes"),
    "name that is not text": (b"\x80\x04K\x01K\x02\x93.", "'?'"),
    "table without arrays": (
        dumped({"UnpackBigParamInfor@@": {"a": {"OriginShape": (2,), "slices": ["x"]}}}),
        "UnpackBigParamInfor@@",
    ),
    "table of another shape": (
        dumped({"x": SHORT, "UnpackBigParamInfor@@": {"a": {"OriginShape": (3,), "slices": ["x"]}}}),
        "UnpackBigParamInfor@@",
    ),
    "text for a table": (dumped({"UnpackBigParamInfor@@": "a"}), "UnpackBigParamInfor@@"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path: Path, case: str) -> None:
    data, message = BAD[case]
    path = tmp_path / "x.pdparams"
    path.write_bytes(data)
    with pytest.raises(LlavaError) as raised:
        load(path)
    text = str(raised.value)
    assert str(path) in text
    assert message in text
    assert "\n" not in text


def test_a_tower_of_tuples_takes_no_time(tmp_path: Path) -> None:
    """(t, t) of (t, t) of ...: whatever hashes, compares or prints it runs forever."""
    tower = b")" + b"r\x00\x00\x10\x00j\x00\x00\x10\x00\x86" * 200
    table = {"a": {"OriginShape": (2,), "slices": [12345]}}
    place = b"M\x39\x30"  # of the number 12345
    pickles = {
        "key": b"\x80\x02}" + tower + b"K\x01s.",
        "value": pickle.dumps({"a": 12345}, 2),
        "dtype": pickle.dumps({"a": SHORT}, 2).replace(b"X\x02\x00\x00\x00f4", place),
        "shape": pickle.dumps({"a": SHORT}, 2).replace(b"K\x02\x85", place),
        "function": b"\x80\x02" + tower + b")R.",
        "slice": pickle.dumps({"x": SHORT, "UnpackBigParamInfor@@": table}, 2),
    }
    started = time.monotonic()
    for case, data in pickles.items():
        assert place in data or tower in data, case
        (tmp_path / "x.pdparams").write_bytes(data.replace(place, tower))
        with pytest.raises(LlavaError):
            load(tmp_path / "x.pdparams")
    assert time.monotonic() - started < 2


def test_memory_for_what_is_not_arrays_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_stream, "MAX_READ_BYTES", 1000)
    path = tmp_path / "x.pdparams"
    path.write_bytes(b"\x80\x02" + b"N" * 2000 + b".")
    with pytest.raises(LlavaError, match="more than 1000 bytes beside the arrays"):
        load(path)


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "x.pdparams"
    data = dumped({"a": LARGE, "b": SHORT})
    for length in [*range(0, 400, 3), *range(400, len(data), 499)]:
        path.write_bytes(data[:length])
        with pytest.raises(LlavaError):
            load(path)


@pytest.mark.parametrize("protocol", [2, 4])
def test_damaged_anywhere(tmp_path: Path, protocol: int) -> None:
    """A flipped byte gives other numbers, other names, or a `LlavaError`; never another exception."""
    path = tmp_path / "x.pdparams"
    data = pickle.dumps({"a": SHORT, "b": (("n", SHORT)), "c": LARGE[:30]}, protocol)
    for place in [*range(0, 500, 2), *range(500, len(data), 97)]:
        for flip in (0x01, 0xFF):
            path.write_bytes(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
            try:
                file = PdparamsFile(path)
                for name in file.names():
                    if file.dtype(name) == "float32":
                        file.read(name)
            except LlavaError:
                pass
