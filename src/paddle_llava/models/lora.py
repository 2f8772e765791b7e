"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): a frozen Linear plus a trained product of two thin ones."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.autograd import PyLayer

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
        dropout = self.dropout if self.training else 0.0
        if x.place.is_cpu_place() and x.dtype == self.lora_A.dtype and not self.lora_A.is_dist():
            seed = int(paddle.randint(0, 2**31 - 1, [])) if dropout else 0
            return self.base(x) + _LowRank.apply(x, self.lora_A, self.lora_B, self.scale, dropout, seed)
        kept = F.dropout(x, self.dropout, training=self.training) if self.dropout else x
        low = paddle.matmul(paddle.matmul(kept.astype(self.lora_A.dtype), self.lora_A), self.lora_B)
        return self.base(x) + (low * self.scale).astype(x.dtype)


class _LowRank(PyLayer):
    """`scale * dropout(x) A B` on the CPU with the gradient written out.

    Of dropout only one bit of each number is held, in a byte, instead of a copy of `x` for each adapter, and numpy
    draws it, in an eighth of the time that Paddle takes. Its `seed` comes from Paddle's generator, so that a seeded run
    and a recomputed layer draw the same again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, scale: float, dropout: float, seed: int) -> Tensor:
        ctx.dropped = None
        if dropout:
            drawn = np.random.Generator(np.random.SFC64(seed)).integers(0, 1 << 16, x.shape, np.uint16)
            ctx.dropped = paddle.to_tensor(drawn < np.uint16(dropout * (1 << 16)), place=x.place)
            scale /= 1 - dropout
        thin = paddle.matmul(_without(x, ctx.dropped), a).scale_(scale)
        ctx.save_for_backward(x, a, b, thin)
        ctx.scale, ctx.wanted = scale, [not each.stop_gradient for each in (x, a, b)]
        return paddle.matmul(thin, b)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, thin = ctx.saved_tensor()
        for_thin = paddle.matmul(gradient, b, transpose_y=True).scale_(ctx.scale)
        for_b = paddle.matmul(thin.flatten(0, -2), gradient.flatten(0, -2), transpose_x=True)
        for_a = paddle.matmul(_without(x, ctx.dropped).flatten(0, -2), for_thin.flatten(0, -2), transpose_x=True)
        for_x = _without(paddle.matmul(for_thin, a, transpose_y=True), ctx.dropped) if ctx.wanted[0] else None
        return tuple(each if wanted else None for each, wanted in zip((for_x, for_a, for_b), ctx.wanted, strict=True))


def _without(x: Tensor, dropped: Tensor | None) -> Tensor:
    """`x` with zeros where it is `dropped`."""
    return x if dropped is None else paddle.masked_fill(x, dropped, 0.0)


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
