from __future__ import annotations

from dataclasses import replace

import numpy as np
import paddle
import pytest
from formulas import attention, rms_norm, turned

from paddle_llava.config import TextConfig
from paddle_llava.models import llama
from paddle_llava.models.kv_cache import KVCache
from paddle_llava.models.llama import LlamaDecoder, RMSNorm, rotary_embedding, rotate

CONFIG = TextConfig(
    vocab_size=20,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    rms_norm_eps=1e-3,
    attention_bias=True,
    mlp_bias=True,
)


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(0)


def decoder(config: TextConfig, draw: np.random.Generator) -> tuple[LlamaDecoder, dict[str, np.ndarray]]:
    model = LlamaDecoder(config)
    model.eval()
    weights = {}
    for name, parameter in model.state_dict().items():
        weights[name] = draw.standard_normal(parameter.shape).astype(np.float32) * 0.3 + ("norm" in name)
        parameter.set_value(weights[name])
    return model, weights


def expected_output(
    config: TextConfig, weights: dict[str, np.ndarray], embeds: np.ndarray, positions: np.ndarray, visible: np.ndarray
) -> np.ndarray:
    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0.0)

    x = embeds.astype(np.float64)
    for number in range(config.num_hidden_layers):
        layer = f"layers.{number}"
        normed = rms_norm(x, weights[f"{layer}.input_layernorm.weight"], config.rms_norm_eps)
        query, key, value = (
            linear(f"{layer}.self_attn.{name}_proj", normed).reshape(*x.shape[:2], -1, config.head_dim).swapaxes(1, 2)
            for name in "qkv"
        )
        query, key = (turned(y, positions, config.rope_theta, config.rope_scaling_factor) for y in (query, key))
        attended = attention(query, key, value, visible).swapaxes(1, 2).reshape(*x.shape[:2], -1)
        x = x + linear(f"{layer}.self_attn.o_proj", attended)
        normed = rms_norm(x, weights[f"{layer}.post_attention_layernorm.weight"], config.rms_norm_eps)
        gate = linear(f"{layer}.mlp.gate_proj", normed)
        hidden = gate / (1 + np.exp(-gate)) * linear(f"{layer}.mlp.up_proj", normed)
        x = x + linear(f"{layer}.mlp.down_proj", hidden)
    return rms_norm(x, weights["norm.weight"], config.rms_norm_eps)


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
@pytest.mark.parametrize("size", [0.001, 1.0, 50.0])
def test_rms_norm_with_and_without_gradient(
    eps: float, size: float, draw: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm = RMSNorm(24, eps)
    weight = draw.standard_normal(24).astype(np.float32)
    norm.weight.set_value(weight)
    x = draw.standard_normal((2, 5, 24)).astype(np.float32) * size
    expected = rms_norm(x, weight, eps)
    assert np.abs(norm(paddle.to_tensor(x)).numpy() - expected).max() < 1e-5
    with paddle.no_grad():
        assert np.abs(norm(paddle.to_tensor(x)).numpy() - expected).max() < 1e-5
        monkeypatch.setattr(llama, "_has_fused_kernel", lambda: False)  # as on a processor without AVX-512
        assert np.abs(norm(paddle.to_tensor(x)).numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("frozen", ["nothing", "x", "weight"])
def test_rms_norm_has_the_gradient_of_its_formula(frozen: str, draw: np.random.Generator) -> None:
    norm = RMSNorm(24, 1e-3)
    norm.weight.set_value(draw.standard_normal(24).astype(np.float32))
    factors = paddle.to_tensor(draw.standard_normal((2, 5, 24)).astype(np.float32))
    x = paddle.to_tensor(draw.standard_normal((2, 5, 24)).astype(np.float32))
    x.stop_gradient, norm.weight.stop_gradient = frozen == "x", frozen == "weight"
    found = []
    for value in (norm(x), x * paddle.rsqrt((x * x).mean(-1, keepdim=True) + 1e-3) * norm.weight):
        (value * factors).sum().backward()
        learnt = [tensor for tensor in (x, norm.weight) if not tensor.stop_gradient]
        found.append([tensor.grad.numpy() for tensor in learnt])
        for tensor in learnt:
            tensor.clear_grad()
    assert len(found[0]) == (2 if frozen == "nothing" else 1)
    for ours, theirs in zip(*found, strict=True):
        assert np.abs(ours - theirs).max() < 1e-5


@pytest.mark.parametrize(("theta", "factor"), [(10000.0, 1.0), (500.0, 1.0), (10000.0, 4.0)])
def test_rotary_embedding(theta: float, factor: float, draw: np.random.Generator) -> None:
    config = replace(CONFIG, rope_theta=theta, rope_scaling_factor=factor)
    x = draw.standard_normal((1, 3, 6, 8)).astype(np.float32)
    positions = np.array([0, 1, 2, 77, 500, 4095])
    rotation = rotary_embedding(config, paddle.to_tensor(positions[None]), paddle.float32)
    output = rotate(paddle.to_tensor(x), rotation).numpy()
    assert np.abs(output - turned(x, positions, theta, factor)).max() < 1e-3  # the angles are float32


@pytest.mark.parametrize("rows", [1, 2])
def test_rotation_has_the_gradient_of_its_formula(rows: int, draw: np.random.Generator) -> None:
    cos, sin = (paddle.to_tensor(draw.standard_normal((rows, 1, 5, 8)).astype(np.float32)) for _ in range(2))
    factors = paddle.to_tensor(draw.standard_normal((2, 3, 5, 8)).astype(np.float32))
    x = paddle.to_tensor(draw.standard_normal((2, 3, 5, 8)).astype(np.float32), stop_gradient=False)
    halves_changed = paddle.concat([-x[..., 4:], x[..., :4]], axis=-1)
    found = []
    for value in (rotate(x, (cos, sin)), x * cos + halves_changed * sin):
        (value * factors).sum().backward()
        found.append((value.numpy(), x.grad.numpy()))
        x.clear_grad()
    for ours, theirs in zip(*found, strict=True):
        assert np.abs(ours - theirs).max() < 1e-6


def test_rotation_depends_on_distance_alone(draw: np.random.Generator) -> None:
    query, key = (draw.standard_normal((1, 1, 1, 8)).astype(np.float32) for _ in range(2))

    def score(query_position: int, key_position: int) -> float:
        query_turned, key_turned = (
            rotate(paddle.to_tensor(x), rotary_embedding(CONFIG, paddle.to_tensor([[at]]), paddle.float32)).numpy()
            for x, at in ((query, query_position), (key, key_position))
        )
        return float((query_turned * key_turned).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)


@pytest.mark.parametrize("length", [1, 5, 65, 130])
def test_decoder(length: int, draw: np.random.Generator) -> None:
    model, weights = decoder(CONFIG, draw)
    embeds = draw.standard_normal((2, length, 24)).astype(np.float32)
    visible = np.tril(np.ones((length, length), bool))[None].repeat(2, axis=0)
    expected = expected_output(CONFIG, weights, embeds, np.arange(length), visible)
    positions = paddle.arange(length).unsqueeze(0)
    for gradient in (paddle.enable_grad, paddle.no_grad):
        with gradient():
            output = model(paddle.to_tensor(embeds), positions).numpy()
        assert np.abs(output - expected).max() < 1e-4


@pytest.mark.parametrize("parts", [[3, 4], [1] * 7, [6, 1, 64, 1, 70], [200, 1, 60, 1], [255, 1, 1, 3]])
@pytest.mark.parametrize("in_place", [True, False])
def test_parts_with_a_cache_are_the_whole(parts: list[int], in_place: bool, draw: np.random.Generator) -> None:
    """With buffers that are assigned into, and with those that are joined anew (custom devices)."""
    model, _ = decoder(CONFIG, draw)
    length = sum(parts)
    embeds = paddle.to_tensor(draw.standard_normal((2, length, 24)).astype(np.float32))
    with paddle.no_grad():
        whole = model(embeds, paddle.arange(length).unsqueeze(0)).numpy()
        cache = KVCache(2)
        cache._in_place = in_place
        outputs, start = [], 0
        for part in parts:
            end = start + part
            positions = paddle.arange(start, end).unsqueeze(0)
            outputs.append(model(embeds[:, start:end], positions, cache=cache).numpy())
            start = end
            assert cache.length == end
    assert np.abs(np.concatenate(outputs, axis=1) - whole).max() < 1e-4


def test_padding_in_front_changes_nothing(draw: np.random.Generator) -> None:
    model, _ = decoder(CONFIG, draw)
    embeds = draw.standard_normal((1, 70, 24)).astype(np.float32)
    alone = model(paddle.to_tensor(embeds), paddle.arange(70).unsqueeze(0)).numpy()
    padded = np.concatenate([draw.standard_normal((1, 9, 24)).astype(np.float32), embeds], axis=1)
    valid = np.arange(79)[None] >= 9
    positions = np.maximum(np.arange(79) - 9, 0)[None]
    with paddle.no_grad():
        cache = KVCache(2)
        arguments = (paddle.to_tensor(padded[:, :75]), paddle.to_tensor(positions[:, :75]))
        outputs = [model(*arguments, paddle.to_tensor(valid[:, :75]), cache)]
        arguments = (paddle.to_tensor(padded[:, 75:]), paddle.to_tensor(positions[:, 75:]))
        outputs.append(model(*arguments, paddle.to_tensor(valid), cache))
    assert np.abs(paddle.concat(outputs, axis=1).numpy()[:, 9:] - alone).max() < 1e-4


def test_after_a_rewind_it_goes_on_as_if_nothing_had_been(draw: np.random.Generator) -> None:
    model, _ = decoder(CONFIG, draw)
    embeds = paddle.to_tensor(draw.standard_normal((1, 40, 24)).astype(np.float32))
    other = paddle.to_tensor(draw.standard_normal((1, 300, 24)).astype(np.float32) * 3)

    def run(x: paddle.Tensor, cache: KVCache) -> np.ndarray:
        start = cache.length
        return model(x, paddle.arange(start, start + x.shape[1]).unsqueeze(0), cache=cache).numpy()

    with paddle.no_grad():
        cache = KVCache(2)
        run(embeds[:, :30], cache)
        straight = run(embeds[:, 30:], cache)
        cache.rewind(30)
        run(other, cache)
        cache.rewind(30)
        assert np.abs(run(embeds[:, 30:], cache) - straight).max() < 1e-5
