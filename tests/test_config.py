"""The published configurations are read to the right shapes, and bad ones are refused by key."""

import json
from pathlib import Path

import pytest

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
