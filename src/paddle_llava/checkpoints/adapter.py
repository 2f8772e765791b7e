"""LoRA adapters in PEFT's layout (`adapter_config.json`, `adapter_model.safetensors`), so that `peft` loads ours and we
load its own.

The projector, when it was trained too, stands beside the adapters as PEFT's `modules_to_save`. What an adapter is comes
from its files, never from the name of its folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paddle_llava.checkpoints.dtypes import to_dtype
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
# Settings of PEFT that change what an adapter computes, and their only value that is supported. Others, such as
# `alora_invocation_tokens`, are null or absent unless they change it.
_PLAIN: dict[str, Any] = {
    "use_dora": False,
    "use_rslora": False,
    "use_qalora": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "lora_bias": False,
}
_OTHER_COMPUTATIONS = (
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
    "use_bdlora",
    "kasa_config",
    "velora_config",
    "monteclora_config",
)
# Ways of drawing A and B that leave the base as it is; the others (PiSSA, OLoRA, ...) change its weights too.
_INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
_STORED_NAME = re.compile(r"base_model\.model\.(.+?)(?:\.lora_(A|B)(?:\.default)?)?\.(weight|bias)")


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
    """Write `adapter` to `folder`, its settings last."""
    theirs = transformers_names(config)
    arrays: dict[str, np.ndarray] = {}
    for name, (a, b) in adapter.pairs.items():
        module = theirs[f"{name}.weight"].removesuffix(".weight")
        arrays[f"{_PREFIX}{module}.lora_A.weight"] = a.T
        arrays[f"{_PREFIX}{module}.lora_B.weight"] = b.T
    for name, array in adapter.whole.items():
        arrays[_PREFIX + theirs[name]] = array.T if is_linear(name) else array
    modules = [theirs[f"{name}.weight"].removesuffix(".weight") for name in adapter.pairs]
    saved = {theirs[name].split(".")[1] for name in adapter.whole}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).unlink(missing_ok=True)
    specs = {name: ("float32", array.shape) for name, array in arrays.items()}
    write_safetensors(folder / WEIGHTS, specs, lambda name: np.ascontiguousarray(arrays[name], dtype=np.float32))
    write_json(
        folder / SETTINGS,
        {
            "peft_type": "LORA",
            "base_model_name_or_path": adapter.base_model,
            "r": adapter.rank,
            "lora_alpha": adapter.alpha,
            "lora_dropout": adapter.dropout,
            "target_modules": modules,
            "modules_to_save": sorted(saved) or None,
            "inference_mode": True,
            "init_lora_weights": True,
            "task_type": None,
            **_PLAIN,
        },
    )


def read_adapter(folder: Path, config: LlavaConfig) -> Adapter:
    """The adapter in `folder` for a model of `config`. Raises `LlavaError` naming the file and the key or tensor."""
    for name in (SETTINGS, WEIGHTS):
        if not (folder / name).is_file():
            raise LlavaError(f"{folder}: this folder has no {name}, so it is no LoRA adapter in PEFT's layout")
    settings = read_json(folder / SETTINGS)
    where = folder / SETTINGS
    if settings.get("peft_type") != "LORA":
        raise LlavaError(f"{where}: peft_type {settings.get('peft_type')!r} is not supported, only LORA")
    for key, plain in _PLAIN.items():
        if settings.get(key, plain) != plain:
            raise LlavaError(f"{where}: {key} = {settings[key]!r} is not supported")
    if settings.get("rank_pattern") or settings.get("alpha_pattern"):
        raise LlavaError(f"{where}: ranks and alphas that differ between layers are not supported")
    adapter = Adapter(
        rank=_number(settings, "r", where),
        alpha=_number(settings, "lora_alpha", where),
        base_model=str(settings.get("base_model_name_or_path") or ""),
    )
    weights = SafetensorsFile(folder / WEIGHTS)
    try:
        _fill(adapter, weights, config, folder / WEIGHTS)
    finally:
        weights.close()
    return adapter


class Merged:
    """The tensors of a base model with an adapter added, one at a time."""

    def __init__(self, base: TensorSource, adapter: Adapter) -> None:
        self._base = base
        self._adapter = adapter

    @property
    def folder(self) -> Path | None:
        return self._base.folder

    def names(self) -> list[str]:
        return self._base.names()

    def dtype(self, name: str) -> str:
        return self._base.dtype(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name)

    def read(self, name: str) -> np.ndarray:
        dtype = self.dtype(name)
        if name in self._adapter.whole:
            return to_dtype(self._adapter.whole[name], "float32", dtype, where=name)
        pair = self._adapter.pairs.get(name.removesuffix(".weight"))
        if pair is None or not name.endswith(".weight"):
            return self._base.read(name)
        weight = to_dtype(self._base.read(name), dtype, "float32", where=name)
        weight = weight + self._adapter.scale * (pair[0] @ pair[1])
        return to_dtype(weight, "float32", dtype, where=name)


def _fill(adapter: Adapter, weights: SafetensorsFile, config: LlavaConfig, where: Path) -> None:
    shapes = parameter_shapes(config)
    halves: dict[str, dict[str, np.ndarray]] = {}
    for stored in weights.names():
        found = re.fullmatch(r"base_model\.model\.(.+?)(?:\.lora_(A|B)(?:\.default)?)?\.(weight|bias)", stored)
        name = canonical_name(f"{found[1]}.{found[3]}", CHECKPOINT_NAMES["hf"]) if found else None
        if found is None or name not in shapes:
            raise LlavaError(f"{where}: {stored!r} belongs to no part of this model")
        array = to_dtype(weights.read(stored), weights.dtype(stored), "float32", where=stored)
        if found[2]:
            halves.setdefault(name.removesuffix(".weight"), {})[found[2]] = np.ascontiguousarray(array.T)
        else:
            adapter.whole[name] = np.ascontiguousarray(array.T) if is_linear(name) else array
    for name, half in halves.items():
        expected = shapes[f"{name}.weight"]
        if set(half) != {"A", "B"}:
            raise LlavaError(f"{where}: {name} has only one of lora_A and lora_B")
        given = (half["A"].shape, half["B"].shape)
        if given != ((expected[0], adapter.rank), (adapter.rank, expected[1])):
            raise LlavaError(f"{where}: {name} has A, B of {given} for a layer {expected} at rank {adapter.rank}")
        adapter.pairs[name] = (half["A"], half["B"])
    for name, array in adapter.whole.items():
        if array.shape != shapes[name]:
            raise LlavaError(f"{where}: {name} has shape {array.shape}, the model's is {shapes[name]}")


def _number(settings: Mapping[str, Any], key: str, where: Path) -> Any:
    value = settings.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise LlavaError(f"{where}: {key} must be a positive number, found {value!r}")
    return value
