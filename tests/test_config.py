"""The published configurations are read to the right shapes, and bad ones are refused by key."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_llava.checkpoints.config_file import config_to_dict
from paddle_llava.config import ANYRES_PINPOINTS, CLIP_VIT_L_336, LlavaConfig, VisionConfig
from paddle_llava.errors import LlavaError

PUBLISHED = Path(__file__).parent / "published_configs"


def read(name: str) -> dict:
    return json.loads((PUBLISHED / f"{name}.json").read_text())


@pytest.mark.parametrize("path", sorted(PUBLISHED.glob("*.json")), ids=lambda path: path.stem)
def test_published_shapes(path):
    raw = json.loads(path.read_text())
    config = LlavaConfig.from_dict(raw, where=path.name)
    wide = "13b" in path.name
    text = config.text
    assert (text.hidden_size, text.intermediate_size) == ((5120, 13824) if wide else (4096, 11008))
    assert (text.num_hidden_layers, text.num_attention_heads) == ((40, 40) if wide else (32, 32))
    assert (text.num_key_value_heads, text.head_dim) == (text.num_attention_heads, 128)
    assert (text.max_position_embeddings, text.rms_norm_eps, text.rope_theta) == (4096, 1e-5, 10000.0)
    assert config.vision == CLIP_VIT_L_336
    assert config.vision_feature_layer == -2
    assert not config.keep_cls
    assert config.projector_type == "mlp2x_gelu"
    hf = path.name.startswith("llava-hf")
    assert (config.image_token_id, text.vocab_size) == ((32000, 32064) if hf else (-200, 32000))
    if "v1.6" in path.name:
        assert sorted(config.image_grid_pinpoints or ()) == sorted(ANYRES_PINPOINTS)
        assert config.has_image_newline
    else:
        assert config.image_grid_pinpoints is None
        assert not config.has_image_newline
        assert config.image_aspect_ratio == (None if hf else "pad")


def test_original_pinpoints_are_swapped_to_height_width_and_back():
    raw = read("liuhaotian--llava-v1.6-vicuna-7b")
    config = LlavaConfig.from_dict(raw)
    assert config.image_grid_pinpoints[0] == (672, 336)
    assert config_to_dict(config, "original")["image_grid_pinpoints"] == raw["image_grid_pinpoints"]


@pytest.mark.parametrize("layout", ["original", "paddle"])
@pytest.mark.parametrize("name", ["liuhaotian--llava-v1.5-7b", "liuhaotian--llava-v1.6-vicuna-13b"])
def test_flat_forms_round_trip(name, layout):
    config = LlavaConfig.from_dict(read(name))
    assert LlavaConfig.from_dict(config_to_dict(config, layout)) == config


@pytest.mark.parametrize("name", ["llava-hf--llava-1.5-7b-hf", "llava-hf--llava-v1.6-vicuna-13b-hf"])
def test_hf_form_round_trips(name):
    config = LlavaConfig.from_dict(read(name))
    assert LlavaConfig.from_dict(config_to_dict(config, "hf")) == config


@pytest.mark.parametrize("layout", ["hf", "original", "paddle"])
def test_the_name_of_a_template_goes_along(layout):
    config = LlavaConfig.from_dict(read("liuhaotian--llava-v1.6-vicuna-7b") | {"conv_mode": "mpt"})
    assert config_to_dict(config, layout)["conv_mode"] == "mpt"
    assert LlavaConfig.from_dict(config_to_dict(config, layout)).conv_mode == "mpt"
    for without in ({}, {"conv_mode": None}, {"conv_mode": 3}):
        config = LlavaConfig.from_dict(read("liuhaotian--llava-v1.6-vicuna-7b") | without)
        assert "conv_mode" not in config_to_dict(config, layout)


def test_grouped_heads_and_new_style_rope():
    raw = read("llava-hf--llava-1.5-7b-hf")
    raw["text_config"] |= {
        "num_key_value_heads": 8,
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5},
        "eos_token_id": [2, 7],
    }
    text = LlavaConfig.from_dict(raw).text
    assert (text.num_key_value_heads, text.rope_scaling_factor, text.rope_theta) == (8, 2.0, 5e5)
    assert text.eos_token_id == (2, 7)
    assert LlavaConfig.from_dict(config_to_dict(LlavaConfig.from_dict(raw), "hf")).text == text


def test_a_tower_of_another_shape_comes_from_its_own_file():
    raw = read("liuhaotian--llava-v1.5-7b") | {"mm_vision_tower": "someone/clip-small"}
    with pytest.raises(LlavaError, match="someone/clip-small"):
        LlavaConfig.from_dict(raw)
    own = {"model_type": "clip_vision_model", "hidden_size": 64, "num_attention_heads": 4, "image_size": 28}
    assert LlavaConfig.from_dict(raw, vision={**own, "patch_size": 14}).vision == VisionConfig(
        hidden_size=64, num_attention_heads=4, image_size=28, patch_size=14
    )


BAD = {
    "not an object": ([], "JSON object"),
    "another model": ({"model_type": "bert"}, "not a LLaVA configuration"),
    "another decoder": ({"text_config": {"model_type": "qwen2"}, "vision_config": {}}, "qwen2"),
    "another tower": ({"text_config": {}, "vision_config": {"model_type": "siglip"}}, "siglip"),
    "negative size": ({"text_config": {"vocab_size": -5}}, "vocab_size"),
    "text for a number": ({"text_config": {"num_hidden_layers": "32"}}, "num_hidden_layers"),
    "huge number": ({"text_config": {"vocab_size": 2**40}}, "vocab_size"),
    "uneven heads": ({"text_config": {"num_key_value_heads": 5}}, "num_key_value_heads"),
    "uneven width": ({"text_config": {"hidden_size": 4097}}, "hidden_size"),
    "yarn": ({"text_config": {"rope_scaling": {"type": "yarn", "factor": 2}}}, "yarn"),
    "bad pinpoints": (
        {"text_config": {}, "model_type": "llava_next", "image_grid_pinpoints": [[1]]},
        "pinpoints",
    ),
    "uneven pinpoints": (
        {"text_config": {}, "model_type": "llava_next", "image_grid_pinpoints": [[300, 672]]},
        "multiples",
    ),
    "layer outside": ({"text_config": {}, "vision_feature_layer": -99}, "vision_feature_layer"),
    "layer list": ({"text_config": {}, "vision_feature_layer": [-2, -5]}, "vision_feature_layer"),
    "projector": (
        {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "qformer"},
        "qformer",
    ),
    "aspect": (
        {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "image_aspect_ratio": "wide"},
        "wide",
    ),
    "a norm that Paddle refuses": ({"text_config": {}, "vision_config": {"layer_norm_eps": 0.01}}, "layer_norm_eps"),
    "a norm below zero": ({"text_config": {"rms_norm_eps": -1e-6}}, "rms_norm_eps"),
    "a norm of zero": ({"text_config": {"rms_norm_eps": 0}}, "rms_norm_eps"),
    "a norm that is no number": ({"text_config": {"rms_norm_eps": float("nan")}}, "rms_norm_eps"),
    "an endless theta": ({"text_config": {"rope_theta": float("inf")}}, "rope_theta"),
    "a theta in words": ({"text_config": {"rope_parameters": {"rope_theta": "big"}}}, "rope_theta"),
    "a scaling by zero": ({"text_config": {"rope_scaling": {"type": "linear", "factor": 0}}}, "rope_scaling_factor"),
    "a scaling that is a list": ({"text_config": {"rope_scaling": [2]}}, "rope_scaling"),
    "odd heads": ({"text_config": {"head_dim": 63}}, "head_dim"),
    "heads in words": ({"text_config": {"head_dim": "64"}}, "head_dim"),
    "key heads in words": ({"text_config": {"num_key_value_heads": "8"}}, "num_key_value_heads"),
    "more key heads than heads": ({"text_config": {"num_key_value_heads": 64}}, "num_key_value_heads"),
    "an end in words": ({"text_config": {"eos_token_id": ["</s>"]}}, "eos_token_id"),
    "a beginning in words": ({"text_config": {"bos_token_id": "<s>"}}, "bos_token_id"),
    "an image token in words": ({"text_config": {}, "image_token_index": "<image>"}, "image_token_index"),
    "too many layers": ({"text_config": {"num_hidden_layers": 1001}}, "num_hidden_layers"),
    "text for a section": ({"text_config": "llama"}, "text_config"),
    "a list for a section": ({"text_config": {}, "vision_config": [1]}, "vision_config"),
    "vision heads": ({"text_config": {}, "vision_config": {"num_attention_heads": 7}}, "num_attention_heads"),
    "patches that do not fit": ({"text_config": {}, "vision_config": {"patch_size": 15}}, "patch_size"),
    "grey pictures": ({"text_config": {}, "vision_config": {"num_channels": 1}}, "num_channels"),
    "a picture of a gigapixel": ({"text_config": {}, "vision_config": {"image_size": 2**15}}, "image_size"),
    "a bias in words": ({"text_config": {}, "multimodal_projector_bias": "no"}, "multimodal_projector_bias"),
    "half the features": ({"text_config": {}, "vision_feature_select_strategy": "half"}, "select_strategy"),
    "thousands of tiles": (
        {"text_config": {}, "model_type": "llava_next", "image_grid_pinpoints": [[336, 336000]]},
        "pinpoints",
    ),
    "a tower without a name": ({"mm_vision_tower": ["openai/clip-vit-large-patch14-336"]}, "mm_vision_tower"),
    "a projector without layers": (
        {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "mlp0x_gelu"},
        "mlp0x_gelu",
    ),
    "a projector of a strange number": (
        {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "mlp\u00b2x_gelu"},
        "projector",
    ),
    "half of CLIP's patches": (
        {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_vision_select_feature": "half"},
        "mm_vision_select_feature",
    ),
    "start-end tokens": (
        {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_use_im_start_end": True},
        "mm_use_im_start_end",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_configurations_name_the_key(case):
    raw, expected = BAD[case]
    with pytest.raises(LlavaError, match=expected) as caught:
        LlavaConfig.from_dict(raw, where="folder/config.json")
    assert "folder/config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def places(raw: Any, path: tuple = ()) -> list[tuple]:
    """The way to every value of a nested object, and to keys that are not there."""
    if not isinstance(raw, dict):
        return [path]
    absent = (
        "head_dim",
        "rope_parameters",
        "layer_norm_eps",
        "num_channels",
        "image_token_id",
        "mm_vision_select_layer",
    )
    ways = [path] if path else []
    return ways + [way for key in dict.fromkeys((*raw, *absent)) for way in places(raw.get(key), (*path, key))]


PUBLISHED_PLACES = [
    (path.stem, way) for path in sorted(PUBLISHED.glob("*.json")) for way in places(json.loads(path.read_text()))
]
SCALARS = st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from([0, -1, 2**31, 10**400]) | st.text()
JUNK = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


@given(place=st.sampled_from(PUBLISHED_PLACES), value=JUNK)
def test_any_value_at_any_place_is_read_or_refused_in_one_line(place: tuple[str, tuple], value: Any) -> None:
    name, (*sections, key) = place
    raw = copy.deepcopy(read(name))
    target = raw
    for section in sections:
        target = target[section]
    target[key] = value
    refusal = ""
    try:
        config = LlavaConfig.from_dict(raw, where="config.json")
    except LlavaError as error:
        refusal = str(error)
    if refusal:
        assert refusal.startswith("config.json")
        assert len(refusal) < 300
        assert "\n" not in refusal
    else:
        assert config.projector_depth > 0
        assert config.image_layout((480, 640)).num_features > 0
        again = LlavaConfig.from_dict(config_to_dict(config, "original" if config.projector_bias else "hf"))
        assert again.text == config.text
