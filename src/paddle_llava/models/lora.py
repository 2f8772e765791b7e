"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): a frozen Linear plus a trained product of two thin ones."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from paddle_llava.errors import LlavaError


class LoRALinear(nn.Layer):
    """`base(x) + scale * dropout(x) A B`, with A [in, rank] random and B [rank, out] zero, so that training starts at
    the base model. A and B are float32 whatever the base's dtype is, which keeps small updates."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        inputs, outputs = base.weight.shape
        self.base = base
        self.training = base.training  # a new layer is in training mode, whatever its model is in
        self.scale = alpha / rank
        self.dropout = dropout
        bound = 1 / math.sqrt(inputs)  # kaiming_uniform(a=sqrt(5)), as PEFT draws it
        self.lora_A = self.create_parameter(
            [inputs, rank], dtype="float32", default_initializer=nn.initializer.Uniform(-bound, bound)
        )
        self.lora_B = self.create_parameter(
            [rank, outputs], dtype="float32", default_initializer=nn.initializer.Constant(0.0)
        )

    def forward(self, x: Tensor) -> Tensor:
        kept = F.dropout(x, self.dropout, training=self.training) if self.dropout else x
        low = paddle.matmul(paddle.matmul(kept.astype(self.lora_A.dtype), self.lora_A), self.lora_B)
        return self.base(x) + (low * self.scale).astype(x.dtype)


def add_lora(
    model: nn.Layer, names: dict[str, str], patterns: Sequence[str], rank: int, alpha: float, dropout: float
) -> list[str]:
    """Put a `LoRALinear` in the place of every Linear of the decoder that a pattern selects; returns their names.

    `names` are what the patterns, regular expressions for the whole name, are written against: our weight name -> the
    Paddle layout's (`llama.layers.0.self_attn.q_proj.weight`), with or without the final `.weight`. Raises `LlavaError`
    for a pattern that is no expression or selects nothing, and without any pattern.
    """
    if not patterns:
        raise LlavaError("lora_target_modules: names no layer; leave it out to adapt every Linear of the decoder")
    adapted: list[str] = []
    for pattern in patterns:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise LlavaError(f"lora_target_modules: {pattern!r} is no regular expression ({error})") from None
        found = [
            ours.removesuffix(".weight")
            for ours, theirs in names.items()
            if ours.startswith("language_model.layers.")
            and ours.endswith("_proj.weight")
            and (expression.fullmatch(theirs) or expression.fullmatch(theirs.removesuffix(".weight")))
        ]
        if not found:
            raise LlavaError(
                f"lora_target_modules: {pattern!r} selects no layer; names are like llama.layers.0.self_attn.q_proj"
            )
        adapted += [name for name in found if name not in adapted]
    for name in adapted:
        replace_layer(model, name, lambda linear: LoRALinear(linear, rank, alpha, dropout))
    return adapted


def replace_layer(model: nn.Layer, name: str, make: Callable[[nn.Layer], nn.Layer]) -> None:
    """Put `make(layer)` in the place of the layer `name`, a dotted path."""
    *path, last = name.split(".")
    parent = model
    for step in path:
        parent = getattr(parent, step)
    setattr(parent, last, make(getattr(parent, last)))
