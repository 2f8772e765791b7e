"""The shape of a LLaVA: a vision tower, a text decoder, and how they are joined.

`LlavaConfig.from_dict` reads the three published forms of `config.json`: the `-hf` form (nested, leaving out
whatever equals `transformers`' defaults), the original `liuhaotian/*` form and the Paddle form (both flat).
`paddle_llava.checkpoints.config_file` writes each of them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from paddle_llava.errors import LlavaError
from paddle_llava.geometry import ImageLayout, Size, image_layout

Layout = Literal["hf", "original", "paddle"]
ImageAspectRatio = Literal["square", "pad", "anyres"]

ORIGINAL_IMAGE_TOKEN_ID = -200
HF_IMAGE_TOKEN_ID = 32000
MAX_LAYERS = 1000
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
            kind = raw.get("model_type", "unknown")
            raise LlavaError(
                f"{where}: not a LLaVA configuration (model_type {kind!r}, neither text_config nor mm_vision_tower)"
            )
        _check(config, where)
        return config


def separate_tower(raw: dict[str, Any]) -> str | None:
    """The vision tower that an original or Paddle file names and whose shape is not known by heart, if any."""
    name = raw.get("mm_vision_tower", raw.get("vision_tower"))
    if not isinstance(name, str) or "vision_config" in raw or name in KNOWN_TOWERS:
        return None
    return name


def vision_config_from_dict(raw: dict[str, Any], where: str) -> VisionConfig:
    """A `VisionConfig` from a `CLIPVisionConfig` file, or from the vision part of a whole `CLIPConfig` file."""
    raw = raw.get("vision_config", raw)
    if not isinstance(raw, dict):
        raise LlavaError(f"{where}: vision_config must be an object")
    kind = raw.get("model_type", "clip_vision_model")
    if kind not in ("clip_vision_model", "clip"):
        raise LlavaError(f"{where}: vision tower of type {kind!r}; only CLIP vision transformers are supported")
    return _read_fields(VisionConfig, raw, where)


def _read_fields(cls: type, raw: dict[str, Any], where: str, **computed: Any) -> Any:
    """An instance of the dataclass `cls` from the keys of `raw` that it knows, type-checked."""
    values = dict(computed)
    for field in fields(cls):
        value = raw.get(field.name)
        if field.name in computed or value is None:
            continue
        kind = str(field.type)
        wanted: tuple[type, ...] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}.get(
            kind, (object,)
        )
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind != "bool"):
            raise LlavaError(f"{where}: {field.name} must be of type {kind}, found {value!r}")
        if isinstance(value, int) and kind == "int" and not 0 < value < 2**31:
            raise LlavaError(f"{where}: {field.name} must be positive, found {value}")
        values[field.name] = value
    return cls(**values)


def _text_config(raw: dict[str, Any], where: str) -> TextConfig:
    kind = raw.get("model_type", "llama")
    if kind not in ("llama", "llava", "llava_llama"):
        raise LlavaError(f"{where}: text model of type {kind!r}; only LLaMA decoders (Vicuna) are supported")
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "linear"):
        raise LlavaError(f"{where}: rope scaling {rope_type!r} is not supported; only 'linear' is")
    heads = raw.get("num_attention_heads") or TextConfig.num_attention_heads
    hidden_size = raw.get("hidden_size") or TextConfig.hidden_size
    if not (isinstance(heads, int) and isinstance(hidden_size, int) and heads > 0 and hidden_size > 0):
        raise LlavaError(f"{where}: hidden_size and num_attention_heads must be positive integers")
    if raw.get("head_dim") is None and hidden_size % heads:
        raise LlavaError(f"{where}: hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}")
    eos = raw.get("eos_token_id", 2)
    return _read_fields(
        TextConfig,
        raw,
        where,
        head_dim=raw.get("head_dim") or hidden_size // heads,
        num_key_value_heads=raw.get("num_key_value_heads") or heads,
        rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
        rope_scaling_factor=float(rope.get("factor", 1.0)) if rope_type == "linear" else 1.0,
        eos_token_id=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
    )


def _from_hf(raw: dict[str, Any], where: str) -> LlavaConfig:
    kind = raw.get("model_type", "llava")
    if kind not in ("llava", "llava_next"):
        raise LlavaError(f"{where}: model_type {kind!r} is not supported, only llava and llava_next")
    text_raw = dict(raw.get("text_config") or {})
    text_raw.setdefault("tie_word_embeddings", bool(raw.get("tie_word_embeddings", False)))
    if raw.get("tie_word_embeddings"):
        text_raw["tie_word_embeddings"] = True
    vision_raw = raw.get("vision_config")
    vision = vision_config_from_dict(vision_raw, where) if vision_raw else CLIP_VIT_L_336
    pinpoints = None
    if kind == "llava_next":
        pinpoints = _pinpoints(raw.get("image_grid_pinpoints") or ANYRES_PINPOINTS, where)
    if raw.get("projector_hidden_act", "gelu") != "gelu":
        raise LlavaError(f"{where}: projector_hidden_act {raw['projector_hidden_act']!r}; only 'gelu' is supported")
    return LlavaConfig(
        vision=vision,
        text=_text_config(text_raw, where),
        image_token_id=raw.get("image_token_index", raw.get("image_token_id", HF_IMAGE_TOKEN_ID)),
        image_grid_pinpoints=pinpoints,
        image_aspect_ratio="anyres" if pinpoints else None,
        projector_bias=raw.get("multimodal_projector_bias", True),
        vision_feature_layer=raw.get("vision_feature_layer", -2),
        keep_cls=raw.get("vision_feature_select_strategy", "default") == "full",
        dtype=_dtype(raw, text_raw),
    )


def _from_original(raw: dict[str, Any], vision_raw: dict[str, Any] | None, where: str) -> LlavaConfig:
    name = raw.get("mm_vision_tower", raw.get("vision_tower"))
    if vision_raw is not None:
        vision = vision_config_from_dict(vision_raw, f"the vision tower {name}")
    elif "vision_config" in raw:
        vision = vision_config_from_dict(raw["vision_config"], where)
    elif name in KNOWN_TOWERS:
        vision = KNOWN_TOWERS[name]
    else:
        raise LlavaError(f"{where}: the shape of the vision tower {name!r} is not known without its own config.json")
    aspect_ratio: Any = raw.get("image_aspect_ratio") or "square"
    if aspect_ratio not in ("square", "pad", "anyres"):
        raise LlavaError(f"{where}: image_aspect_ratio {aspect_ratio!r} is not supported (square, pad or anyres)")
    merge = raw.get("mm_patch_merge_type", "flat")
    if merge not in ("flat", "spatial_unpad"):
        raise LlavaError(f"{where}: mm_patch_merge_type {merge!r} is not supported (flat or spatial_unpad)")
    if raw.get("mm_use_im_start_end"):
        raise LlavaError(f"{where}: mm_use_im_start_end checkpoints (before LLaVA 1.5) are not supported")
    pinpoints = None
    if aspect_ratio == "anyres":
        listed = raw.get("image_grid_pinpoints") or ANYRES_PINPOINTS
        pinpoints = tuple((height, width) for width, height in _pinpoints(listed, where))
    return LlavaConfig(
        vision=vision,
        text=_text_config(raw, where),
        image_token_id=raw.get("image_token_index", ORIGINAL_IMAGE_TOKEN_ID),
        image_aspect_ratio=aspect_ratio,
        image_grid_pinpoints=pinpoints,
        unpad=merge == "spatial_unpad",
        projector_type=raw.get("mm_projector_type", "linear"),
        vision_feature_layer=raw.get("mm_vision_select_layer", -2),
        keep_cls=raw.get("mm_vision_select_feature", "patch") == "cls_patch",
        vision_tower_name=name,
        dtype=_dtype(raw),
    )


def _pinpoints(listed: Any, where: str) -> tuple[Size, ...]:
    if (
        isinstance(listed, (list, tuple))
        and listed
        and all(
            isinstance(p, (list, tuple)) and len(p) == 2 and all(type(x) is int and x > 0 for x in p) for p in listed
        )
    ):
        return tuple((int(a), int(b)) for a, b in listed)
    raise LlavaError(f"{where}: image_grid_pinpoints must be a list of [int, int], found {listed!r}")


def _dtype(*sources: dict[str, Any]) -> str:
    for source in sources:
        name = source.get("dtype", source.get("torch_dtype"))
        if isinstance(name, str):
            return name
    return "float32"


def _check(config: LlavaConfig, where: str) -> None:
    vision, text = config.vision, config.text
    if max(vision.num_hidden_layers, text.num_hidden_layers) > MAX_LAYERS:
        raise LlavaError(f"{where}: num_hidden_layers is larger than {MAX_LAYERS}, which no model is")
    if vision.hidden_size % vision.num_attention_heads:
        raise LlavaError(f"{where}: vision hidden_size is not a multiple of its num_attention_heads")
    if vision.image_size % vision.patch_size:
        raise LlavaError(f"{where}: image_size {vision.image_size} is not a multiple of patch_size {vision.patch_size}")
    if text.num_attention_heads % text.num_key_value_heads:
        raise LlavaError(f"{where}: num_attention_heads is not a multiple of num_key_value_heads")
    if text.hidden_act != "silu" or vision.hidden_act not in ("quick_gelu", "gelu"):
        raise LlavaError(f"{where}: hidden_act {text.hidden_act!r} / {vision.hidden_act!r} is not supported")
    if not isinstance(config.vision_feature_layer, int):
        raise LlavaError(f"{where}: vision_feature_layer must be one integer, found {config.vision_feature_layer!r}")
    if not -vision.num_hidden_layers - 1 <= config.vision_feature_layer <= vision.num_hidden_layers:
        raise LlavaError(f"{where}: vision_feature_layer {config.vision_feature_layer} is outside the vision tower")
    kind = config.projector_type
    if kind != "linear" and not (kind.startswith("mlp") and kind.endswith("x_gelu") and kind[3:-6].isdigit()):
        raise LlavaError(f"{where}: projector {kind!r} is not supported (linear or mlpNx_gelu)")
    for pinpoint in config.image_grid_pinpoints or ():
        if any(side % vision.image_size for side in pinpoint):
            raise LlavaError(f"{where}: image_grid_pinpoints {pinpoint} are not multiples of {vision.image_size}")
