"""The values of a `config.json`: of the right types, within bounds, and fitting together.

What passes here can be computed: a number that would make a layer fail, or answer nonsense, is refused by its key
before a weight is read.
"""

from __future__ import annotations

import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from paddle_llava.errors import LlavaError
from paddle_llava.geometry import Size

if TYPE_CHECKING:
    from paddle_llava.config import LlavaConfig

# All numbers of a configuration are positive; the largest ones go to 2^31 - 1, but for these.
SMALLEST = {"int": 1, "float": 1e-12}
LARGEST = {
    "num_hidden_layers": 1000,
    "image_size": 4096,
    "layer_norm_eps": 1e-3,  # Paddle's LayerNorm takes no more
}
MAX_NUMBER = 2**31 - 1
MAX_PINPOINTS, MAX_TILES = 1000, 100
PROJECTOR = re.compile("linear|mlp[1-9][0-9]?x_gelu")
KINDS: dict[str, Any] = {
    "int": int,
    "float": (int, float),
    "str": str,
    "bool": bool,
}


def read_fields(cls: type, raw: dict[str, Any], where: str, **computed: Any) -> Any:
    """An instance of the dataclass `cls` from the keys of `raw` that it knows, where `computed` has none for them.

    A null means what leaving the key out means. Raises `LlavaError` naming `where` and the key.
    """
    values = {}
    for field in fields(cls):
        value = computed.get(field.name, raw.get(field.name))
        if value is not None:
            values[field.name] = _checked(value, field.name, str(field.type), where)
    return cls(**values)


def _checked(value: Any, key: str, kind: str, where: str) -> Any:
    if kind == "tuple[int, ...]":  # ids of tokens
        listed = value if isinstance(value, (list, tuple)) else [value]
        return tuple(checked_int(item, key, where) for item in listed)
    if kind == "int | None":
        return checked_int(value, key, where)
    if not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != "bool"):
        raise LlavaError(f"{where}: {key} must be of type {kind}, found {shown(value)}")
    if kind in ("int", "float"):
        smallest, largest = SMALLEST[kind], LARGEST.get(key, MAX_NUMBER)
        if not smallest <= value <= largest:
            raise LlavaError(f"{where}: {key} must be from {smallest} to {largest}, found {shown(value)}")
    return float(value) if kind == "float" else value


def checked_int(value: Any, key: str, where: str) -> int:
    """`value`, an integer of 32 bits. Raises `LlavaError` naming `where` and the key."""
    if type(value) is not int or abs(value) > MAX_NUMBER:
        raise LlavaError(f"{where}: {key} must be one integer, found {shown(value)}")
    return value


def section(raw: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    """The object under `key`, empty when there is none. Raises `LlavaError` for anything else."""
    value = raw.get(key)
    if value is not None and not isinstance(value, dict):
        raise LlavaError(f"{where}: {key} must be an object, found {shown(value)}")
    return value or {}


def one_of(raw: dict[str, Any], key: str, known: tuple[str, ...], where: str) -> str:
    """The text under `key`, the first of `known` without one. Raises `LlavaError` for a text that is none of them."""
    value = raw.get(key)
    if value is None:
        return known[0]
    if value not in known:
        raise LlavaError(f"{where}: {key} {shown(value)} is not supported, only {' and '.join(known)}")
    return value


def pinpoints(listed: Any, where: str) -> tuple[Size, ...]:
    """`image_grid_pinpoints` as they are listed. Raises `LlavaError` for anything but pairs of positive integers."""
    if (
        isinstance(listed, (list, tuple))
        and 0 < len(listed) <= MAX_PINPOINTS
        and all(
            isinstance(p, (list, tuple)) and len(p) == 2 and all(type(x) is int and x > 0 for x in p) for p in listed
        )
    ):
        return tuple((int(a), int(b)) for a, b in listed)
    raise LlavaError(f"{where}: image_grid_pinpoints must be a list of [int, int], found {shown(listed)}")


def shown(value: Any) -> str:
    """A value of a file's in a message: short, whatever it is."""
    text = repr(value[:60] if isinstance(value, (str, list)) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check(config: LlavaConfig, where: str) -> None:
    """Whether the parts fit together. Raises `LlavaError` naming `where` and the key."""
    vision, text = config.vision, config.text
    if vision.hidden_size % vision.num_attention_heads:
        raise LlavaError(f"{where}: vision hidden_size is not a multiple of its num_attention_heads")
    if vision.image_size % vision.patch_size:
        raise LlavaError(f"{where}: image_size {vision.image_size} is not a multiple of patch_size {vision.patch_size}")
    if vision.num_channels != 3:
        raise LlavaError(f"{where}: num_channels is {vision.num_channels}, but pictures have 3")
    if text.num_attention_heads % text.num_key_value_heads:
        raise LlavaError(f"{where}: num_attention_heads is not a multiple of num_key_value_heads")
    if text.head_dim % 2:
        raise LlavaError(f"{where}: head_dim {text.head_dim} is odd, but rotary positions turn pairs")
    if text.hidden_act != "silu" or vision.hidden_act not in ("quick_gelu", "gelu"):
        acts = f"{shown(text.hidden_act)} / {shown(vision.hidden_act)}"
        raise LlavaError(f"{where}: hidden_act {acts} is not supported")
    if not -vision.num_hidden_layers - 1 <= config.vision_feature_layer <= vision.num_hidden_layers:
        raise LlavaError(f"{where}: vision_feature_layer {config.vision_feature_layer} is outside the vision tower")
    if not PROJECTOR.fullmatch(config.projector_type):
        raise LlavaError(f"{where}: projector {shown(config.projector_type)} is not supported (linear or mlpNx_gelu)")
    for height, width in config.image_grid_pinpoints or ():
        size = vision.image_size
        if height % size or width % size or height * width > MAX_TILES * size * size:
            raise LlavaError(
                f"{where}: image_grid_pinpoints has {shown([height, width])}, which are not multiples of {size} "
                f"with at most {MAX_TILES} tiles"
            )
