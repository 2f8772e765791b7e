from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paddle_llava import LlavaError, LlavaForConditionalGeneration
from paddle_llava.checkpoints import adapter as adapter_module
from paddle_llava.checkpoints.adapter import (
    SETTINGS,
    WEIGHTS,
    Adapter,
    Merged,
    foreign_base,
    read_adapter,
    write_adapter,
)
from paddle_llava.checkpoints.dtypes import to_dtype
from paddle_llava.checkpoints.names import parameter_shapes, stored_names
from paddle_llava.checkpoints.safetensors_file import SafetensorsFile, write_safetensors
from paddle_llava.checkpoints.write import ArraySource
from paddle_llava.config import Layout, LlavaConfig
from paddle_llava.convert import convert
from paddle_llava.models.lora import LoRALinear, add_lora
from reference_cases import CHECKPOINTS, FIXTURES

Arrays = dict[str, np.ndarray]
ALL = [r"llama\.layers\..*_proj"]
QUERY = "base_model.model.model.language_model.layers.0.self_attn.q_proj"


def random_adapter(config: LlavaConfig, rank: int = 3, only: str = "_proj.weight") -> Adapter:
    """Of the decoder's Linear layers whose names end with `only`, and of the projector."""
    random = np.random.default_rng(rank)
    made = Adapter(rank, 5.0, 0.05, "some/model")
    for name, shape in parameter_shapes(config).items():
        if name.startswith("language_model.layers.") and name.endswith(only):
            halves = [(shape[0], rank), (rank, shape[1])]
            a, b = (random.standard_normal(half, dtype=np.float32) * 0.2 for half in halves)
            made.pairs[name.removesuffix(".weight")] = (a, b)
        elif name.startswith("projector."):
            made.whole[name] = random.standard_normal(shape, dtype=np.float32) * 0.2
    return made


def assert_same(found: Adapter, expected: Adapter) -> None:
    assert (found.rank, found.alpha, found.dropout) == (expected.rank, expected.alpha, expected.dropout)
    assert found.base_model == expected.base_model
    assert found.pairs.keys() == expected.pairs.keys()
    assert found.whole.keys() == expected.whole.keys()
    for name, pair in expected.pairs.items():
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(found.pairs[name], pair, strict=True))
    assert all(np.array_equal(found.whole[name], array) for name, array in expected.whole.items())


def stored(folder: Path) -> Arrays:
    file = SafetensorsFile(folder / WEIGHTS)
    try:
        return {name: file.read(name) for name in file.names()}
    finally:
        file.close()


def store(folder: Path, arrays: Arrays) -> None:
    source = ArraySource(arrays)
    specs = {name: (source.dtype(name), source.shape(name)) for name in arrays}
    write_safetensors(folder / WEIGHTS, specs, source.read)


@pytest.fixture
def written(tmp_path: Path, v15: LlavaConfig) -> Path:
    folder = tmp_path / "adapter"
    write_adapter(folder, random_adapter(v15), v15)
    return folder


@pytest.mark.parametrize("anyres", [False, True])
def test_way_there_and_back(tmp_path: Path, v15: LlavaConfig, v16: LlavaConfig, anyres: bool) -> None:
    config = v16 if anyres else v15
    made = random_adapter(config)
    write_adapter(tmp_path / "new", made, config)
    assert_same(read_adapter(tmp_path / "new", config), made)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [SETTINGS, WEIGHTS]
    write_adapter(tmp_path / "new", random_adapter(config, rank=2), config)
    assert_same(read_adapter(tmp_path / "new", config), random_adapter(config, rank=2))


def test_peft_s_names_and_orientation(written: Path, v15: LlavaConfig) -> None:
    arrays, made = stored(written), random_adapter(v15)
    a, b = made.pairs["language_model.layers.0.self_attn.q_proj"]
    assert np.array_equal(arrays[f"{QUERY}.lora_A.weight"], a.T)  # [rank, in], as torch's Linear has it
    assert np.array_equal(arrays[f"{QUERY}.lora_B.weight"], b.T)
    projector = "base_model.model.model.multi_modal_projector.linear_1"
    assert np.array_equal(arrays[f"{projector}.weight"], made.whole["projector.0.weight"].T)
    assert np.array_equal(arrays[f"{projector}.bias"], made.whole["projector.0.bias"])
    settings = json.loads((written / SETTINGS).read_text())
    assert QUERY.removeprefix("base_model.model.") in settings["target_modules"]
    assert settings["modules_to_save"] == ["multi_modal_projector"]


def test_without_a_projector_of_its_own(tmp_path: Path, v15: LlavaConfig) -> None:
    made = random_adapter(v15)
    made.whole.clear()
    write_adapter(tmp_path / "thin", made, v15)
    assert json.loads((tmp_path / "thin" / SETTINGS).read_text())["modules_to_save"] is None
    assert_same(read_adapter(tmp_path / "thin", v15), made)


@pytest.mark.parametrize("old", ["language_model.model.", "model.language_model."])
def test_names_of_earlier_versions(written: Path, v15: LlavaConfig, old: str) -> None:
    """As `transformers` 4 called its modules, and as PEFT calls the tensors of a named adapter in memory."""
    renamed = {}
    for name, array in stored(written).items():
        name = name.replace("model.language_model.", old).replace(".model.multi_modal", ".multi_modal")
        renamed[name.replace("_A.weight", "_A.default.weight")] = array
    store(written, renamed)
    assert_same(read_adapter(written, v15), random_adapter(v15))


def test_sixteen_bits_and_peft_s_own_defaults(written: Path, v15: LlavaConfig) -> None:
    """What PEFT 0.21 writes of settings that were left alone, and weights of a model trained in 16 bits."""
    defaults = {
        "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": None,
        "corda_config": None, "ensure_weight_tying": False, "eva_config": None, "exclude_modules": None,
        "layer_replication": None, "layers_pattern": None, "layers_to_transform": None, "loftq_config": {},
        "lora_bias": False, "megatron_config": None, "megatron_core": "megatron.core", "peft_version": "0.21.2",
        "qalora_group_size": 16, "rank_pattern": {}, "revision": None, "target_parameters": None,
        "trainable_token_indices": None, "use_bdlora": None, "use_qalora": False, "velora_config": None,
    }  # fmt: skip
    change_settings(written, **defaults)
    for dtype in ("float16", "bfloat16"):
        write_adapter(written, random_adapter(v15), v15)
        store(written, {name: to_dtype(array, "float32", dtype) for name, array in stored(written).items()})
        found, made = read_adapter(written, v15), random_adapter(v15)
        for name, (a, _) in made.pairs.items():
            assert found.pairs[name][0].dtype == np.float32
            assert np.abs(found.pairs[name][0] - a).max() < 4e-3


def test_the_folder_s_name_says_nothing(written: Path, v15: LlavaConfig) -> None:
    for name in ("llava-v1.5-7b-lora", "llava-mpt-checkpoint", "mm_projector", "x"):
        folder = shutil.copytree(written, written.with_name(name))
        assert_same(read_adapter(folder, v15), random_adapter(v15))


# --- merging


def test_merged_tensors(v15: LlavaConfig, make_arrays: Callable[..., Arrays]) -> None:
    base, made = make_arrays(v15), random_adapter(v15, only="q_proj.weight")
    merged = Merged(ArraySource(base), made)
    assert merged.names() == list(base)
    for name, array in base.items():
        expected = made.whole.get(name, array)
        pair = made.pairs.get(name.removesuffix(".weight"))
        if pair:
            expected = array + (5.0 / 3) * (pair[0] @ pair[1])
            assert np.abs(expected - array).max() > 0.1
        assert merged.dtype(name) == "float32"
        assert merged.shape(name) == array.shape
        assert np.abs(merged.read(name) - expected).max() <= 1e-6 * np.abs(expected).max()
        assert pair or name in made.whole or merged.read(name) is array


@pytest.mark.parametrize("target", [None, "float32", "float16", "bfloat16"])
def test_sums_are_rounded_once(v15: LlavaConfig, make_arrays: Callable[..., Arrays], target: str | None) -> None:
    base, made = make_arrays(v15, "bfloat16"), random_adapter(v15)
    merged = Merged(ArraySource(base), made, target)
    for name, (a, b) in made.pairs.items():
        weight = to_dtype(base[f"{name}.weight"], "bfloat16", "float32").astype(np.float64)
        exact = weight + 5.0 / 3 * (a.astype(np.float64) @ b)
        assert merged.dtype(f"{name}.weight") == (target or "bfloat16")
        found = to_dtype(merged.read(f"{name}.weight"), target or "bfloat16", "float32")
        ulp = {"float32": 2.0**-23, "float16": 2.0**-10}.get(target or "", 2.0**-7) * np.maximum(np.abs(exact), 1e-3)
        assert (np.abs(found - exact) <= 0.51 * ulp + 1e-6).all()
    untouched = "language_model.norm.weight"
    assert merged.dtype(untouched) == "bfloat16"
    assert merged.read(untouched) is base[untouched]


@pytest.fixture(scope="module", params=CHECKPOINTS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / request.param
    convert(FIXTURES / request.param, folder, "hf", dtype="float32")
    return folder


def wrapped(folder: Path, made: Adapter) -> LlavaForConditionalGeneration:
    """The base model with live adapters, as it is trained."""
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    add_lora(model, stored_names(model.config, "paddle"), ALL, made.rank, made.alpha, 0.0)
    layers = {name: layer for name, layer in model.named_sublayers() if isinstance(layer, LoRALinear)}
    assert layers.keys() == made.pairs.keys()
    for name, layer in layers.items():
        layer.lora_A.set_value(made.pairs[name][0])
        layer.lora_B.set_value(made.pairs[name][1])
    for name, parameter in model.named_parameters():
        if name in made.whole:
            parameter.set_value(made.whole[name])
    return model


def logits(model: LlavaForConditionalGeneration) -> np.ndarray:
    layout = model.config.image_layout((50, 100))
    random = np.random.default_rng(0)
    ids = np.concatenate([[1, 9], np.full(layout.num_features, model.config.image_token_id), np.arange(20, 40)])
    pixels = random.standard_normal((layout.tiles, 3, 56, 56), dtype=np.float32)
    with paddle.no_grad():
        return model(ids[None], pixel_values=pixels, image_sizes=[[50, 100]]).logits.numpy()


@pytest.mark.parametrize("layout", ["hf", "original", "paddle"])
def test_merged_logits_are_base_plus_adapter(base: Path, tmp_path: Path, layout: Layout) -> None:
    config = LlavaForConditionalGeneration.from_pretrained(base).config
    made = random_adapter(config, rank=4)
    write_adapter(tmp_path / "adapter", made, config)
    expected = logits(wrapped(base, made))
    assert np.abs(expected - logits(LlavaForConditionalGeneration.from_pretrained(base))).max() > 1.0
    convert(base, tmp_path / "merged", layout, lora_path=tmp_path / "adapter")
    merged = LlavaForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert np.abs(logits(merged) - expected).max() < 2e-4
    at_load = LlavaForConditionalGeneration.from_pretrained(base, lora_path=tmp_path / "adapter")
    assert np.abs(logits(at_load) - expected).max() < 2e-4
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"config.json", "tokenizer.json"} <= names
    assert not {SETTINGS, WEIGHTS} & names


# --- what is wrong with an adapter


def change_settings(folder: Path, **changes: Any) -> None:
    settings = json.loads((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(json.dumps(settings | changes))


def error_of(folder: Path, config: LlavaConfig) -> str:
    with pytest.raises(LlavaError) as caught:
        read_adapter(folder, config)
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert "\n" not in message
    assert len(message) < len(str(folder)) + 400
    return message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "LOHA"}, "'LOHA'"),
        ({"peft_type": ["LORA"] * 1000}, "peft_type"),
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"some_new_variant": {"a": 1}}, "some_new_variant"),
        ({"a\nb": 1}, "only plain LoRA"),
        ({"bias": "all"}, "bias"),
        ({"bias": None}, "bias"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "changes the base"),
        ({"init_lora_weights": ["x"]}, "init_lora_weights"),
        ({"r": 4}, "at rank 4"),
        ({"r": 0}, "positive integer"),
        ({"r": 3.0}, "positive integer"),
        ({"r": True}, "positive integer"),
        ({"r": "3"}, "positive integer"),
        ({"r": None}, "positive integer"),
        ({"lora_alpha": "x" * 1000}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_alpha": -1}, "lora_alpha"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_dropout": None}, "lora_dropout"),
    ],
)
def test_settings_that_are_not_plain_lora(written: Path, v15: LlavaConfig, changes: dict[str, Any], said: str) -> None:
    change_settings(written, **changes)
    assert said in error_of(written, v15)


def test_a_scale_that_is_left_out(written: Path, v15: LlavaConfig) -> None:
    settings = json.loads((written / SETTINGS).read_text())
    (written / SETTINGS).write_text(json.dumps({key: settings[key] for key in settings if key != "lora_alpha"}))
    assert "'lora_alpha' is 'None': a number" in error_of(written, v15)


def test_folders_without_an_adapter(tmp_path: Path, written: Path, v15: LlavaConfig) -> None:
    assert "no adapter_config.json, so it is no LoRA adapter" in error_of(tmp_path, v15)
    assert "nowhere: no such folder" in error_of(tmp_path / "nowhere", v15)
    (written / WEIGHTS).unlink()
    assert "no adapter_model.safetensors" in error_of(written, v15)
    (written / SETTINGS).write_text("{")
    (written / WEIGHTS).write_bytes(b"")
    assert "not valid JSON" in error_of(written, v15)
    (written / SETTINGS).write_text("[]")
    assert "a JSON object is expected" in error_of(written, v15)


@pytest.mark.parametrize(
    ("trained_for", "given", "is_foreign"),
    [
        ("liuhaotian/llava-v1.5-7b", "llava-hf/llava-1.5-7b-hf", False),
        ("liuhaotian/llava-v1.5-7b", "/models/llava-v1.5-7b/", False),
        ("liuhaotian/llava-v1.5-7b", "llava-hf/llava-v1.6-vicuna-7b-hf", True),
        ("liuhaotian/llava-v1.6-vicuna-7b", "liuhaotian/llava-v1.6-vicuna-13b", True),
        ("liuhaotian/llava-v1.5-7b", "/hub/models--llava-hf--llava-1.5-7b-hf/snapshots/0a1b", False),
        ("liuhaotian/llava-v1.5-7b", "/hub/models--llava-hf--llava-1.5-13b-hf/snapshots/0a1b", True),
        ("my-model", "llava-hf/llava-1.5-7b-hf", False),
        ("liuhaotian/llava-v1.5-7b", "/models/mine", False),
        ("", "llava-hf/llava-1.5-7b-hf", False),
    ],
)
def test_an_adapter_of_another_published_model_is_told(trained_for: str, given: str, is_foreign: bool) -> None:
    assert bool(foreign_base(Adapter(4, 8.0, base_model=trained_for), given)) is is_foreign


def test_damaged_weights(written: Path, v15: LlavaConfig) -> None:
    whole = (written / WEIGHTS).read_bytes()
    for damaged in (whole[:-1], whole[:100], b"", whole + b"x"):
        (written / WEIGHTS).write_bytes(damaged)
        assert "damaged" in error_of(written, v15)
    store(written, {})
    assert "holds no tensors" in error_of(written, v15)


def test_adapters_of_another_model(written: Path, v15: LlavaConfig) -> None:
    deeper = replace(v15, text=replace(v15.text, num_hidden_layers=3))
    write_adapter(written, random_adapter(deeper), deeper)
    assert "layers.2.self_attn.q_proj.lora_A.weight' belongs to no part" in error_of(written, v15)
    wider = replace(v15, text=replace(v15.text, intermediate_size=48))
    write_adapter(written, random_adapter(wider), wider)
    assert "for a layer (16, 24) at rank 3" in error_of(written, v15)
    other_tower = replace(v15, vision=replace(v15.vision, hidden_size=24))
    write_adapter(written, random_adapter(other_tower), other_tower)
    assert "projector.0.weight has shape (24, 16), the model's is (12, 16)" in error_of(written, v15)


@pytest.mark.parametrize("half", ["A", "B"])
def test_half_of_a_pair(written: Path, v15: LlavaConfig, half: str) -> None:
    arrays = stored(written)
    del arrays[f"{QUERY}.lora_{half}.weight"]
    store(written, arrays)
    assert "self_attn.q_proj has only one of lora_A and lora_B" in error_of(written, v15)


VISION = "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj"
MALICIOUS = [
    "../../etc/passwd",
    "",
    "model.language_model.layers.0.self_attn.q_proj.lora_A.weight",
    "base_model.model.",
    "base_model.model.lora_A.weight",
    "base_model.model..lora_A.weight",
    f"{QUERY}.lora_A.bias",
    f"{QUERY}.lora_C.weight",
    f"{QUERY}.lora_A.other.weight",
    f"{QUERY}.lora_magnitude_vector.weight",
    f"{QUERY}.lora_A.weight\n",
    f"{VISION}.lora_A.bias",  # there is a bias of this layer
    "base_model.model.model.language_model.norm.lora_A.weight",  # one side only
    "base_model.model.model.vision_tower.embeddings.patch_embedding.lora_A.weight",  # four sides
    "base_model.model.model.vision_tower.embeddings.class_embedding",
    "base_model.model.model.language_model.embed_tokens.lora_embedding_A",
    QUERY.replace("layers.0", "layers.00") + ".lora_A.weight",
    QUERY.replace("layers.0", "layers.{}") + ".lora_A.weight",
    QUERY.replace("layers.0", "layers." + "9" * 5000) + ".lora_A.weight",
    "base_model.model." * 3000 + "x.weight",
    "base_model.model.a\nb.weight",
]


@pytest.mark.parametrize("name", MALICIOUS, ids=range(len(MALICIOUS)))
def test_names_of_no_part(written: Path, v15: LlavaConfig, name: str) -> None:
    store(written, {**stored(written), name: np.zeros((3, 16), np.float32)})
    assert "belongs to no part of this model" in error_of(written, v15)


def test_a_tensor_twice(written: Path, v15: LlavaConfig) -> None:
    arrays = stored(written)
    older = QUERY.replace("model.language_model.", "language_model.model.")
    store(written, {**arrays, f"{older}.lora_A.weight": arrays[f"{QUERY}.lora_A.weight"]})
    assert "a second time" in error_of(written, v15)


def test_integers_are_no_weights(written: Path, v15: LlavaConfig) -> None:
    header = json.dumps({f"{QUERY}.lora_A.weight": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}).encode()
    (written / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert "of type I64" in error_of(written, v15)


@pytest.mark.parametrize("shape", [[0, 2**62], [2**62, 0], [0, 2**40, 2**40]])
def test_sides_that_no_array_has(written: Path, v15: LlavaConfig, shape: list[int]) -> None:
    header = {f"{QUERY}.lora_A.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}
    text = json.dumps(header).encode()
    (written / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text)
    assert "for a layer (16, 16) at rank 3" in error_of(written, v15)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_the_names_and_shapes_are(tmp_path: Path, v15: LlavaConfig, data: st.DataObject) -> None:
    """An adapter is read or refused with one line, and nothing else happens."""
    parts = [
        "base_model.model.",
        "model.",
        "language_model.",
        "layers.",
        "0.",
        "self_attn.",
        "q_proj.",
        "mlp.",
        "lora_A.",
    ]
    parts += ["lora_B.", "weight", "bias", "norm.", "vision_tower.", "default.", "multi_modal_projector.", "linear_1."]
    name = st.lists(st.sampled_from(parts), max_size=9).map("".join)
    known = st.sampled_from([f"{QUERY}.lora_A.weight", f"{QUERY}.lora_B.weight", f"{VISION}.lora_A.weight"])
    shape = st.lists(st.integers(0, 17), max_size=4).map(tuple)
    arrays = data.draw(st.dictionaries(name | known, shape.map(lambda s: np.zeros(s, np.float32)), max_size=4))
    folder = tmp_path / "any"
    write_adapter(folder, random_adapter(v15), v15)
    store(folder, arrays)
    message = ""
    try:
        read_adapter(folder, v15)
    except LlavaError as error:
        message = str(error)
    assert "\n" not in message


def test_no_room_for_an_adapter(tmp_path: Path, v15: LlavaConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(adapter_module, "write_safetensors", full)
    with pytest.raises(LlavaError, match=r"cannot be written \(No space left"):
        write_adapter(tmp_path / "new", random_adapter(v15), v15)
    (tmp_path / "file").write_text("")
    with pytest.raises(LlavaError, match="cannot be written"):
        write_adapter(tmp_path / "file", random_adapter(v15), v15)
