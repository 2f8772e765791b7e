from __future__ import annotations

import errno
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from paddle_llava.checkpoints.config_file import config_to_dict
from paddle_llava.checkpoints.dtypes import to_dtype
from paddle_llava.checkpoints.names import parameter_shapes, stored_names
from paddle_llava.checkpoints.read import open_checkpoint
from paddle_llava.checkpoints.write import ArraySource, write_checkpoint
from paddle_llava.config import Layout, LlavaConfig, TextConfig, VisionConfig
from paddle_llava.errors import LlavaError

Arrays = dict[str, np.ndarray]
LAYOUTS: list[Layout] = ["hf", "original", "paddle"]


def read_config(folder: Path) -> LlavaConfig:
    raw = json.loads((folder / "config.json").read_text())
    return LlavaConfig.from_dict(raw, where=str(folder))


def read_folder(folder: Path) -> Arrays:
    with open_checkpoint(folder, read_config(folder)) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.names()}


def same(found: Arrays, expected: Arrays) -> bool:
    return found.keys() == expected.keys() and all(
        np.array_equal(array, expected[name]) and array.dtype == expected[name].dtype for name, array in found.items()
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("version", ["v15", "v16"])
def test_round_the_layouts(
    request: pytest.FixtureRequest, make_arrays: Callable, tmp_path: Path, version: str, dtype: str
) -> None:
    """hf -> paddle -> original -> hf, in small shards: the same bit for bit, and the same configuration."""
    config: LlavaConfig = request.getfixturevalue(version)
    expected = make_arrays(config, dtype)
    folder = tmp_path / "0"
    write_checkpoint(folder, config, ArraySource(expected), "hf")
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    for step, layout in enumerate(("paddle", "original", "hf"), start=1):
        with open_checkpoint(folder, read_config(folder)) as checkpoint:
            folder = tmp_path / str(step)
            write_checkpoint(folder, config, checkpoint, layout, max_shard_bytes=5000)
        assert len(list(folder.glob("*-of-*"))) > 3
        assert same(read_folder(folder), expected)
    with open_checkpoint(folder, read_config(folder)) as checkpoint:
        write_checkpoint(tmp_path / "whole", config, checkpoint, "hf")
    assert {p.name for p in (tmp_path / "whole").iterdir()} == set(first)
    for name in first:
        if name.endswith(".json"):
            assert (tmp_path / "whole" / name).read_bytes() == first[name]


def test_others_read_our_files(v16: LlavaConfig, make_arrays: Callable, tmp_path: Path) -> None:
    arrays = make_arrays(v16)
    for layout in LAYOUTS:
        write_checkpoint(tmp_path / layout, v16, ArraySource(arrays), layout)
    names = stored_names(v16, "hf")
    theirs = load_file(tmp_path / "hf" / "model.safetensors")
    assert theirs.keys() == set(names.values())
    q_proj = "language_model.layers.0.self_attn.q_proj.weight"
    assert np.array_equal(theirs[names[q_proj]], arrays[q_proj].T)
    state = paddle.load(str(tmp_path / "paddle" / "model_state.pdparams"))
    assert np.array_equal(state["llama.layers.0.self_attn.q_proj.weight"].numpy(), arrays[q_proj])
    assert "model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias" in load_file(
        tmp_path / "original" / "model.safetensors"
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shards_and_their_index(v16: LlavaConfig, make_arrays: Callable, tmp_path: Path, layout: Layout) -> None:
    limit = 6000
    arrays = make_arrays(v16)
    write_checkpoint(tmp_path, v16, ArraySource(arrays), layout, max_shard_bytes=limit)
    stem = "model_state.pdparams" if layout == "paddle" else "model.safetensors"
    index = json.loads((tmp_path / f"{stem}.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())
    assert index["weight_map"].keys() == set(stored_names(v16, layout).values())
    files = sorted(set(index["weight_map"].values()))
    prefix, suffix = stem.split(".")
    assert files == [f"{prefix}-{i + 1:05d}-of-{len(files):05d}.{suffix}" for i in range(len(files))]
    assert sorted(p.name for p in tmp_path.glob(f"*.{suffix}")) == files
    for file in files:
        if layout == "paddle":
            shard = paddle.load(str(tmp_path / file), return_numpy=True)
        else:
            shard = load_file(tmp_path / file)
        assert shard.keys() == {name for name, where in index["weight_map"].items() if where == file}
        assert sum(array.nbytes for array in shard.values()) <= limit or len(shard) == 1


def test_settings_of_hf(v15: LlavaConfig, make_folder: Callable) -> None:
    config = replace(v15, text=replace(v15.text, pad_token_id=3, eos_token_id=(2, 7)))
    folder = make_folder(config)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": 3}
    assert json.loads((folder / "config.json").read_text()) == config_to_dict(config, "hf")
    assert not (make_folder(config, "paddle") / "generation_config.json").exists()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_casts(v15: LlavaConfig, make_arrays: Callable, tmp_path: Path, dtype: str, layout: Layout) -> None:
    arrays = make_arrays(v15)
    write_checkpoint(tmp_path, v15, ArraySource(arrays), layout, dtype=dtype)
    assert same(read_folder(tmp_path), {n: to_dtype(a, "float32", dtype) for n, a in arrays.items()})
    assert read_config(tmp_path).dtype == dtype


def test_mixed_dtypes_stay(v15: LlavaConfig, make_arrays: Callable, tmp_path: Path) -> None:
    """As a half-precision v1.5 with a vision tower in float32."""
    arrays = make_arrays(v15)
    mixed = {n: a if n.startswith("vision_tower.") else a.astype(np.float16) for n, a in arrays.items()}
    for layout in LAYOUTS:
        write_checkpoint(tmp_path / layout, v15, ArraySource(mixed), layout)
        assert same(read_folder(tmp_path / layout), mixed)
    with safe_open(tmp_path / "hf" / "model.safetensors", "numpy") as file:
        assert file.get_slice("multi_modal_projector.linear_1.bias").get_dtype() == "F16"


def test_overflow_is_refused_by_name(v15: LlavaConfig, make_arrays: Callable, tmp_path: Path) -> None:
    arrays = make_arrays(v15)
    arrays["projector.0.bias"][0] = 1e6
    with pytest.raises(LlavaError, match=r"projector\.0\.bias: .*do not fit float16"):
        write_checkpoint(tmp_path, v15, ArraySource(arrays), "hf", dtype="float16")
    assert not list(tmp_path.iterdir())


def test_unknown_dtype(v15: LlavaConfig, make_arrays: Callable, tmp_path: Path) -> None:
    with pytest.raises(LlavaError, match="'int8' is not supported"):
        write_checkpoint(tmp_path, v15, ArraySource(make_arrays(v15)), "hf", dtype="int8")


def test_a_projector_that_hf_does_not_have(v15: LlavaConfig, make_arrays: Callable, tmp_path: Path) -> None:
    for kind in ("linear", "mlp3x_gelu"):
        config = replace(v15, projector_type=kind)
        arrays = make_arrays(config)
        for layout in ("original", "paddle"):
            folder = tmp_path / kind / layout
            write_checkpoint(folder, config, ArraySource(arrays), layout)
            assert same(read_folder(folder), arrays)
        with pytest.raises(LlavaError, match=kind):
            write_checkpoint(tmp_path / "hf", config, ArraySource(arrays), "hf")
    assert not (tmp_path / "hf").exists()


def test_tensors_of_another_model(v15: LlavaConfig, make_arrays: Callable, tmp_path: Path) -> None:
    arrays = make_arrays(v15)
    arrays.pop("projector.0.bias")
    with pytest.raises(ValueError, match="not those of the configuration"):
        write_checkpoint(tmp_path, v15, ArraySource(arrays), "hf")


def test_progress(v15: LlavaConfig, make_arrays: Callable, tmp_path: Path) -> None:
    arrays = make_arrays(v15)
    told: list[tuple[int, int]] = []
    write_checkpoint(tmp_path, v15, ArraySource(arrays), "hf", progress=lambda *now: told.append(now))
    total = sum(array.nbytes for array in arrays.values())
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (total, total)
    assert len(told) == len(arrays)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_killed_write_is_no_checkpoint(
    v15: LlavaConfig, make_arrays: Callable, tmp_path: Path, layout: Layout
) -> None:
    """Neither in an empty folder nor over an earlier checkpoint; and writing again repairs it."""
    arrays = make_arrays(v15)

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(tmp_path, v15, ArraySource(arrays), layout, max_shard_bytes=5000, progress=stop)
        assert not (tmp_path / "config.json").exists()
        assert not list(tmp_path.glob("*.index.json"))
        assert not list(tmp_path.glob("*.tmp"))
        with pytest.raises(LlavaError, match="shards are missing"):
            open_checkpoint(tmp_path, v15)
        write_checkpoint(tmp_path, v15, ArraySource(arrays), layout, max_shard_bytes=5000)
        assert same(read_folder(tmp_path), arrays)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_earlier_checkpoint_is_replaced(
    v15: LlavaConfig, v16: LlavaConfig, make_arrays: Callable, tmp_path: Path, layout: Layout
) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    leftover = "model_state.pdparams.tmp" if layout == "paddle" else "model.safetensors.tmp"
    for config, limit in ((v16, 4000), (v15, 9000), (v16, 10**9), (v15, 4000)):
        (tmp_path / leftover).touch()
        write_checkpoint(tmp_path, config, ArraySource(make_arrays(config)), layout, max_shard_bytes=limit)
        assert same(read_folder(tmp_path), make_arrays(config))
        found = {path.name for path in tmp_path.glob("model*")}
        expected = {leftover.removesuffix(".tmp")}
        for index in tmp_path.glob("*.index.json"):
            expected = {index.name, *json.loads(index.read_text())["weight_map"].values()}
        assert found == expected
    assert (tmp_path / "tokenizer.json").exists()


def test_onto_itself(v15: LlavaConfig, make_folder: Callable, make_arrays: Callable) -> None:
    folder = make_folder(v15)
    with (
        open_checkpoint(folder, v15) as checkpoint,
        pytest.raises(LlavaError, match="holds the weights that are being read"),
    ):
        write_checkpoint(folder / ".." / folder.name, v15, checkpoint, "hf")
    assert same(read_folder(folder), make_arrays(v15))


def test_beside_another_container(v15: LlavaConfig, make_folder: Callable, make_arrays: Callable) -> None:
    folder = make_folder(v15)
    with pytest.raises(LlavaError, match=r"holds weights in \.safetensors files already"):
        write_checkpoint(folder, v15, ArraySource(make_arrays(v15)), "paddle")
    assert same(read_folder(folder), make_arrays(v15))


def test_a_full_disk_is_noticed_before(
    v15: LlavaConfig, make_arrays: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = make_arrays(v15)
    needed = sum(array.nbytes for array in arrays.values())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 7, 7))
    with pytest.raises(LlavaError, match=rf"{tmp_path}: .*{needed} bytes are needed, 7 are free"):
        write_checkpoint(tmp_path, v15, ArraySource(arrays), "hf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_disk_that_fills_up(
    v15: LlavaConfig, make_arrays: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Layout
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LlavaError, match=r"the disk is too full: \d+ bytes are needed, \d+ are free"):
        write_checkpoint(tmp_path, v15, ArraySource(make_arrays(v15)), layout)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file(v15: LlavaConfig, make_arrays: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LlavaError, match="cannot be written"):
        write_checkpoint(tmp_path / "file", v15, ArraySource(make_arrays(v15)), "hf")


TENSOR = 512 * 1024 * 4


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> tuple[LlavaConfig, Path]:
    """24 matrices of 2 MB and 32 of 1 MB, in one shard."""
    vision = VisionConfig(16, 16, 1, 2, image_size=8, patch_size=4)
    text = TextConfig(64, 512, 1024, 8, 4, 4, 128)
    config = LlavaConfig(vision, text, image_token_id=63)
    arrays = {name: np.full(shape, 0.5, np.float32) for name, shape in parameter_shapes(config).items()}
    folder = tmp_path_factory.mktemp("heavy")
    write_checkpoint(folder, config, ArraySource(arrays), "hf")
    return config, folder


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("route", [("hf",), ("paddle", "original"), ("original", "paddle")])
def test_memory_of_a_few_tensors(
    heavy: tuple[LlavaConfig, Path], tmp_path: Path, route: tuple[Layout, ...], dtype: str | None
) -> None:
    """Converting needs the memory of a few tensors, whatever the size of a shard (80 MB here)."""
    config, folder = heavy
    for layout in route:
        tracemalloc.start()
        try:
            with open_checkpoint(folder, config) as checkpoint:
                assert tracemalloc.get_traced_memory()[1] < TENSOR  # nothing but headers so far
                write_checkpoint(tmp_path / layout, config, checkpoint, layout, dtype=dtype)
            assert tracemalloc.get_traced_memory()[1] < 5 * TENSOR
        finally:
            tracemalloc.stop()
        folder = tmp_path / layout
