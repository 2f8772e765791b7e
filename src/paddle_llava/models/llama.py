"""The LLaMA decoder (Touvron et al. 2023, arXiv:2302.13971; grouped-query attention as in LLaMA 2)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.autograd import PyLayer
from paddle.distributed.fleet.utils import recompute
from paddle.incubate.nn.functional import fused_rms_norm

from paddle_llava.config import TextConfig
from paddle_llava.environment import cpu_info
from paddle_llava.models.attention import attention, causal_mask, segmented_attention, swap_heads
from paddle_llava.models.kv_cache import KVCache
from paddle_llava.models.side_by_side import SideBySide

Rotation = tuple[Tensor, Tensor]
Rotations = tuple[Tensor, Tensor, Tensor, Tensor]  # of the queries, and of the keys
Lengths = list[list[int]]


class RMSNorm(nn.Layer):
    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = self.create_parameter([hidden_size], default_initializer=nn.initializer.Constant(1.0))

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not paddle.is_grad_enabled() and _has_fused_kernel():
            return fused_rms_norm(hidden_states, self.weight, None, self.eps, hidden_states.ndim - 1)[0]
        if paddle.is_grad_enabled() and hidden_states.dtype == paddle.float32:
            return _RMSNorm.apply(hidden_states, self.weight, self.eps)
        x = hidden_states.astype("float32")
        x = x * paddle.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return x.astype(hidden_states.dtype) * self.weight


@cache
def _has_fused_kernel() -> bool:
    """Whether `fused_rms_norm` runs forward here (it has no gradient on the CPU).

    Paddle's wheels hold one for the CPU that is made of AVX-512 instructions, which end the process elsewhere.
    """
    return paddle.get_device() != "cpu" or "avx512f" in cpu_info().get("flags", "").split()


class _RMSNorm(PyLayer):
    """x / rms(x) * weight in float32, with the gradient written out: a fifth of the time of what it is composed of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = paddle.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        normed = x * inverse
        ctx.save_for_backward(normed, inverse, weight)
        ctx.wanted = [not x.stop_gradient, not weight.stop_gradient]
        return normed * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        normed, inverse, weight = ctx.saved_tensor()
        for_x, for_weight = ctx.wanted
        product = gradient * normed
        weight_gradient = None
        if for_weight:  # a sum over rows, as a product that all cores take part in
            rows = product.reshape([-1, weight.shape[0]])
            weight_gradient = paddle.matmul(paddle.ones([rows.shape[0]]), rows)
        if not for_x:
            return None, weight_gradient
        mean = paddle.matmul(product, weight).unsqueeze(-1) / weight.shape[0]
        return (gradient * weight).subtract_(normed * mean).multiply_(inverse), weight_gradient


def rotary_embedding(config: TextConfig, position_ids: Tensor, dtype: paddle.dtype) -> Rotation:
    """Cosines and sines, each [batch, 1, length, head_dim], of rotary position embedding (arXiv:2104.09864)."""
    exponents = paddle.arange(0, config.head_dim, 2, dtype="float32") / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    angles = position_ids.astype("float32").unsqueeze(-1) / config.rope_scaling_factor * frequencies
    angles = paddle.concat([angles, angles], axis=-1).unsqueeze(1)
    return angles.cos().astype(dtype), angles.sin().astype(dtype)


def for_all_heads(rotation: Rotation, config: TextConfig) -> Rotations:
    """`rotation` at the size of queries and of keys, made once for all layers: broadcasting in each would take longer
    than rotating, and more so on the way back."""
    cos, sin = (x.tile([1, config.num_attention_heads, 1, 1]) for x in rotation)
    if config.num_key_value_heads == config.num_attention_heads:
        return cos, sin, cos, sin
    key_cos, key_sin = (x.tile([1, config.num_key_value_heads, 1, 1]) for x in rotation)
    return cos, sin, key_cos, key_sin


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate `x` [batch, heads, length, head_dim]; the halves of head_dim are paired, as in the published weights."""
    cos, sin = rotation
    if x.place.is_cpu_place() and x.dtype == paddle.float32 and not x.is_dist():
        return _Rotated.apply(x, cos, sin)
    first, second = x.chunk(2, axis=-1)
    return x * cos + paddle.concat([-second, first], axis=-1) * sin


class _Rotated(PyLayer):
    """`rotate` on the CPU, where the halves change places in a product with a matrix of 0, 1 and -1: exact, and with
    the gradient written out a fifth of the time of cutting and joining them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return x * cos + paddle.matmul(x, _quarter_turn(x.shape[-1])) * sin

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensor()
        turn = _quarter_turn(gradient.shape[-1])
        return gradient * cos + paddle.matmul(gradient * sin, turn, transpose_y=True), None, None


@cache
def _quarter_turn(head_dim: int) -> Tensor:
    """R [head_dim, head_dim] such that [a, b] R = [-b, a] for the halves a and b of a row."""
    one = np.eye(head_dim // 2, dtype=np.float32)
    return paddle.to_tensor(np.block([[0 * one, one], [-one, 0 * one]]), place="cpu")


class LlamaAttention(nn.Layer):
    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        width, kv_width = (
            config.num_attention_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
        )
        bias = None if config.attention_bias else False
        self.q_proj = nn.Linear(config.hidden_size, width, bias_attr=bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias_attr=bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias_attr=bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias_attr=bias)

    def forward(
        self,
        hidden_states: Tensor,
        rotations: Rotations,
        mask: Tensor | None = None,
        cache: KVCache | SideBySide | None = None,
        lengths: Lengths | None = None,
    ) -> Tensor:
        batch, length, _ = hidden_states.shape
        query, key, value = (
            swap_heads(projection(hidden_states).reshape([batch, length, -1, self.head_dim]))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotate(query, rotations[:2]), rotate(key, rotations[2:])
        if isinstance(cache, SideBySide):
            output = cache.attend(self.layer, query, key, value)
        elif lengths is not None:
            output = segmented_attention(query, key, value, lengths)
        else:
            past = 0 if cache is None else cache.length
            if cache is not None:
                cached = cache.append(self.layer, key, value)
                key, value = cached if past else (key, value)
            output = attention(query, key, value, mask, past=past)
        return self.o_proj(swap_heads(output).reshape([batch, length, -1]))


class LlamaMLP(nn.Layer):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        bias = None if config.mlp_bias else False
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias_attr=bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias_attr=bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias_attr=bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        gate, up = self.gate_proj(hidden_states), self.up_proj(hidden_states)
        # On the CPU the fused one takes twice the time of the two: its exponentials are made one by one.
        return self.down_proj(F.silu(gate) * up if gate.place.is_cpu_place() else F.swiglu(gate, up))


class LlamaLayer(nn.Layer):
    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LlamaAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(
        self,
        hidden_states: Tensor,
        rotations: Rotations,
        mask: Tensor | None = None,
        cache: KVCache | SideBySide | None = None,
        lengths: Lengths | None = None,
    ) -> Tensor:
        attended = self.self_attn(self.input_layernorm(hidden_states), rotations, mask, cache, lengths)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class LlamaDecoder(nn.Layer):
    """Token embeddings, decoder layers and the final norm; the output head belongs to the whole model."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False  # trade a second forward pass for the memory of all activations
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.LayerList([LlamaLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        valid: Tensor | None = None,
        cache: KVCache | SideBySide | None = None,
        lengths: Lengths | None = None,
    ) -> Tensor:
        """[batch, length, hidden_size] to the same shape, after the final norm.

        `position_ids` is int64 [batch or 1, length]. `valid` is bool [batch, past + length], False on padding; None
        means that nothing is padded. With a `cache`, the new tokens follow those it holds and are added to it; of
        several sequences `SideBySide` each row is a token, [tokens, 1, hidden_size].
        `lengths` are those of the samples packed into each row, which do not see each other.
        """
        length = inputs_embeds.shape[1]
        past = cache.length if isinstance(cache, KVCache) else 0
        mask = None
        if past or valid is not None:
            keys = cache.capacity(length) if isinstance(cache, KVCache) and past else length
            if valid is not None and valid.shape[1] < keys:
                unused = paddle.ones([valid.shape[0], keys - valid.shape[1]], dtype="bool")  # hidden causally
                valid = paddle.concat([valid, unused], axis=1)
            mask = causal_mask(length, keys, past, valid)
        rotations = for_all_heads(rotary_embedding(self.config, position_ids, inputs_embeds.dtype), self.config)
        hidden_states = inputs_embeds
        for layer in self.layers:
            if self.recompute and self.training:
                hidden_states = recompute(layer, hidden_states, rotations, mask, None, lengths)
            else:
                hidden_states = layer(hidden_states, rotations, mask, cache, lengths)
        if cache is not None:
            cache.advance(length)
        return self.norm(hidden_states)
