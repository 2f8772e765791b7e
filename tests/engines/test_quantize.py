"""Weights in 4 and 8 bits: how much is lost, what is refused, and that the graph holds the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paddle_llava.engines.openvino.quantize import Quantized, quantize
from paddle_llava.errors import LlavaError
from paddle_llava.pretrained import find_pretrained

FORMS = [(4, 128), (4, 32), (8, None)]
RANDOM = np.random.default_rng(0)
DRAWN = {
    "normal": RANDOM.standard_normal((48, 384)),
    "heavy-tailed": RANDOM.standard_t(2.5, (48, 384)),
    "uniform": RANDOM.random((48, 384)) - 0.5,
}


def by_magnitude(weight: np.ndarray, bits: int, group_size: int | None) -> np.ndarray:
    """What rounding with the greatest magnitude as the greatest code makes of it. The scale is stored as ours is, in
    float16."""
    grouped = weight.reshape(len(weight), -1, group_size or weight.shape[1])
    scale = np.abs(grouped).max(axis=-1, keepdims=True) / (127 if bits == 8 else 7)
    scale = scale.astype(np.float16).astype(np.float32)
    return (np.rint(grouped / scale) * scale).reshape(weight.shape)


def loss(weight: np.ndarray, approximation: np.ndarray, importance: np.ndarray | float = 1.0) -> float:
    return float((np.square(approximation - weight) * importance).sum() / (np.square(weight) * importance).sum())


@pytest.mark.parametrize(("bits", "group_size"), FORMS)
@pytest.mark.parametrize("name", DRAWN)
def test_less_is_lost_than_by_magnitude(name: str, bits: int, group_size: int | None) -> None:
    weight = DRAWN[name].astype(np.float32)
    ours = loss(weight, quantize(weight, bits, group_size).dequantized())
    assert ours < loss(weight, by_magnitude(weight, bits, group_size))


def test_less_is_lost_of_a_models_weights(demo_checkpoint: Path) -> None:
    with find_pretrained(demo_checkpoint).open_weights() as checkpoint:
        names = [f"language_model.layers.1.{name}.weight" for name in ("self_attn.q_proj", "mlp.up_proj")]
        weights = [np.ascontiguousarray(checkpoint.read(name).T, np.float32) for name in names]
    for weight in weights:
        for bits, group_size in FORMS:
            ours = loss(weight, quantize(weight, bits, group_size).dequantized())
            assert ours < loss(weight, by_magnitude(weight, bits, group_size))


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("group_size", [128, 32])
def test_four_bits_come_near_the_least_that_can_be_lost(group_size: int, name: str) -> None:
    weight = DRAWN[name][:16].astype(np.float32)
    groups = weight.reshape(-1, group_size)
    least = np.full(len(groups), np.inf)
    for width in np.linspace(0.2, 1.4, 200):
        for sign in (1, -1):
            scale = sign * np.abs(groups).max(axis=1, keepdims=True) * width / 8
            codes = np.rint(groups / scale).clip(-8, 7)
            least = np.minimum(least, np.square(codes * scale - groups).sum(axis=1))
    ours = np.square(quantize(weight, 4, group_size).dequantized() - weight).sum()
    assert ours < 1.03 * least.sum()


@pytest.mark.parametrize(("bits", "group_size"), FORMS)
def test_important_channels_lose_less(bits: int, group_size: int | None) -> None:
    weight = DRAWN["heavy-tailed"].astype(np.float32)
    importance = np.where(np.arange(384) % 16 == 3, 100, 1).astype(np.float32)
    weighted = quantize(weight, bits, group_size, importance).dequantized()
    plain = quantize(weight, bits, group_size).dequantized()
    assert loss(weight, weighted, importance) < loss(weight, plain, importance)
    assert loss(weight, weighted) > loss(weight, plain)


@pytest.mark.parametrize(("bits", "group_size"), FORMS)
def test_groups_of_one_kind_of_weight(bits: int, group_size: int | None) -> None:
    weight = np.zeros((4, 256), np.float32)
    weight[1], weight[2] = 0.37, -1.5e-3
    weight[3, 70] = 8.0
    result = quantize(weight, bits, group_size).dequantized()
    assert not result[0].any()
    assert np.abs(result[1:3] / weight[1:3] - 1).max() < 1e-3  # float16's own precision
    assert result[3] == pytest.approx(weight[3], rel=1e-3)
    assert np.isfinite(quantize(weight, bits, group_size, np.zeros(256, np.float32)).dequantized()).all()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e9])
def test_what_no_scale_expresses_is_refused(value: float) -> None:
    weight = np.ones((3, 64), np.float32)
    weight[1, 5] = value
    for bits in (4, 8):
        with pytest.raises(LlavaError, match=r"not finite|too large"):
            quantize(weight, bits, 32)


def test_what_is_given_stays_as_it_is_and_what_comes_back_fits() -> None:
    weight = DRAWN["normal"].astype(np.float32)
    before = weight.copy()
    four, eight = quantize(weight, 4, 128), quantize(weight, 8, None)
    assert np.array_equal(weight, before)
    for result, shape, least, greatest in ((four, (48, 3), -8, 7), (eight, (48, 1), -127, 127)):
        assert (result.values.dtype, result.scale.dtype, result.scale.shape) == (np.int8, np.float16, shape)
        assert (result.values.min(), result.values.max()) == (least, greatest)
    assert {*np.sign(four.scale).ravel()} == {1, -1}  # whichever end of a group needs the code more
    assert (eight.scale > 0).all()


@pytest.mark.parametrize(("bits", "group_size"), FORMS)
def test_the_graph_holds_the_same_numbers(bits: int, group_size: int | None) -> None:
    openvino = pytest.importorskip("openvino")
    from paddle_llava.engines.openvino.weights import dequantized

    weight: Quantized = quantize(DRAWN["normal"].astype(np.float32), bits, group_size)
    model = openvino.Model([dequantized(weight)], [], "weights")
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (inside,) = compiled({}).values()
    assert np.abs(inside - weight.dequantized()).max() < 1e-3 * np.abs(weight.dequantized()).max()
