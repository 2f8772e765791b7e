from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from paddle_llava.checkpoints import names as naming
from paddle_llava.config import Layout, LlavaConfig
from paddle_llava.errors import LlavaError

LAYOUTS: list[Layout] = ["hf", "original", "paddle"]
PUBLISHED = Path(__file__).parents[1] / "published_configs"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("projector", ["linear", "mlp2x_gelu", "mlp3x_gelu"])
def test_names_there_and_back(v16: LlavaConfig, layout: Layout, projector: str) -> None:
    config = replace(v16, projector_type=projector, text=replace(v16.text, attention_bias=True, mlp_bias=True))
    if layout == "hf" and projector == "mlp3x_gelu":
        with pytest.raises(LlavaError, match=r"projector\.4"):
            naming.stored_names(config, layout)
        return
    stored = naming.stored_names(config, layout)
    assert stored.keys() == naming.parameter_shapes(config).keys()
    assert len(set(stored.values())) == len(stored)
    assert {ours: naming.canonical_name(t, naming.CHECKPOINT_NAMES[layout]) for ours, t in stored.items()} == {
        ours: ours for ours in stored
    }
    assert naming.detect_layout(stored.values()) == layout


# Names as published files and other programs have them, written out by hand.
KNOWN = {
    "language_model.layers.11.self_attn.q_proj.weight": {
        "hf": "language_model.model.layers.11.self_attn.q_proj.weight",
        "original": "model.layers.11.self_attn.q_proj.weight",
        "paddle": "llama.layers.11.self_attn.q_proj.weight",
    },
    "language_model.embed_tokens.weight": {
        "hf": "language_model.model.embed_tokens.weight",
        "original": "model.embed_tokens.weight",
        "paddle": "llama.embed_tokens.weight",
    },
    "language_model.norm.weight": {
        "hf": "language_model.model.norm.weight",
        "original": "model.norm.weight",
        "paddle": "llama.norm.weight",
    },
    "lm_head.weight": {
        "hf": "language_model.lm_head.weight",
        "original": "lm_head.weight",
        "paddle": "lm_head.weight",
    },
    "projector.0.weight": {
        "hf": "multi_modal_projector.linear_1.weight",
        "original": "model.mm_projector.0.weight",
        "paddle": "llama.mm_projector.0.weight",
    },
    "projector.2.bias": {
        "hf": "multi_modal_projector.linear_2.bias",
        "original": "model.mm_projector.2.bias",
        "paddle": "llama.mm_projector.2.bias",
    },
    "image_newline": {
        "hf": "image_newline",
        "original": "model.image_newline",
        "paddle": "llama.image_newline",
    },
    "vision_tower.class_embedding": {
        "hf": "vision_tower.vision_model.embeddings.class_embedding",
        "original": "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding",
        "paddle": "llama.vision_tower.vision_tower.vision_model.class_embedding",
    },
    "vision_tower.patch_embedding.weight": {
        "hf": "vision_tower.vision_model.embeddings.patch_embedding.weight",
        "paddle": "llama.vision_tower.vision_tower.vision_model.conv1.weight",
    },
    "vision_tower.position_embedding.weight": {
        "paddle": "llama.vision_tower.vision_tower.vision_model.positional_embedding.weight",
    },
    "vision_tower.pre_layernorm.bias": {
        "hf": "vision_tower.vision_model.pre_layrnorm.bias",
        "original": "model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias",
        "paddle": "llama.vision_tower.vision_tower.vision_model.ln_pre.bias",
    },
    "vision_tower.layers.1.mlp.fc2.weight": {
        "hf": "vision_tower.vision_model.encoder.layers.1.mlp.fc2.weight",
        "paddle": "llama.vision_tower.vision_tower.vision_model.transformer.layers.1.linear2.weight",
    },
    "vision_tower.layers.1.layer_norm1.weight": {
        "hf": "vision_tower.vision_model.encoder.layers.1.layer_norm1.weight",
        "paddle": "llama.vision_tower.vision_tower.vision_model.transformer.layers.1.norm1.weight",
    },
    "vision_tower.layers.0.self_attn.out_proj.bias": {
        "paddle": "llama.vision_tower.vision_tower.vision_model.transformer.layers.0.self_attn.out_proj.bias",
    },
}


def test_known_names(v16: LlavaConfig) -> None:
    config = replace(v16, text=replace(v16.text, num_hidden_layers=12))
    stored = {layout: naming.stored_names(config, layout) for layout in LAYOUTS}
    for ours, layouts in KNOWN.items():
        assert {layout: stored[layout][ours] for layout in layouts} == layouts


@pytest.mark.parametrize(
    ("stored", "ours"),
    [
        ("model.language_model.layers.3.mlp.up_proj.weight", "language_model.layers.3.mlp.up_proj.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.image_newline", "image_newline"),
        ("model.multi_modal_projector.linear_2.weight", "projector.2.weight"),
        ("vision_tower.embeddings.class_embedding", "vision_tower.class_embedding"),
        ("model.vision_tower.encoder.layers.7.mlp.fc1.bias", "vision_tower.layers.7.mlp.fc1.bias"),
        ("model.vision_tower.vision_model.post_layernorm.bias", "vision_tower.post_layernorm.bias"),
        ("model.mm_projector.0.weight", None),
        ("language_model.model.layers.3.x.4.weight", None),
        ("language_model.model.layers..weight", None),
    ],
)
def test_other_generations_of_hf(stored: str, ours: str | None) -> None:
    assert naming.canonical_name(stored, naming.CHECKPOINT_NAMES["hf"]) == ours


def test_one_linear_layer_has_no_number(v15: LlavaConfig) -> None:
    config = replace(v15, projector_type="linear")
    assert naming.stored_names(config, "original")["projector.0.weight"] == "model.mm_projector.weight"
    assert naming.stored_names(config, "paddle")["projector.0.bias"] == "llama.mm_projector.bias"
    assert "projector.2.weight" not in naming.parameter_shapes(config)


def test_what_the_configuration_leaves_out(v15: LlavaConfig) -> None:
    config = replace(v15, projector_bias=False, text=replace(v15.text, tie_word_embeddings=True))
    shapes = naming.parameter_shapes(config)
    assert not {"projector.0.bias", "image_newline", "lm_head.weight"} & shapes.keys()


def test_linear_weights() -> None:
    linear = {"lm_head.weight", "projector.0.weight", "vision_tower.layers.0.mlp.fc1.weight"}
    other = {
        "projector.0.bias",
        "language_model.embed_tokens.weight",
        "vision_tower.position_embedding.weight",
    }
    assert [naming.is_linear(name) for name in (*linear, *other)] == [True] * 3 + [False] * 3


@pytest.mark.parametrize(
    ("name", "hidden", "parameters"),
    [
        ("liuhaotian--llava-v1.5-7b", 4096, 7_062_902_784),
        ("llava-hf--llava-1.5-7b-hf", 4096, 7_063_427_072),
        ("liuhaotian--llava-v1.6-vicuna-13b", 5120, 13_350_844_416),
    ],
)
def test_published_shapes(name: str, hidden: int, parameters: int) -> None:
    config = LlavaConfig.from_dict(json.loads((PUBLISHED / f"{name}.json").read_text()))
    shapes = naming.parameter_shapes(config)
    assert shapes["lm_head.weight"] == (hidden, config.text.vocab_size)
    total = 0
    for shape in shapes.values():
        count = 1
        for side in shape:
            count *= side
        total += count
    assert total == parameters


def test_no_layout_knows_them() -> None:
    with pytest.raises(LlavaError, match=r"'transformer\.wte\.weight'"):
        naming.detect_layout(["transformer.wte.weight"])
    with pytest.raises(LlavaError, match="no tensors at all"):
        naming.detect_layout([])
