"""The model's parts once more, in float64 numpy and as the papers write them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """One query at a time. query [batch, heads, queries, dim], visible bool [batch, queries, keys]."""
    batch, heads, queries, dim = query.shape
    group = heads // key.shape[1]
    output = np.zeros(query.shape)
    for b in range(batch):
        for h in range(heads):
            for q in range(queries):
                seen = visible[b, q]
                scores = key[b, h // group, seen].astype(np.float64) @ query[b, h, q] / math.sqrt(dim)
                output[b, h, q] = softmax(scores) @ value[b, h // group, seen]
    return output


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    x = x.astype(np.float64)
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps) * weight + bias


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def quick_gelu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-1.702 * x))


def turned(x: np.ndarray, positions: np.ndarray, theta: float = 10000.0, factor: float = 1.0) -> np.ndarray:
    """Rotary embedding: the halves of x [..., length, dim] are the real and imaginary parts of turning numbers."""
    half = x.shape[-1] // 2
    speeds = theta ** (-np.arange(half) / half)
    number = x[..., :half].astype(np.float64) + 1j * x[..., half:]
    number = number * np.exp(1j * np.outer(positions / factor, speeds))
    return np.concatenate([number.real, number.imag], axis=-1)


def clip_hidden_states(
    weights: Mapping[str, np.ndarray], pixels: np.ndarray, *, patch: int, heads: int, eps: float, act: str
) -> list[np.ndarray]:
    """`hidden_states` of a CLIP vision transformer: the input of the first layer, then each layer's output."""
    kernel = weights["patch_embedding.weight"].reshape(len(weights["class_embedding"]), -1)
    rows = []
    for picture in pixels.astype(np.float64):
        patches = [
            kernel @ picture[:, top : top + patch, left : left + patch].ravel()
            for top in range(0, picture.shape[1], patch)
            for left in range(0, picture.shape[2], patch)
        ]
        rows.append(np.stack([weights["class_embedding"], *patches]) + weights["position_embedding.weight"])
    x = np.stack(rows)

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        return layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def split(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)

    states = [norm("pre_layernorm", x)]
    visible = np.ones((len(x), x.shape[1], x.shape[1]), bool)
    activation = {"gelu": gelu, "quick_gelu": quick_gelu}[act]
    number = 0
    while f"layers.{number}.layer_norm1.weight" in weights:
        layer, x = f"layers.{number}", states[-1]
        normed = norm(f"{layer}.layer_norm1", x)
        query, key, value = (
            split(linear(f"{layer}.self_attn.{name}", normed)) for name in ("q_proj", "k_proj", "v_proj")
        )
        attended = attention(query, key, value, visible).swapaxes(1, 2).reshape(x.shape)
        x = x + linear(f"{layer}.self_attn.out_proj", attended)
        hidden = activation(linear(f"{layer}.mlp.fc1", norm(f"{layer}.layer_norm2", x)))
        states.append(x + linear(f"{layer}.mlp.fc2", hidden))
        number += 1
    return states
