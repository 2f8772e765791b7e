"""Parts of a LLaVA in every container that they are published in."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from llava_parts import Arrays, Parts, take_apart
from paddle_llava.checkpoints.names import CHECKPOINT_NAMES, canonical_name, is_linear
from paddle_llava.checkpoints.pdparams import write_pdparams
from paddle_llava.checkpoints.safetensors_file import SafetensorsFile
from paddle_llava.training.assembly import find_assembly
from paddle_llava.training.config import TrainingConfig
from reference_cases import FIXTURES


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return take_apart(FIXTURES / "v1_5", tmp_path)


def read(path: Path) -> Arrays:
    file = SafetensorsFile(path)
    try:
        return {name: file.read(name) for name in file.names()}
    finally:
        file.close()


def assembled(parts: Parts, adapter: Path) -> Arrays:
    config = TrainingConfig(
        model_name_or_path=str(parts.vicuna),
        dataset={},
        output_dir="out",
        vision_tower=str(parts.clip),
        pretrain_mm_mlp_adapter=str(adapter),
    )
    assembly = find_assembly(config, parts.vicuna)
    assert assembly is not None
    with ExitStack() as files:
        weights = assembly.weights(files)
        return {name: weights.read(name) for name in weights.names()}


def in_torch_shards(folder: Path, arrays: Arrays, write_torch: Callable[[Path, Arrays], None]) -> None:
    """As `lmsys/vicuna-7b-v1.5` is: two files and their index."""
    names = list(arrays)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, held in shards.items():
        write_torch(folder / file, {name: arrays[name] for name in held})
    weight_map = {name: file for file, held in shards.items() for name in held}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def in_paddle_file(folder: Path, arrays: Arrays) -> None:
    """As PaddleNLP has it: names of its own, Linear weights [in, out]."""
    stored = {}
    for name, array in arrays.items():
        ours = canonical_name(name, CHECKPOINT_NAMES["original"])
        turned = array.T if ours and is_linear(ours) else array
        stored[name.replace("model.", "llama.", 1)] = np.ascontiguousarray(turned)
    specs = {name: ("float32", array.shape) for name, array in stored.items()}
    write_pdparams(folder / "model_state.pdparams", specs, stored.__getitem__)


@pytest.mark.parametrize("container", ["torch", "paddle"])
def test_every_container_holds_the_same(
    parts: Parts, container: str, write_torch: Callable[[Path, Arrays], None]
) -> None:
    adapter = parts.vicuna.parent / "mm_projector.bin"
    write_torch(adapter, parts.projector)
    expected = assembled(parts, adapter)
    arrays = read(parts.vicuna / "model.safetensors")
    (parts.vicuna / "model.safetensors").unlink()
    if container == "torch":
        in_torch_shards(parts.vicuna, arrays, write_torch)
        tower = read(parts.clip / "model.safetensors")
        (parts.clip / "model.safetensors").unlink()
        write_torch(parts.clip / "pytorch_model.bin", tower)
    else:
        in_paddle_file(parts.vicuna, arrays)
    found = assembled(parts, adapter.parent)  # the folder of the projector's file is as good
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in expected)
