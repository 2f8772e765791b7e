"""The CLIP vision tower with the projector, and the token embedding, as OpenVINO graphs.

`models/clip.py` and `models/projector.py` are the same in Paddle. Inputs and outputs are named as in the published
`openvino_vision_embeddings_model.xml` and `openvino_text_embeddings_model.xml` files.
"""

from __future__ import annotations

import numpy as np
from openvino import Model, Node, Type
from openvino import opset13 as ops

from paddle_llava.config import LlavaConfig, VisionConfig
from paddle_llava.engines.openvino.formats import Format
from paddle_llava.engines.openvino.weights import Weights, constant, parameter

TOWER = "vision_tower"


def vision_graph(config: LlavaConfig, weights: Weights, form: Format) -> Model:
    """`pixel_values` float32 [tiles, channels, side, side] to `last_hidden_state`, which is [tiles, features,
    text hidden_size]: what takes the places of image tokens, before tiles are arranged to a picture."""
    vision = config.vision
    side = vision.image_size
    pixels = parameter("pixel_values", [-1, vision.num_channels, side, side], Type.f32)
    hidden = _embedded(vision, weights, pixels)
    last = config.vision_feature_layer
    for layer in range(last if last >= 0 else vision.num_hidden_layers + 1 + last):
        hidden = _layer(vision, weights, hidden, f"{TOWER}.layers.{layer}", form)
    if not config.keep_cls:
        hidden = ops.slice(hidden, [1], [np.iinfo(np.int64).max], [1], [1])
    for index in range(config.projector_depth):
        if index:
            hidden = ops.gelu(hidden, "erf")
        hidden = weights.linear(hidden, [f"projector.{2 * index}"], form)
    return _model(hidden, "last_hidden_state", pixels, "vision_embeddings_model")


def text_embedding_graph(config: LlavaConfig, weights: Weights, form: Format) -> Model:
    """`input` int64 [batch, length] to `inputs_embeds` float32 [batch, length, hidden_size]."""
    ids = parameter("input", [-1, -1], Type.i64)
    table = constant(weights.read("language_model.embed_tokens.weight"), form)
    return _model(ops.gather(table, ids, 0), "inputs_embeds", ids, "text_embeddings_model")


def _model(node: Node, output: str, given: Node, name: str) -> Model:
    result = ops.result(node, name=output)
    result.output(0).get_tensor().set_names({output})
    return Model([result], [given], name)


def _embedded(vision: VisionConfig, weights: Weights, pixels: Node) -> Node:
    """[tiles, 1 + patches, hidden_size]: the class token, then the patches, after `pre_layernorm`."""
    patch, width = vision.patch_size, vision.hidden_size
    kernel = weights.vector(f"{TOWER}.patch_embedding.weight")
    patches = ops.convolution(pixels, kernel, [patch, patch], [0, 0], [0, 0], [1, 1])
    patches = ops.transpose(ops.reshape(patches, [0, width, -1], special_zero=True), [0, 2, 1])
    tiles = ops.gather(ops.shape_of(pixels, "i64"), [0], 0)
    token = ops.reshape(weights.vector(f"{TOWER}.class_embedding"), [1, 1, width], special_zero=False)
    tokens = ops.broadcast(token, ops.concat([tiles, np.array([1, width], np.int64)], axis=0))
    positions = weights.vector(f"{TOWER}.position_embedding.weight")
    embedded = ops.add(ops.concat([tokens, patches], axis=1), positions)
    return _layer_norm(vision, weights, embedded, f"{TOWER}.pre_layernorm")


def _layer(vision: VisionConfig, weights: Weights, hidden: Node, name: str, form: Format) -> Node:
    normed = _layer_norm(vision, weights, hidden, f"{name}.layer_norm1")
    hidden = ops.add(hidden, _attention(vision, weights, normed, f"{name}.self_attn", form))
    normed = _layer_norm(vision, weights, hidden, f"{name}.layer_norm2")
    inner = weights.linear(normed, [f"{name}.mlp.fc1"], form)
    inner = ops.swish(inner, np.float32(1.702)) if vision.hidden_act == "quick_gelu" else ops.gelu(inner, "erf")
    return ops.add(hidden, weights.linear(inner, [f"{name}.mlp.fc2"], form))


def _layer_norm(vision: VisionConfig, weights: Weights, x: Node, name: str) -> Node:
    normed = ops.mvn(x, [-1], True, vision.layer_norm_eps, "inside_sqrt")
    return ops.add(ops.multiply(normed, weights.vector(f"{name}.weight")), weights.vector(f"{name}.bias"))


def _attention(vision: VisionConfig, weights: Weights, x: Node, name: str, form: Format) -> Node:
    heads, width = vision.num_attention_heads, vision.hidden_size

    def projected(module: str) -> Node:
        product = weights.linear(x, [f"{name}.{module}"], form)
        return ops.transpose(ops.reshape(product, [0, 0, heads, width // heads], special_zero=True), [0, 2, 1, 3])

    output = ops.scaled_dot_product_attention(projected("q_proj"), projected("k_proj"), projected("v_proj"))
    output = ops.reshape(ops.transpose(output, [0, 2, 1, 3]), [0, 0, width], special_zero=True)
    return weights.linear(output, [f"{name}.out_proj"], form)
