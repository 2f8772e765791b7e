"""What some conversations tell about a decoder whose weights are to go to 4 bits.

A few channels of a layer's input are far larger than the others, and the weights that meet them decide on its output.
Such channels are made smaller by what comes before the layer and their weights larger by as much, which changes
nothing but how finely those weights are rounded (AWQ, Lin et al. 2023, arXiv:2306.00978); and rounding minds their
errors more. The model runs in float32 with one decoder layer in memory at a time, so that it need not fit as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import numpy as np
import paddle
from paddle import Tensor, nn

from paddle_llava.checkpoints.dtypes import to_dtype
from paddle_llava.checkpoints.write import Progress, TensorSource
from paddle_llava.config import LlavaConfig, TextConfig
from paddle_llava.engines.openvino.calibration import Calibration
from paddle_llava.engines.openvino.quantize import quantize
from paddle_llava.models.llama import LlamaLayer, for_all_heads, rotary_embedding
from paddle_llava.models.llava import LlavaNetwork

Module = TypeVar("Module", bound=nn.Layer)

ROWS = 128
"""Rows of each matrix, evenly spread, on which factors are tried."""
INPUTS = 64
"""Rows of a layer's input, of each conversation, with which the error of its output is measured."""
TINY = np.finfo(np.float32).tiny
RATIOS = tuple(step / 10 for step in range(11))
"""Powers of the channels' magnitudes that are tried as factors; 0 leaves them as they are."""


class Site(NamedTuple):
    """Linear layers with one input, and the module before them that can give it with its channels divided."""

    source: str
    linears: tuple[str, ...]


SITES = (
    Site("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Site("self_attn.v_proj", ("self_attn.o_proj",)),
    Site("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    Site("mlp.up_proj", ("mlp.down_proj",)),
)


def calibrate(
    config: LlavaConfig,
    tensors: TensorSource,
    conversations: Iterable[Mapping[str, Any]],
    layers: Sequence[int],
    group_size: int,
    progress: Progress | None = None,
) -> Calibration:
    """Run `conversations`, each as an engine's `prefill` takes it with one row, and calibrate the decoder's `layers`.

    Factors are those of a few powers of the channels' mean magnitudes that do least to a layer's output in 4 bits, by
    its squared error. `progress` is told the layers done and in all.
    """
    result = Calibration()
    states = _embedded(config, tensors, conversations)
    rotations = {
        length: for_all_heads(rotary_embedding(config.text, paddle.arange(length)[None], "float32"), config.text)
        for length in {state.shape[1] for state in states}
    }
    count = max(layers, default=-1) + 1
    for number in range(count):
        prefix = f"language_model.layers.{number}"
        layer = _loaded(lambda: LlamaLayer(config.text, 0), tensors, f"{prefix}.")
        if number in layers:
            states = _watched(layer, prefix, states, rotations, config.text, group_size, result)
        else:
            states = _run(layer, states, rotations)
        del layer  # or it would stay while the next one is read
        if progress:
            progress(number + 1, count)
    return result


def _run(layer: LlamaLayer, states: list[Tensor], rotations: Mapping[int, Any]) -> list[Tensor]:
    with paddle.no_grad():
        return [layer(state, rotations[state.shape[1]]) for state in states]


def _watched(
    layer: LlamaLayer,
    prefix: str,
    states: list[Tensor],
    rotations: Mapping[int, Any],
    config: TextConfig,
    group_size: int,
    result: Calibration,
) -> list[Tensor]:
    """What the layer makes of `states`; what was seen meanwhile goes into `result`."""
    watches = [_Watch(layer, site) for site in SITES]
    states = _run(layer, states, rotations)
    for watch in watches:
        watch.stop()
        if watch.mean_square.size % group_size:
            continue  # stays in 8 bits
        factors = watch.best_factors(config, group_size)
        for linear in watch.site.linears:
            result.factors[f"{prefix}.{linear}"] = factors
            result.importance[f"{prefix}.{linear}"] = watch.mean_square / np.square(factors)
        result.divisors[f"{prefix}.{watch.site.source}"] = _of_source(factors, watch.site, config)
    return states


def _embedded(config: LlavaConfig, tensors: TensorSource, conversations: Iterable[Mapping[str, Any]]) -> list[Tensor]:
    """What enters the first layer, [1, length, hidden_size] for each conversation."""
    without_layers = replace(config.text, num_hidden_layers=0, tie_word_embeddings=True)
    network = _loaded(lambda: LlavaNetwork(replace(config, text=without_layers)), tensors)
    states = []
    with paddle.no_grad():
        for inputs in conversations:
            features: list[Tensor] = []
            if inputs.get("pixel_values") is not None:
                sizes = np.asarray(inputs["image_sizes"]).tolist()
                features = network.encode_images(paddle.to_tensor(inputs["pixel_values"]), sizes)
            states.append(network.embed(paddle.to_tensor(inputs["input_ids"]), features))
    return states


def _loaded(build: Callable[[], Module], tensors: TensorSource, prefix: str = "") -> Module:
    """What `build` builds, in float32, with its parameters read from those that `prefix` begins."""
    with paddle.LazyGuard():  # no time for random parameters
        module = build()
    for name, parameter in module.state_dict().items():
        array = to_dtype(tensors.read(prefix + name), tensors.dtype(prefix + name), "float32", where=prefix + name)
        paddle.to_tensor(array)._share_buffer_to(parameter)
    module.eval()
    return module


class _Watch:
    """Sees what enters the Linear layers of a site. Tokens with large inputs, such as a text's first, count for more:
    scaling all to one size made answers worse (measured on a 135 M LLaMA: 0.45 against 0.34 nats of divergence)."""

    def __init__(self, layer: LlamaLayer, site: Site) -> None:
        self.site = site
        self.linears = [attrgetter(name)(layer) for name in site.linears]
        self._squares = self._magnitudes = np.zeros(self.linears[0].weight.shape[0], np.float32)
        self._length, self._rows = 0, list[np.ndarray]()
        self._hook = self.linears[0].register_forward_pre_hook(self._see)

    def stop(self) -> None:
        """See no more. Until then this and the layer hold each other, and both stay in memory."""
        self._hook.remove()

    def _see(self, _: nn.Layer, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].flatten(0, -2).numpy()
        self._squares = self._squares + np.einsum("ri,ri->i", rows, rows)
        self._magnitudes = self._magnitudes + np.abs(rows).sum(axis=0)
        self._length += len(rows)
        self._rows.append(rows[np.linspace(0, len(rows) - 1, min(len(rows), INPUTS)).astype(int)])

    @property
    def mean_square(self) -> np.ndarray:
        return self._squares / self._length

    def best_factors(self, config: TextConfig, group_size: int) -> np.ndarray:
        """Those with which 4 bits do least to the output, float32 [in]."""
        magnitude = _alike(self._magnitudes / self._length, self.site, config)
        rows, weights = np.concatenate(self._rows), [_some_rows(linear) for linear in self.linears]
        tried = [_factors(magnitude, ratio) for ratio in RATIOS]
        errors = [
            sum(_output_error(weight, factors, rows, self.mean_square, group_size) for weight in weights)
            for factors in tried
        ]
        return tried[int(np.argmin(errors))]


def _some_rows(linear: nn.Linear) -> np.ndarray:
    """Of its matrix, float32 [up to ROWS, in]."""
    weight = linear.weight.numpy()
    step = -(-weight.shape[1] // ROWS)
    return np.ascontiguousarray(weight[:, ::step].T)


def _factors(magnitude: np.ndarray, ratio: float) -> np.ndarray:
    factors = np.maximum(magnitude, 1e-4 * magnitude.mean() + TINY) ** ratio
    return (factors / np.sqrt(factors.max() * factors.min())).astype(np.float32)


def _output_error(
    weight: np.ndarray, factors: np.ndarray, rows: np.ndarray, mean_square: np.ndarray, group_size: int
) -> float:
    quantized = quantize(weight * factors, 4, group_size, mean_square / np.square(factors))
    difference = quantized.dequantized() / factors - weight
    return float(np.square(rows @ difference.T).sum())


def _alike(magnitude: np.ndarray, site: Site, config: TextConfig) -> np.ndarray:
    """The same for all channels that one of the source's outputs feeds: heads of a group share their values."""
    if site.source != "self_attn.v_proj":
        return magnitude
    heads = magnitude.reshape(config.num_key_value_heads, -1, config.head_dim)
    return np.broadcast_to(heads.mean(axis=1, keepdims=True), heads.shape).reshape(-1)


def _of_source(factors: np.ndarray, site: Site, config: TextConfig) -> np.ndarray:
    """`factors` [in] of a site's input as its source's outputs [out]."""
    if site.source != "self_attn.v_proj":
        return factors
    return factors.reshape(config.num_key_value_heads, -1, config.head_dim)[:, 0].reshape(-1)
