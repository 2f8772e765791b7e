"""The shape of a LLaVA: a vision tower, a text decoder, and how they are joined.

`LlavaConfig.from_dict` reads the three published forms of `config.json`: the `-hf` form (nested, leaving out
whatever equals `transformers`' defaults), the original `liuhaotian/*` form and the Paddle form (both flat).
`paddle_llava.checkpoints.config_file` writes each of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from paddle_llava.config_values import check, checked_int, one_of, pinpoints, read_fields, section, shown
from paddle_llava.errors import LlavaError
from paddle_llava.geometry import ImageLayout, Size, image_layout

Layout = Literal["hf", "original", "paddle"]
ImageAspectRatio = Literal["square", "pad", "anyres"]

ORIGINAL_IMAGE_TOKEN_ID = -200
HF_IMAGE_TOKEN_ID = 32000
ANYRES_PINPOINTS: tuple[Size, ...] = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


@dataclass(frozen=True)
class VisionConfig:
    """A CLIP vision transformer. Defaults are `CLIPVisionConfig`'s, which `-hf` files leave out."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


CLIP_VIT_L_336 = VisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
)
KNOWN_TOWERS = {"openai/clip-vit-large-patch14-336": CLIP_VIT_L_336}


@dataclass(frozen=True)
class TextConfig:
    """A LLaMA decoder. Defaults are `LlamaConfig`'s (the 7B's), which `-hf` files leave out."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    rope_theta: float = 10000.0
    rope_scaling_factor: float = 1.0
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = 1
    eos_token_id: tuple[int, ...] = (2,)
    pad_token_id: int | None = None


@dataclass(frozen=True)
class LlavaConfig:
    """A whole LLaVA.

    `image_grid_pinpoints` are (height, width) and present only for `anyres`. The original files list them as
    (width, height): they are swapped when read, so that ties between equally good pinpoints fall as in the code
    that each file was written for. `image_token_id` is -200 in original files, 32000 in published `-hf` ones.
    `conv_mode` is the name of the template that its conversations are told in, None the default.
    """

    vision: VisionConfig
    text: TextConfig
    image_token_id: int = HF_IMAGE_TOKEN_ID
    image_aspect_ratio: ImageAspectRatio | None = None
    image_grid_pinpoints: tuple[Size, ...] | None = None
    unpad: bool = True
    projector_type: str = "mlp2x_gelu"
    projector_bias: bool = True
    vision_feature_layer: int = -2
    keep_cls: bool = False
    vision_tower_name: str | None = None
    conv_mode: str | None = None
    dtype: str = "float32"

    @property
    def projector_depth(self) -> int:
        """Number of Linear layers of the projector: 1 for `linear`, N for `mlpNx_gelu`."""
        return 1 if self.projector_type == "linear" else int(self.projector_type[3:].split("x")[0])

    @property
    def has_image_newline(self) -> bool:
        return self.image_grid_pinpoints is not None and self.unpad

    def image_layout(self, image_size: Size) -> ImageLayout:
        """How a picture of `image_size` (height, width) pixels is laid out as image features."""
        return image_layout(
            image_size,
            self.vision.image_size,
            self.vision.patch_size,
            self.image_grid_pinpoints,
            unpad=self.unpad,
            keep_cls=self.keep_cls,
        )

    @classmethod
    def from_dict(
        cls, raw: dict[str, Any], *, vision: dict[str, Any] | None = None, where: str = "config.json"
    ) -> LlavaConfig:
        """Read a `config.json` of any of the three forms.

        `vision` is the configuration of the separate vision tower, needed by an original or Paddle file that
        names a tower other than CLIP ViT-L/14-336. Raises `LlavaError` naming `where` and the key.
        """
        if not isinstance(raw, dict):
            raise LlavaError(f"{where}: a JSON object is expected, found {type(raw).__name__}")
        if "text_config" in raw or ("vision_config" in raw and "mm_vision_tower" not in raw):
            config = _from_hf(raw, where)
        elif "mm_vision_tower" in raw or "mm_projector_type" in raw:
            config = _from_original(raw, vision, where)
        else:
            kind = shown(raw.get("model_type", "unknown"))
            raise LlavaError(
                f"{where}: not a LLaVA configuration (model_type {kind}, neither text_config nor mm_vision_tower)"
            )
        check(config, where)
        conv_mode = raw.get("conv_mode")
        return replace(config, conv_mode=conv_mode) if isinstance(conv_mode, str) else config


def separate_tower(raw: dict[str, Any]) -> str | None:
    """The vision tower that an original or Paddle file names and whose shape is not known by heart, if any."""
    name = raw.get("mm_vision_tower", raw.get("vision_tower"))
    if not isinstance(name, str) or "vision_config" in raw or name in KNOWN_TOWERS:
        return None
    return name


def vision_config_from_dict(raw: dict[str, Any], where: str) -> VisionConfig:
    """A `VisionConfig` from a `CLIPVisionConfig` file, or from the vision part of a whole `CLIPConfig` file."""
    if "vision_config" in raw:
        raw = section(raw, "vision_config", where)
    kind = raw.get("model_type", "clip_vision_model")
    if kind not in ("clip_vision_model", "clip"):
        raise LlavaError(f"{where}: vision tower of type {shown(kind)}; only CLIP vision transformers are supported")
    return read_fields(VisionConfig, raw, where)


def _text_config(raw: dict[str, Any], where: str) -> TextConfig:
    kind = raw.get("model_type", "llama")
    if kind not in ("llama", "llava", "llava_llama"):
        raise LlavaError(f"{where}: text model of type {shown(kind)}; only LLaMA decoders (Vicuna) are supported")
    rope = section(raw, "rope_parameters", where) or section(raw, "rope_scaling", where)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "linear"):
        raise LlavaError(f"{where}: rope scaling {shown(rope_type)} is not supported; only 'linear' is")
    text = read_fields(
        TextConfig,
        raw,
        where,
        rope_theta=rope.get("rope_theta", raw.get("rope_theta")),
        rope_scaling_factor=rope.get("factor") if rope_type == "linear" else None,
        eos_token_id=[] if raw.get("eos_token_id", 2) is None else raw.get("eos_token_id"),
    )
    heads, hidden_size = text.num_attention_heads, text.hidden_size
    if raw.get("head_dim") is None and hidden_size % heads:
        raise LlavaError(f"{where}: hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}")
    return replace(
        text,
        head_dim=text.head_dim if raw.get("head_dim") is not None else hidden_size // heads,
        num_key_value_heads=text.num_key_value_heads if raw.get("num_key_value_heads") is not None else heads,
    )


def _from_hf(raw: dict[str, Any], where: str) -> LlavaConfig:
    kind = one_of(raw, "model_type", ("llava", "llava_next"), where)
    text_raw = dict(section(raw, "text_config", where))
    if raw.get("tie_word_embeddings"):
        text_raw["tie_word_embeddings"] = True
    vision_raw = section(raw, "vision_config", where)
    grid = None
    if kind == "llava_next":
        grid = pinpoints(raw.get("image_grid_pinpoints") or ANYRES_PINPOINTS, where)
    one_of(raw, "projector_hidden_act", ("gelu",), where)
    bias = raw.get("multimodal_projector_bias", True)
    if not isinstance(bias, bool):
        raise LlavaError(f"{where}: multimodal_projector_bias must be true or false, found {shown(bias)}")
    image_token = raw.get("image_token_index", raw.get("image_token_id", HF_IMAGE_TOKEN_ID))
    return LlavaConfig(
        vision=vision_config_from_dict(vision_raw, f"{where}: vision_config") if vision_raw else CLIP_VIT_L_336,
        text=_text_config(text_raw, f"{where}: text_config"),
        image_token_id=checked_int(image_token, "image_token_index", where),
        image_grid_pinpoints=grid,
        image_aspect_ratio="anyres" if grid else None,
        projector_bias=bias,
        vision_feature_layer=checked_int(raw.get("vision_feature_layer", -2), "vision_feature_layer", where),
        keep_cls=one_of(raw, "vision_feature_select_strategy", ("default", "full"), where) == "full",
        dtype=_dtype(raw, text_raw),
    )


def _from_original(raw: dict[str, Any], vision_raw: dict[str, Any] | None, where: str) -> LlavaConfig:
    name = raw.get("mm_vision_tower", raw.get("vision_tower"))
    if name is not None and not isinstance(name, str):
        raise LlavaError(f"{where}: mm_vision_tower must be a name, found {shown(name)}")
    if vision_raw is not None:
        vision = vision_config_from_dict(vision_raw, f"the vision tower {name}")
    elif "vision_config" in raw:
        vision = vision_config_from_dict(section(raw, "vision_config", where), f"{where}: vision_config")
    elif name in KNOWN_TOWERS:
        vision = KNOWN_TOWERS[name]
    else:
        raise LlavaError(f"{where}: the shape of the vision tower {name!r} is not known without its own config.json")
    aspect_ratio = cast(ImageAspectRatio, one_of(raw, "image_aspect_ratio", get_args(ImageAspectRatio), where))
    merge = one_of(raw, "mm_patch_merge_type", ("flat", "spatial_unpad"), where)
    if raw.get("mm_use_im_start_end"):
        raise LlavaError(f"{where}: mm_use_im_start_end checkpoints (before LLaVA 1.5) are not supported")
    grid = None
    if aspect_ratio == "anyres":
        listed = raw.get("image_grid_pinpoints") or ANYRES_PINPOINTS
        grid = tuple((height, width) for width, height in pinpoints(listed, where))
    projector_type = raw.get("mm_projector_type", "linear")
    if not isinstance(projector_type, str):
        raise LlavaError(f"{where}: mm_projector_type must be a name, found {shown(projector_type)}")
    return LlavaConfig(
        vision=vision,
        text=_text_config(raw, where),
        image_token_id=checked_int(raw.get("image_token_index", ORIGINAL_IMAGE_TOKEN_ID), "image_token_index", where),
        image_aspect_ratio=aspect_ratio,
        image_grid_pinpoints=grid,
        unpad=merge == "spatial_unpad",
        projector_type=projector_type,
        vision_feature_layer=checked_int(raw.get("mm_vision_select_layer", -2), "mm_vision_select_layer", where),
        keep_cls=one_of(raw, "mm_vision_select_feature", ("patch", "cls_patch"), where) == "cls_patch",
        vision_tower_name=name,
        dtype=_dtype(raw),
    )


def _dtype(*sources: dict[str, Any]) -> str:
    for source in sources:
        name = source.get("dtype", source.get("torch_dtype"))
        if isinstance(name, str):
            return name
    return "float32"
