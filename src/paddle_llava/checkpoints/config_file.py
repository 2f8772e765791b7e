"""The `config.json` of each layout, complete: no value is left to a reader's defaults."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from paddle_llava.config import ORIGINAL_IMAGE_TOKEN_ID, Layout, LlavaConfig, TextConfig
from paddle_llava.errors import LlavaError


def config_to_dict(config: LlavaConfig, layout: Layout) -> dict[str, Any]:
    """What `LlavaConfig.from_dict` reads back to `config`, in the form of `layout`.

    Raises `LlavaError` for what the `hf` form cannot say: another projector than `mlp2x_gelu`, or `anyres` without
    `spatial_unpad`.
    """
    raw = _to_hf(config) if layout == "hf" else _to_original(config, layout)
    return raw if config.conv_mode is None else {**raw, "conv_mode": config.conv_mode}


def _text_fields(text: TextConfig) -> dict[str, Any]:
    values = {f.name: getattr(text, f.name) for f in fields(text) if f.name != "rope_scaling_factor"}
    values["eos_token_id"] = text.eos_token_id[0] if len(text.eos_token_id) == 1 else list(text.eos_token_id)
    scaled = text.rope_scaling_factor != 1.0
    values["rope_scaling"] = {"type": "linear", "factor": text.rope_scaling_factor} if scaled else None
    return values


def _to_hf(config: LlavaConfig) -> dict[str, Any]:
    anyres = config.image_grid_pinpoints is not None
    if config.projector_type != "mlp2x_gelu":
        raise LlavaError(f"the hf layout has no projector of type {config.projector_type!r}, only mlp2x_gelu")
    if anyres and not config.unpad:
        raise LlavaError("the hf layout has no anyres without spatial_unpad")
    vision = {f.name: getattr(config.vision, f.name) for f in fields(config.vision)}
    raw: dict[str, Any] = {
        "architectures": ["LlavaNextForConditionalGeneration" if anyres else "LlavaForConditionalGeneration"],
        "model_type": "llava_next" if anyres else "llava",
        "image_token_index": config.image_token_id,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": config.projector_bias,
        "image_seq_length": config.image_layout((config.vision.image_size,) * 2).base,
        "text_config": {"model_type": "llama", **_text_fields(config.text)},
        "vision_config": {"model_type": "clip_vision_model", "projection_dim": 768, **vision},
        "vision_feature_layer": config.vision_feature_layer,
        "vision_feature_select_strategy": "full" if config.keep_cls else "default",
        "tie_word_embeddings": config.text.tie_word_embeddings,
        "pad_token_id": config.text.pad_token_id,
        "torch_dtype": config.dtype,
    }
    if anyres:
        raw["image_grid_pinpoints"] = [list(p) for p in config.image_grid_pinpoints or ()]
    return raw


def _to_original(config: LlavaConfig, layout: Layout) -> dict[str, Any]:
    if not config.projector_bias:
        raise LlavaError(f"the {layout} layout has no projector without bias")
    vision = {f.name: getattr(config.vision, f.name) for f in fields(config.vision)}
    raw: dict[str, Any] = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama" if layout == "original" else "llava",
        **_text_fields(config.text),
        "image_aspect_ratio": config.image_aspect_ratio or "square",
        "mm_hidden_size": config.vision.hidden_size,
        "mm_patch_merge_type": "spatial_unpad" if config.has_image_newline else "flat",
        "mm_projector_type": config.projector_type,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "cls_patch" if config.keep_cls else "patch",
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_tower": config.vision_tower_name or "openai/clip-vit-large-patch14-336",
        "unfreeze_mm_vision_tower": True,
        "use_mm_proj": True,
        "torch_dtype": config.dtype,
        "vision_config": {"model_type": "clip_vision_model", **vision},
    }
    if config.image_token_id != ORIGINAL_IMAGE_TOKEN_ID:
        raw["image_token_index"] = config.image_token_id
    if config.image_grid_pinpoints is not None:
        raw["image_grid_pinpoints"] = [[width, height] for height, width in config.image_grid_pinpoints]
    return raw
