"""LoRA adapters in PEFT's layout (`adapter_config.json`, `adapter_model.safetensors`), so that `peft` loads ours and we
load its own.

The projector, when it was trained too, stands beside the adapters as PEFT's `modules_to_save`. What an adapter is comes
from its files, never from the name of its folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from paddle_llava.checkpoints.dtypes import FLOATS, to_dtype
from paddle_llava.checkpoints.names import (
    CHECKPOINT_NAMES,
    canonical_name,
    is_linear,
    parameter_shapes,
    transformers_names,
)
from paddle_llava.checkpoints.safetensors_file import SafetensorsFile, write_safetensors
from paddle_llava.checkpoints.write import TensorSource
from paddle_llava.config import LlavaConfig
from paddle_llava.errors import LlavaError
from paddle_llava.json_file import read_json, write_json

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_STORED = re.compile(r"base_model\.model\.(.+?)(?:\.lora_(A|B)(?:\.default)?)?\.(weight|bias)")
# Settings of PEFT that do not change what a trained adapter computes. Any other one that is not null, false or empty
# belongs to a variant of LoRA (DoRA, rank-stabilised, ...), of which PEFT has more every year.
_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_ga_config", "megatron_config",
    "megatron_core", "modules_to_save", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "target_modules", "task_type",
}  # fmt: skip
# Ways of drawing A and B that leave the base as it is; others (PiSSA, OLoRA, ...) take their product out of it.
_INITIALIZATIONS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass
class Adapter:
    """A trained adaptation of one base model, float32.

    `pairs` maps the name of a Linear (`language_model.layers.0.self_attn.q_proj`) to A [in, rank] and B [rank, out];
    `whole` holds parameters that replace the base's (the projector's), in our orientation.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    base_model: str = ""
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    whole: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def write_adapter(folder: Path, adapter: Adapter, config: LlavaConfig) -> None:
    """Write `adapter` to `folder`, its settings last. Raises `LlavaError` when it cannot be written."""
    theirs = transformers_names(config)
    modules = {name: theirs[f"{name}.weight"].removesuffix(".weight") for name in adapter.pairs}
    arrays: dict[str, np.ndarray] = {}
    for name, (a, b) in adapter.pairs.items():
        arrays[f"{_PREFIX}{modules[name]}.lora_A.weight"] = a.T
        arrays[f"{_PREFIX}{modules[name]}.lora_B.weight"] = b.T
    for name, array in adapter.whole.items():
        arrays[_PREFIX + theirs[name]] = array.T if is_linear(name) else array
    saved = {theirs[name].split(".")[1] for name in adapter.whole}
    specs = {name: ("float32", array.shape) for name, array in arrays.items()}
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": adapter.base_model,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": list(modules.values()),
        "modules_to_save": sorted(saved) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SETTINGS).unlink(missing_ok=True)
        write_safetensors(folder / WEIGHTS, specs, lambda name: np.ascontiguousarray(arrays[name], dtype=np.float32))
        write_json(folder / SETTINGS, settings)
    except OSError as error:
        raise LlavaError(f"{folder}: the adapter cannot be written ({error.strerror or error})") from error


def read_adapter(folder: Path, config: LlavaConfig) -> Adapter:
    """The adapter in `folder` for a model of `config`. Raises `LlavaError` naming the file and the key or tensor."""
    if not folder.is_dir():
        raise LlavaError(f"{folder}: no such folder; that of a LoRA adapter is expected")
    for name in (SETTINGS, WEIGHTS):
        if not (folder / name).is_file():
            raise LlavaError(f"{folder}: this folder has no {name}, so it is no LoRA adapter in PEFT's layout")
    adapter = _read_settings(folder / SETTINGS)
    weights = SafetensorsFile(folder / WEIGHTS)
    try:
        _fill(adapter, weights, parameter_shapes(config), folder / WEIGHTS)
    finally:
        weights.close()
    return adapter


def foreign_base(adapter: Adapter, name: str) -> str | None:
    """A sentence when the adapter was made for another of the published models than the one of that `name`, whose
    shapes may be the same."""
    ours, theirs = map(_published, (name, adapter.base_model))
    if not ours or not theirs or ours == theirs:
        return None
    return f"the adapter was trained for {adapter.base_model}, and not for {name}: answers may make no sense"


def _published(name: str) -> str | None:
    """`1.5-7b` of `liuhaotian/llava-v1.5-7b`, `llava-hf/llava-1.5-7b-hf` and its folder in the hub's cache
    (`models--llava-hf--llava-1.5-7b-hf/snapshots/...`); None for a name of one's own."""
    found = re.search(r"llava-v?(1\.[56](?:-vicuna)?-(?:7|13)b)(?:-hf)?(?:/snapshots/[^/]+)?/?$", name.lower())
    return found[1] if found else None


class Merged:
    """The tensors of a base model with an adapter added, one at a time.

    What the adapter changes is computed in float32 and rounded once, to `dtype` (None: to the base tensor's own).
    """

    def __init__(self, base: TensorSource, adapter: Adapter, dtype: str | None = None) -> None:
        self._base = base
        self._adapter = adapter
        self._dtype = dtype
        self._changed = adapter.whole.keys() | {f"{name}.weight" for name in adapter.pairs}

    @property
    def folder(self) -> Path | None:
        return self._base.folder

    def names(self) -> list[str]:
        return self._base.names()

    def dtype(self, name: str) -> str:
        return self._dtype if self._dtype and name in self._changed else self._base.dtype(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name)

    def read(self, name: str) -> np.ndarray:
        if name not in self._changed:
            return self._base.read(name)
        if name in self._adapter.whole:
            weight = self._adapter.whole[name]
        else:
            weight = to_dtype(self._base.read(name), self._base.dtype(name), "float32", where=name)
        if name.removesuffix(".weight") in self._adapter.pairs and name.endswith(".weight"):
            a, b = self._adapter.pairs[name.removesuffix(".weight")]
            weight = weight + self._adapter.scale * (a @ b)
        return to_dtype(weight, "float32", self.dtype(name), where=name)


def _read_settings(path: Path) -> Adapter:
    settings = read_json(path)
    known = _HARMLESS | {"peft_type", "r", "lora_alpha", "lora_dropout", "init_lora_weights", "bias"}
    if settings.get("peft_type") != "LORA":
        raise _unusable(path, "peft_type", settings.get("peft_type"), "only LORA is supported")
    for key, value in settings.items():
        if key not in known and value:
            raise _unusable(path, key, value, "only plain LoRA is supported")
    if settings.get("bias", "none") != "none":
        raise _unusable(path, "bias", settings["bias"], "only 'none' is supported")
    initialization = settings.get("init_lora_weights", True)
    if initialization not in _INITIALIZATIONS:
        raise _unusable(path, "init_lora_weights", initialization, "it changes the base too; save as plain LoRA")
    rank = settings.get("r")
    if type(rank) is not int or rank <= 0:
        raise _unusable(path, "r", rank, "a positive integer is expected")
    alpha = _number(path, "lora_alpha", settings.get("lora_alpha"))
    dropout = _number(path, "lora_dropout", settings.get("lora_dropout", 0.0))
    return Adapter(rank, alpha, dropout, str(settings.get("base_model_name_or_path") or ""))


def _number(path: Path, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
        raise _unusable(path, key, value, "a number that is not negative is expected")
    return value


def _unusable(path: Path, key: str, value: object, why: str) -> LlavaError:
    return LlavaError(f"{path}: {key[:80]!r} is {str(value)[:80]!r}: {why}")


def _fill(adapter: Adapter, weights: SafetensorsFile, shapes: dict[str, tuple[int, ...]], where: Path) -> None:
    halves: dict[str, dict[str, np.ndarray]] = {}
    for stored in weights.names():
        found = _STORED.fullmatch(stored)
        name = canonical_name(f"{found[1]}.{found[3]}", CHECKPOINT_NAMES["hf"]) if found else None
        if found is None or name not in shapes or (found[2] and not is_linear(name)):
            raise LlavaError(f"{where}: {stored[:200]!r} belongs to no part of this model")
        if weights.dtype(stored) not in FLOATS:
            raise LlavaError(f"{where}: {stored[:200]!r} is of type {weights.dtype(stored)}, which no weight is")
        _check_shape(name, found[2], weights.shape(stored), shapes[name], adapter.rank, where)
        array = to_dtype(weights.read(stored), weights.dtype(stored), "float32", where=stored)
        array = np.ascontiguousarray(array.T) if is_linear(name) else array
        parts = halves.setdefault(name.removesuffix(".weight"), {}) if found[2] else adapter.whole
        key = found[2] or name
        if key in parts:
            raise LlavaError(f"{where}: {stored[:200]!r} is there a second time under an older name")
        parts[key] = array
    for name, half in halves.items():
        if set(half) != {"A", "B"}:
            raise LlavaError(f"{where}: {name} has only one of lora_A and lora_B")
        adapter.pairs[name] = (half["A"], half["B"])
    if not adapter.pairs and not adapter.whole:
        raise LlavaError(f"{where}: holds no tensors")


def _check_shape(
    name: str, half: str | None, stored: tuple[int, ...], expected: tuple[int, ...], rank: int, where: Path
) -> None:
    """Raise `LlavaError` unless a tensor, `half` of a pair or a whole parameter, goes with the model's parameter `name`
    of shape `expected`: before it is read, for an array without elements may announce sides that none can have."""
    given = stored[::-1] if is_linear(name) else stored
    if half is None and given != expected:
        raise LlavaError(f"{where}: {name} has shape {given}, the model's is {expected}")
    if half and given != ((expected[0], rank) if half == "A" else (rank, expected[1])):
        raise LlavaError(f"{where}: {name} has lora_{half} of {given} for a layer {expected} at rank {rank}")
