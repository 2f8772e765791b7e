"""Small models, and torch files written without torch."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paddle_llava.checkpoints.names import parameter_shapes
from paddle_llava.checkpoints.write import ArraySource, write_checkpoint
from paddle_llava.config import Layout, LlavaConfig, TextConfig, VisionConfig

Arrays = dict[str, np.ndarray]


@pytest.fixture
def v15() -> LlavaConfig:
    """Grouped-query heads, and no two sides alike, so that a wrong transpose shows."""
    vision = VisionConfig(
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    text = TextConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
    )
    name = "openai/clip-vit-large-patch14-336"
    return LlavaConfig(vision, text, image_token_id=39, image_aspect_ratio="pad", vision_tower_name=name)


@pytest.fixture
def v16(v15: LlavaConfig) -> LlavaConfig:
    return replace(v15, image_aspect_ratio="anyres", image_grid_pinpoints=((8, 16), (16, 8)))


@pytest.fixture
def make_arrays() -> Callable[..., Arrays]:
    def make(config: LlavaConfig, dtype: str = "float32") -> Arrays:
        random = np.random.default_rng(0)
        arrays = {n: random.standard_normal(s, dtype=np.float32) for n, s in parameter_shapes(config).items()}
        if dtype == "bfloat16":
            return {name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in arrays.items()}
        return {name: array.astype(dtype) for name, array in arrays.items()}

    return make


@pytest.fixture
def make_folder(tmp_path: Path, make_arrays: Callable[..., Arrays]) -> Callable[..., Path]:
    """Write a random model in a layout; gives its folder."""

    def make(config: LlavaConfig, layout: Layout = "hf", dtype: str = "float32", shard: int = 10**9) -> Path:
        folder = tmp_path / f"{layout}-{dtype}"
        arrays = make_arrays(config, dtype)
        write_checkpoint(folder, config, ArraySource(arrays), layout, max_shard_bytes=shard)
        return folder

    return make


@pytest.fixture
def zipped() -> Callable[..., None]:
    """Write a torch file of the pickle and the storages given."""

    def write(path: Path, pickled: bytes, storages: Mapping[str, bytes] = {}, method: int = zipfile.ZIP_STORED) -> None:
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/byteorder", b"little")
            for key, data in storages.items():
                archive.writestr(f"archive/data/{key}", data)

    return write


@pytest.fixture
def write_torch(zipped: Callable[..., None]) -> Callable[[Path, Arrays], None]:
    """What `torch.save` would write of a dict of arrays, spelled out opcode by opcode."""
    storages = {
        "float32": "FloatStorage",
        "float16": "HalfStorage",
        "uint16": "BFloat16Storage",
        "int64": "LongStorage",
    }

    def value(item: object) -> bytes:
        return pickle.dumps(item, 2)[2:-1]  # without PROTO and STOP

    def write(path: Path, arrays: Arrays) -> None:
        out = io.BytesIO()
        out.write(b"\x80\x02}(")
        for key, (name, array) in enumerate(arrays.items()):
            strides = tuple(stride // array.itemsize for stride in array.strides)
            out.write(b"X" + struct.pack("<I", len(name)) + name.encode())
            out.write(b"ctorch._utils\n_rebuild_tensor_v2\n(")
            out.write(b"(X\x07\x00\x00\x00storage" + b"ctorch\n" + storages[str(array.dtype)].encode() + b"\n")
            out.write(value(str(key)) + value("cpu") + value(array.size) + b"tQ")
            out.write(value(0) + value(array.shape) + value(strides) + b"\x89ccollections\nOrderedDict\n)RtR")
        out.write(b"u.")
        zipped(path, out.getvalue(), {str(key): array.tobytes() for key, array in enumerate(arrays.values())})

    return write
