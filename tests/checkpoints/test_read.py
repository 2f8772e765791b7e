from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from paddle_llava.checkpoints.names import parameter_shapes, stored_names
from paddle_llava.checkpoints.read import Checkpoint, open_checkpoint
from paddle_llava.config import Layout, LlavaConfig
from paddle_llava.errors import LlavaError

Arrays = dict[str, np.ndarray]
LAYOUTS: list[Layout] = ["hf", "original", "paddle"]


def read_all(checkpoint: Checkpoint) -> Arrays:
    with checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.names()}


def same(found: Arrays, expected: Arrays) -> bool:
    return found.keys() == expected.keys() and all(
        np.array_equal(array, expected[name]) for name, array in found.items()
    )


def load_stored(folder: Path) -> Arrays:
    """The tensors of a single-file checkpoint under their stored names."""
    if (folder / "model.safetensors").exists():
        return load_file(folder / "model.safetensors")
    return pickle.loads((folder / "model_state.pdparams").read_bytes())  # noqa: S301


def save_stored(folder: Path, arrays: Arrays) -> None:
    if (folder / "model.safetensors").exists():
        save_file(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()},
            folder / "model.safetensors",
        )
    else:
        (folder / "model_state.pdparams").write_bytes(pickle.dumps(arrays, 4))


def refused(folder: Path, config: LlavaConfig, tower: Path | None = None) -> str:
    with pytest.raises(LlavaError) as raised:
        open_checkpoint(folder, config, tower=None if tower is None else lambda: tower)
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shard", [10**9, 5000])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_layout(
    v16: LlavaConfig, make_folder: Callable, make_arrays: Callable, layout: Layout, shard: int, dtype: str
) -> None:
    checkpoint = open_checkpoint(make_folder(v16, layout, dtype, shard), v16)
    assert checkpoint.layout == layout
    assert checkpoint.carries_vision_tower
    assert checkpoint.config is v16
    shapes = parameter_shapes(v16)
    assert {name: checkpoint.shape(name) for name in checkpoint.names()} == shapes
    assert {checkpoint.dtype(name) for name in shapes} == {dtype}
    assert same(read_all(checkpoint), make_arrays(v16, dtype))


def test_linear_weights_lie_as_each_layout_has_them(v15: LlavaConfig, make_folder: Callable) -> None:
    """q_proj maps 16 to 16, k_proj 16 to 8: [out, in] in torch's layouts, [in, out] in Paddle's."""
    for layout in LAYOUTS:
        arrays = load_stored(make_folder(v15, layout))
        names = stored_names(v15, layout)
        turned = layout == "paddle"
        for ours, shape in {
            "language_model.layers.0.self_attn.k_proj.weight": (8, 16),
            "projector.0.weight": (16, 12),
            "lm_head.weight": (40, 16),
            "vision_tower.layers.0.mlp.fc1.weight": (20, 12),
        }.items():
            assert arrays[names[ours]].shape == (shape[::-1] if turned else shape)
        assert arrays[names["language_model.embed_tokens.weight"]].shape == (40, 16)
        assert arrays[names["vision_tower.position_embedding.weight"]].shape == (5, 12)
        assert arrays[names["vision_tower.patch_embedding.weight"]].shape == (12, 3, 4, 4)


GENERATIONS: dict[str, Callable[[str], str]] = {
    "vision_tower without vision_model": lambda n: n.replace("vision_tower.vision_model.", "vision_tower."),
    "everything below model": lambda n: (
        n.replace("language_model.lm_head", "lm_head")
        if "lm_head" in n
        else "model." + n.replace("language_model.model.", "language_model.")
    ),
}


@pytest.mark.parametrize("generation", GENERATIONS)
def test_generations_of_hf(v16: LlavaConfig, make_folder: Callable, make_arrays: Callable, generation: str) -> None:
    folder = make_folder(v16)
    save_stored(folder, {GENERATIONS[generation](name): a for name, a in load_stored(folder).items()})
    assert same(read_all(open_checkpoint(folder, v16)), make_arrays(v16))


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_original_in_torch_files(
    v16: LlavaConfig, make_arrays: Callable, write_torch: Callable, tmp_path: Path, sharded: bool, dtype: str
) -> None:
    expected = make_arrays(v16, dtype)
    arrays = make_stored(v16, expected)
    if sharded:
        names = list(arrays)
        shards = {f"pytorch_model-{i + 1:05d}-of-00002.bin": names[i::2] for i in (0, 1)}
        index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        for file, part in shards.items():
            write_torch(tmp_path / file, {name: arrays[name] for name in part})
    else:
        write_torch(tmp_path / "pytorch_model.bin", arrays)
    checkpoint = open_checkpoint(tmp_path, v16)
    assert checkpoint.layout == "original"
    assert {checkpoint.dtype(name) for name in checkpoint.names()} == {dtype}
    assert same(read_all(checkpoint), expected)


def make_stored(config: LlavaConfig, arrays: Arrays) -> Arrays:
    """`arrays` as the original layout stores them, turned by hand."""
    linear = {n for n, a in arrays.items() if a.ndim == 2 and "embed" not in n}
    names = stored_names(config, "original")
    return {names[n]: np.ascontiguousarray(a.T) if n in linear else a for n, a in arrays.items()}


def test_shards_without_an_index(v16: LlavaConfig, make_folder: Callable, make_arrays: Callable) -> None:
    folder = make_folder(v16, "paddle", shard=5000)
    (folder / "model_state.pdparams.index.json").unlink()
    assert same(read_all(open_checkpoint(folder, v16)), make_arrays(v16))
    next(iter(folder.glob("model_state-00002-*"))).unlink()
    assert "shards are missing: model_state-00002-of-" in refused(folder, v16)


def test_paddle_names_in_safetensors(
    v16: LlavaConfig, make_folder: Callable, make_arrays: Callable, tmp_path: Path
) -> None:
    folder = tmp_path / "unified"
    folder.mkdir()
    save_file(load_stored(make_folder(v16, "paddle")), folder / "model.safetensors")
    checkpoint = open_checkpoint(folder, v16)
    assert checkpoint.layout == "paddle"
    assert same(read_all(checkpoint), make_arrays(v16))


def test_buffers_are_ignored(v15: LlavaConfig, make_folder: Callable, make_arrays: Callable) -> None:
    folder = make_folder(v15)
    extra = {
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32),
        "vision_tower.vision_model.embeddings.position_ids": np.arange(5)[None],
    }
    save_stored(folder, load_stored(folder) | extra)
    assert same(read_all(open_checkpoint(folder, v15)), make_arrays(v15))


def test_tied_embeddings(v15: LlavaConfig, make_folder: Callable, make_arrays: Callable) -> None:
    untied = make_folder(v15)
    tied = replace(v15, text=replace(v15.text, tie_word_embeddings=True))
    found = read_all(open_checkpoint(untied, tied))  # its lm_head is not needed
    expected = make_arrays(v15)
    del expected["lm_head.weight"]
    assert same(found, expected)
    assert "missing: 'language_model.lm_head.weight'" in refused(make_folder(tied), v15)


@pytest.fixture
def towerless(v15: LlavaConfig, make_folder: Callable) -> Callable[[Layout], Path]:
    """A checkpoint that leaves its vision tower to another one, as v1.5 originals do."""

    def make(layout: Layout) -> Path:
        folder = make_folder(v15, layout)
        save_stored(folder, {n: a for n, a in load_stored(folder).items() if "vision_tower" not in n})
        return folder

    return make


CLIP_TEXT = {
    "logit_scale": np.array(1, np.float32),
    "text_projection.weight": np.ones((2, 2), np.float32),
    "visual_projection.weight": np.ones((2, 12), np.float32),
    "text_model.encoder.layers.0.mlp.fc1.weight": np.ones((2, 2), np.float32),
    "text_model.embeddings.position_ids": np.arange(3)[None],
    "vision_model.embeddings.position_ids": np.arange(5)[None],
}


@pytest.fixture
def clip(v15: LlavaConfig, make_arrays: Callable) -> Arrays:
    """A CLIP under transformers' names, with weights of its own."""
    arrays = make_stored(v15, {n: a + 1 for n, a in make_arrays(v15).items() if n.startswith("vision_tower.")})
    return {name.removeprefix("model.vision_tower.vision_tower."): array for name, array in arrays.items()}


@pytest.mark.parametrize("layout", ["original", "paddle"])
@pytest.mark.parametrize("form", ["whole safetensors", "whole torch", "vision alone", "newest names", "paddle"])
def test_a_separate_tower(
    v15: LlavaConfig,
    towerless: Callable,
    clip: Arrays,
    make_arrays: Callable,
    write_torch: Callable,
    tmp_path: Path,
    layout: Layout,
    form: str,
) -> None:
    tower = tmp_path / "clip"
    tower.mkdir()
    if form == "whole torch":
        write_torch(tower / "pytorch_model.bin", clip | CLIP_TEXT)
    elif form == "paddle":
        names = stored_names(v15, "paddle")
        ours = {n: a + 1 for n, a in make_arrays(v15).items() if n.startswith("vision_tower.")}
        renamed = {names[n].removeprefix("llama.vision_tower.vision_tower."): a for n, a in ours.items()}
        assert "vision_model.conv1.weight" in renamed
        renamed |= {"vision_projection": np.ones((12, 2), np.float32), "logit_scale": np.ones(1, np.float32)}
        (tower / "model_state.pdparams").write_bytes(pickle.dumps(renamed, 4))
    else:
        extra = CLIP_TEXT if form == "whole safetensors" else {}
        cut = "vision_model." if form == "newest names" else ""
        save_file({n.removeprefix(cut): a for n, a in (clip | extra).items()}, tower / "model.safetensors")
    checkpoint = open_checkpoint(towerless(layout), v15, tower=lambda: tower)
    assert not checkpoint.carries_vision_tower
    expected = {n: a + 1 if n.startswith("vision_tower.") else a for n, a in make_arrays(v15).items()}
    assert same(read_all(checkpoint), expected)


def test_a_carried_tower_is_never_replaced(v15: LlavaConfig, make_folder: Callable, make_arrays: Callable) -> None:
    def never() -> Path:
        raise AssertionError("the separate tower was asked for")

    for layout in LAYOUTS:
        assert same(read_all(open_checkpoint(make_folder(v15, layout), v15, tower=never)), make_arrays(v15))


def test_no_tower(v15: LlavaConfig, towerless: Callable) -> None:
    message = refused(towerless("original"), v15)
    assert "carries no vision tower" in message
    assert "openai/clip-vit-large-patch14-336" in message
    # The hf layout always carries one.
    assert "missing: 'vision_tower.vision_model.embeddings.class_embedding'" in refused(towerless("hf"), v15)


def test_a_wrong_tower(v15: LlavaConfig, towerless: Callable, clip: Arrays, tmp_path: Path) -> None:
    folder, tower = towerless("original"), tmp_path / "clip"
    tower.mkdir()
    clip["vision_model.surplus"] = clip.pop("vision_model.post_layernorm.bias")
    clip["vision_model.pre_layrnorm.bias"] = np.ones(13, np.float32)
    save_file(clip, tower / "model.safetensors")
    message = refused(folder, v15, tower)
    assert message.startswith(f"{tower}: ")
    assert "missing: 'vision_model.post_layernorm.bias'" in message
    assert "left over: 'vision_model.surplus'" in message
    assert "misshapen: 'vision_model.pre_layrnorm.bias' [13] instead of [12]" in message
    save_file({"wte": np.ones(1)}, tower / "model.safetensors")
    assert "no layout has names like these: 'wte'" in refused(folder, v15, tower)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_missing_tensor_is_named(v16: LlavaConfig, make_folder: Callable, layout: Layout) -> None:
    folder = make_folder(v16, layout)
    arrays = load_stored(folder)
    for name in arrays:
        save_stored(folder, {n: a for n, a in arrays.items() if n != name})
        assert f"missing: {name!r}" in refused(folder, v16)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_misshapen_tensor_is_named(v16: LlavaConfig, make_folder: Callable, layout: Layout) -> None:
    folder = make_folder(v16, layout)
    arrays = load_stored(folder)
    for name, array in arrays.items():
        wrong = np.zeros((*array.shape[:-1], array.shape[-1] + 1), array.dtype)
        save_stored(folder, arrays | {name: wrong})
        assert f"misshapen: {name!r} {list(wrong.shape)} instead of {list(array.shape)}" in refused(folder, v16)
        save_stored(folder, arrays | {name: array.reshape(-1, 1, 1)})
        assert f"misshapen: {name!r}" in refused(folder, v16)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_left_over_tensors_are_named(v16: LlavaConfig, make_folder: Callable, layout: Layout) -> None:
    folder = make_folder(v16, layout)
    arrays = load_stored(folder)
    names = stored_names(v16, layout)
    layer = names["language_model.layers.1.self_attn.q_proj.weight"]
    for name in (
        layer.replace(".1.", ".2."),
        layer.replace("weight", "bias"),
        layer.replace("weight", "lora_A.weight"),
        names["projector.0.weight"].replace("weight", "scale"),
        "a\nb",
    ):
        save_stored(folder, arrays | {name: np.ones(3, np.float32)})
        assert f"left over: {name!r}" in refused(folder, v16)
    v15 = replace(v16, image_grid_pinpoints=None)
    save_stored(folder, arrays)
    assert f"left over: {names['image_newline']!r}" in refused(folder, v15)


def test_kinds_of_trouble_in_one_line(v16: LlavaConfig, make_folder: Callable) -> None:
    folder = make_folder(v16)
    arrays = load_stored(folder)
    few = {name: array for name, array in arrays.items() if ".layers.0." not in name}
    few["surplus"] = np.ones(1, np.float32)
    few["image_newline"] = np.ones(5, np.float32)
    few["language_model.model.norm.weight"] = np.ones(16, np.int64)
    save_stored(folder, few)
    message = refused(folder, v16)
    assert message.startswith(f"{folder}: the weights do not fit config.json; missing: ")
    assert message.count(".layers.0.") == 5
    assert re.search(r"and \d+ more; left over: 'surplus'; misshapen: 'image_newline' \[5\] instead", message)
    assert "nor bfloat16: 'language_model.model.norm.weight' ('I64')" in message


def test_the_same_parameter_twice(v15: LlavaConfig, make_folder: Callable) -> None:
    folder = make_folder(v15)
    arrays = load_stored(folder)
    save_stored(folder, arrays | {"lm_head.weight": arrays["language_model.lm_head.weight"]})
    assert "are the same parameter" in refused(folder, v15)


def test_the_same_tensor_in_two_shards(v15: LlavaConfig, make_folder: Callable) -> None:
    folder = make_folder(v15, shard=5000)
    first, second = sorted(folder.glob("model-*"))[:2]
    name, array = next(iter(load_file(first).items()))
    save_file(load_file(second) | {name: array}, second)
    assert f"{name!r} is in two files" in refused(folder, v15)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_grown_vocabulary(v15: LlavaConfig, make_folder: Callable, layout: Layout) -> None:
    grown = replace(v15, text=replace(v15.text, vocab_size=44))
    message = refused(make_folder(grown, layout), v15)
    assert "a vocabulary of 44 tokens, config.json says 40; correct vocab_size in config.json to 44" in message


def test_a_vocabulary_that_has_grown_in_one_place(v15: LlavaConfig, make_folder: Callable) -> None:
    folder = make_folder(v15)
    save_stored(folder, load_stored(folder) | {"language_model.lm_head.weight": np.ones((44, 16), np.float32)})
    assert "misshapen: 'language_model.lm_head.weight' [44, 16] instead of [40, 16]" in refused(folder, v15)


BAD_INDEXES = {
    "traversal": ({"weight_map": {"a": "../../etc/passwd"}}, "'../../etc/passwd' is not the name"),
    "traversal by suffix": ({"weight_map": {"a": "../model.safetensors"}}, "is not the name"),
    "absolute": ({"weight_map": {"a": "/etc/x.safetensors"}}, "is not the name"),
    "backslash": ({"weight_map": {"a": "..\\x.safetensors"}}, "is not the name"),
    "line break": ({"weight_map": {"a": "x.safetensors\n"}}, "is not the name"),
    "another container": ({"weight_map": {"a": "x.bin"}}, "is not the name"),
    "number": ({"weight_map": {"a": 3}}, "is not the name"),
    "list": ({"weight_map": {"a": ["x"]}}, "not an index"),
    "no map": ({"metadata": {}}, "not an index"),
    "map is a list": ({"weight_map": ["x.safetensors"]}, "not an index"),
    "not an object": ([1], "not an index"),
    "missing shard": (
        {"weight_map": {"a": "model-00001-of-00009.safetensors"}},
        "missing: model-00001-of-00009",
    ),
}


@pytest.mark.parametrize("case", BAD_INDEXES)
def test_bad_indexes(tmp_path: Path, v15: LlavaConfig, case: str) -> None:
    index, message = BAD_INDEXES[case]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert message in refused(tmp_path, v15)


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe\xff", b"[" * 100_000])
def test_indexes_that_are_not_json(tmp_path: Path, v15: LlavaConfig, text: bytes) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(text)
    assert "not an index" in refused(tmp_path, v15)


def test_folders_without_weights(tmp_path: Path, v15: LlavaConfig) -> None:
    assert "no weights (none of model.safetensors," in refused(tmp_path, v15)
    assert "no such folder" in refused(tmp_path / "no", v15)
    (tmp_path / "model-1-of-x.safetensors").touch()
    assert "no weights" in refused(tmp_path, v15)
    save_file({"transformer.wte.weight": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    assert f"{tmp_path}: no layout has names like these: 'transformer.wte.weight'" in refused(tmp_path, v15)


def test_a_language_model_alone(v15: LlavaConfig, make_folder: Callable) -> None:
    """A Vicuna has the names of the original layout; what LLaVA adds is missing."""
    folder = make_folder(v15, "original")
    arrays = load_stored(folder)
    save_stored(folder, {n: a for n, a in arrays.items() if "mm_projector" not in n and "tower" not in n})
    assert "missing: 'model.mm_projector.0.weight', 'model.mm_projector.0.bias'" in refused(folder, v15)


def test_files_are_closed_after_an_error(
    v15: LlavaConfig, make_folder: Callable, recwarn: pytest.WarningsRecorder
) -> None:
    folder = make_folder(v15, shard=5000)
    first = sorted(folder.glob("model-*"))[0]
    first.write_bytes(first.read_bytes()[:-1])
    refused(folder, v15)
    refused(folder, replace(v15, projector_bias=False))
    with open_checkpoint(make_folder(v15), v15):
        pass
    assert not [w for w in recwarn if issubclass(w.category, ResourceWarning)]
