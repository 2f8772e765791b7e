"""Which part of a model is stored in which number format, and how the CPU plug-in should compute with it."""

from __future__ import annotations

from dataclasses import dataclass

from paddle_llava.config import TextConfig
from paddle_llava.errors import LlavaError, did_you_mean

WEIGHTS = ("int4", "int8", "bf16", "f32")
GROUP_SIZES = (32, 64, 128)
NARROW = 1024
"""Hidden sizes of narrow models are below: they need smaller groups, which cost them little."""


@dataclass(frozen=True)
class Format:
    """Matrices in `f32`, `bf16`, `int8` (a scale a row) or `int4` (a scale a group of a row)."""

    name: str
    group_size: int | None = None


@dataclass(frozen=True)
class Formats:
    """What `--weights` and `--group-size` stand for, part by part; without a group size it follows from the model."""

    weights: str
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            near = did_you_mean(self.weights, WEIGHTS)
            raise LlavaError(f"weights {self.weights[:40]!r} are not one of {', '.join(WEIGHTS)}{near}")
        if self.group_size not in (None, *GROUP_SIZES):
            raise LlavaError(f"group size {self.group_size} is not one of {', '.join(map(str, GROUP_SIZES))}")

    def group(self, model: TextConfig) -> int:
        """The group size: 64, and 32 of a narrow model, unless one was asked for."""
        return self.group_size or (32 if model.hidden_size < NARROW else 64)

    def layers(self, model: TextConfig) -> list[Format]:
        """Of the decoder's layers. With int4 the first and the last one, on which answers depend most, stay int8."""
        count = model.num_hidden_layers
        if self.weights != "int4":
            return [self.rest] * count
        four_bits = Format("int4", self.group(model))
        return [self.rest if layer in (0, count - 1) else four_bits for layer in range(count)]

    @property
    def rest(self) -> Format:
        """Of the vision tower, the projector, the token embedding and the output head."""
        return Format("int8" if self.weights == "int4" else self.weights)

    def bytes_per_parameter(self, model: TextConfig) -> float:
        """About, on the disk."""
        return {"f32": 4.0, "bf16": 2.0, "int8": 1.01, "int4": 0.5 + 2 / self.group(model) + 0.1}[self.weights]

    def decoder_settings(self, model: TextConfig) -> dict[str, str]:
        """How the plug-in computes the decoder."""
        if self.weights == "f32":
            return {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        if self.weights == "int4":  # which bfloat16 makes slower
            return {"INFERENCE_PRECISION_HINT": "f32", **_activations(self.group(model))}
        return self.other_settings()

    def other_settings(self) -> dict[str, str]:
        """How it computes the vision tower, the projector and the token embedding."""
        if self.weights == "f32":
            return {"INFERENCE_PRECISION_HINT": "f32"}
        return {} if self.weights == "bf16" else _activations(128)


def _activations(group_size: int) -> dict[str, str]:
    """Rounded weights meet activations in 8 bits, with a scale for each group of this many. The plug-in's own 32 is a
    little more exact, and took 1.3 times as long for a prefill."""
    return {"DYNAMIC_QUANTIZATION_GROUP_SIZE": str(group_size)}
