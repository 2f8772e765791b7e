"""The LLaMA decoder as an OpenVINO graph with the cache of keys and values as its state.

Inputs and output are named as in the published `openvino_language_model.xml` files. `models/llama.py` is the same in
Paddle; forms that the CPU plug-in takes for one operation (RMS norm, rotary embedding, attention with its cache) are
written the way it looks for them, and `tests/engines/test_openvino_engine.py` counts what it found.
"""

from __future__ import annotations

import numpy as np
from openvino import Model, Node, Type
from openvino import opset13 as ops
from openvino.op import Parameter

from paddle_llava.config import TextConfig
from paddle_llava.engines.openvino.formats import Format
from paddle_llava.engines.openvino.weights import Weights, parameter

LAYERS = "language_model.layers"


def decoder_graph(config: TextConfig, weights: Weights, forms: list[Format], head: Format) -> Model:
    """`inputs_embeds` [batch, length, hidden_size], `attention_mask` [batch, past + length], `position_ids`
    [batch, length] and `beam_idx` [batch] to `logits` [batch, 1, vocab_size] of the last position.

    The mask's columns are the cache's slots, in order: a slot whose column is 0 is not looked at. Positions are for the
    rotation only. `forms` are of the layers, `head` of the output head.
    """
    embeds = parameter("inputs_embeds", [-1, -1, config.hidden_size], Type.f32)
    mask = parameter("attention_mask", [-1, -1], Type.i64)
    positions = parameter("position_ids", [-1, -1], Type.i64)
    beams = parameter("beam_idx", [-1], Type.i32)
    shared = _Shared(config, weights, embeds, mask, positions, beams)
    hidden: Node = embeds
    for layer, form in enumerate(forms):
        hidden = shared.layer(hidden, f"{LAYERS}.{layer}", layer, form)
    last = ops.slice(hidden, [-1], [np.iinfo(np.int64).max], [1], [1])
    normed = shared.norm(last, "language_model.norm")
    if config.tie_word_embeddings:
        logits = weights.tied(normed, "language_model.embed_tokens", head)
    else:
        logits = weights.linear(normed, ["lm_head"], head)
    result = ops.result(logits, name="logits")
    result.output(0).get_tensor().set_names({"logits"})
    return Model([result], shared.sinks, [embeds, mask, positions, beams], "language_model")


class _Shared:
    """What all layers have in common: the mask, the rotations, the way into the cache."""

    def __init__(
        self,
        config: TextConfig,
        weights: Weights,
        embeds: Parameter,
        mask: Parameter,
        positions: Parameter,
        beams: Parameter,
    ) -> None:
        self.config = config
        self.weights = weights
        self.beams = beams
        self.sinks: list[Node] = []
        self.batch = ops.gather(ops.shape_of(embeds, "i64"), [0], 0)
        self.mask = _causal_mask(embeds, mask)
        self.cos, self.sin = _rotations(config, positions)

    def layer(self, hidden: Node, name: str, layer: int, form: Format) -> Node:
        attended = self.attention(self.norm(hidden, f"{name}.input_layernorm"), f"{name}.self_attn", layer, form)
        hidden = ops.add(hidden, attended)
        return ops.add(hidden, self.mlp(self.norm(hidden, f"{name}.post_attention_layernorm"), f"{name}.mlp", form))

    def norm(self, x: Node, name: str) -> Node:
        squares = ops.reduce_mean(ops.power(x, np.float32(2)), [-1], keep_dims=True)
        root = ops.sqrt(ops.add(squares, np.float32(self.config.rms_norm_eps)))
        return ops.multiply(ops.multiply(x, ops.divide(np.float32(1), root)), self.weights.vector(f"{name}.weight"))

    def mlp(self, x: Node, name: str, form: Format) -> Node:
        gate = self.weights.linear(x, [f"{name}.gate_proj"], form)
        up = self.weights.linear(x, [f"{name}.up_proj"], form)
        return self.weights.linear(ops.multiply(ops.swish(gate), up), [f"{name}.down_proj"], form)

    def attention(self, x: Node, name: str, layer: int, form: Format) -> Node:
        config = self.config
        # One product with wide rows decodes faster than three.
        product = self.weights.linear(x, [f"{name}.{module}_proj" for module in "qkv"], form)
        counts = [config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads]
        widths = [count * config.head_dim for count in counts]
        query, key, value = (self.heads(part) for part in ops.variadic_split(product, 2, widths).outputs())
        query, key = self.rotate(query), self.rotate(key)
        keys, values = self.remember(key, layer, "key"), self.remember(value, layer, "value")
        output = ops.scaled_dot_product_attention(query, keys, values, self.mask)
        width = config.num_attention_heads * config.head_dim
        output = ops.reshape(ops.transpose(output, [0, 2, 1, 3]), [0, 0, width], special_zero=True)
        return self.weights.linear(output, [f"{name}.o_proj"], form)

    def heads(self, x: Node) -> Node:
        """[batch, length, heads * head_dim] to [batch, heads, length, head_dim]."""
        return ops.transpose(ops.reshape(x, [0, 0, -1, self.config.head_dim], special_zero=True), [0, 2, 1, 3])

    def rotate(self, x: Node) -> Node:
        half = self.config.head_dim // 2
        first, second = (ops.slice(x, [start], [end], [1], [3]) for start, end in ((0, half), (half, 2 * half)))
        turned = ops.concat([ops.multiply(second, np.float32(-1)), first], axis=-1)
        return ops.add(ops.multiply(x, self.cos), ops.multiply(turned, self.sin))

    def remember(self, new: Node, layer: int, kind: str) -> Node:
        """The state with `new` behind it, each key and value head as often as there are query heads to it."""
        config = self.config
        name = f"past_key_values.{layer}.{kind}"
        kv_heads, head_dim = config.num_key_value_heads, config.head_dim
        shape = ops.concat([self.batch, np.array([kv_heads, 0, head_dim], np.int64)], axis=0)
        empty = ops.broadcast(np.float32(0), shape)
        past = ops.read_value(empty, name, Type.f32, [-1, kv_heads, -1, head_dim])
        past = ops.gather(past, self.beams, 0)
        held = ops.concat([past, new], axis=2)
        self.sinks.append(ops.assign(held, name))
        repeats = config.num_attention_heads // kv_heads
        if repeats == 1:
            return held
        repeated = ops.broadcast(ops.unsqueeze(held, 2), [1, 1, repeats, 1, 1], broadcast_spec="BIDIRECTIONAL")
        return ops.reshape(repeated, [0, config.num_attention_heads, -1, head_dim], special_zero=True)


def _causal_mask(embeds: Parameter, mask: Parameter) -> Node:
    """[batch, 1, length, past + length], additive: 0 where a query may look. Slots count, not positions."""
    length = ops.gather(ops.shape_of(embeds, "i64"), 1, 0)
    slots = ops.gather(ops.shape_of(mask, "i64"), 1, 0)
    columns = ops.range(np.int64(0), slots, np.int64(1), "i64")
    rows = ops.range(ops.subtract(slots, length), slots, np.int64(1), "i64")
    causal = ops.less_equal(ops.unsqueeze(columns, 0), ops.unsqueeze(rows, 1))
    seen = ops.logical_and(ops.unsqueeze(causal, [0, 1]), ops.unsqueeze(ops.convert(mask, "boolean"), [1, 2]))
    return ops.select(seen, np.float32(0), np.finfo(np.float32).min)


def _rotations(config: TextConfig, positions: Parameter) -> tuple[Node, Node]:
    """Cosines and sines [batch, 1, length, head_dim]."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    frequencies = 1.0 / (np.float32(config.rope_theta) ** exponents) / np.float32(config.rope_scaling_factor)
    angles = ops.multiply(
        ops.unsqueeze(ops.convert(positions, "f32"), [1, 3]), frequencies.reshape(1, 1, 1, -1).astype(np.float32)
    )
    angles = ops.concat([angles, angles], axis=-1)
    return ops.cos(angles), ops.sin(angles)
