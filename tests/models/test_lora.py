from __future__ import annotations

import math
import re

import numpy as np
import paddle
import pytest
from paddle import nn

from paddle_llava import LlavaError, LlavaForConditionalGeneration
from paddle_llava.checkpoints.names import stored_names
from paddle_llava.models.lora import LoRALinear, add_lora
from paddle_llava.training.config import TrainingConfig
from reference_cases import CHECKPOINTS, FIXTURES

KINDS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj", "o_proj")
PADDLEMIX = [f"llama.layer.*{kind}.*" for kind in KINDS]
DEFAULT = TrainingConfig("model", {"train": []}, "output").lora_target_modules
IDS = np.arange(5, 45).reshape(2, 20)


@pytest.fixture(params=CHECKPOINTS)
def model(request: pytest.FixtureRequest) -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(FIXTURES / request.param)


def adapt(
    model: LlavaForConditionalGeneration, patterns: list[str], rank: int = 4, alpha: float = 6.0, dropout: float = 0.0
) -> list[str]:
    return add_lora(model, stored_names(model.config, "paddle"), patterns, rank, alpha, dropout)


def stir(model: nn.Layer) -> None:
    """Give every B numbers, as training would."""
    for layer in model.sublayers():
        if isinstance(layer, LoRALinear):
            layer.lora_B.set_value(paddle.randn(layer.lora_B.shape) * 0.1)


def logits(model: LlavaForConditionalGeneration) -> np.ndarray:
    with paddle.no_grad():
        return model(IDS).logits.numpy()


def test_starts_at_the_base_model(model: LlavaForConditionalGeneration) -> None:
    before = logits(model)
    adapt(model, PADDLEMIX, dropout=0.5)
    assert np.array_equal(logits(model), before)
    model.train()
    assert np.array_equal(logits(model), before)
    stir(model)
    assert np.abs(logits(model) - before).max() > 0.1


def test_dropout_only_in_training(model: LlavaForConditionalGeneration) -> None:
    adapt(model, PADDLEMIX, dropout=0.5)  # a model that is loaded does not train, and its new layers do not either
    stir(model)
    assert np.array_equal(logits(model), logits(model))
    model.train()
    assert not np.array_equal(logits(model), logits(model))
    model.eval()
    assert np.array_equal(logits(model), logits(model))


@pytest.mark.parametrize("bias", [None, False], ids=["bias", "no bias"])
def test_computes_the_low_rank_product(bias: bool | None) -> None:
    base = nn.Linear(6, 10, bias_attr=bias)
    layer = LoRALinear(base, rank=3, alpha=12.0, dropout=0.0)
    assert np.abs(layer.lora_A.numpy()).max() <= 1 / math.sqrt(6)
    assert len(np.unique(layer.lora_A.numpy())) == 18
    assert not layer.lora_B.numpy().any()
    stir(layer)
    x = np.random.default_rng(0).standard_normal((4, 5, 6), dtype=np.float32)
    expected = base(paddle.to_tensor(x)).numpy() + 4.0 * (x @ layer.lora_A.numpy() @ layer.lora_B.numpy())
    assert np.abs(layer(paddle.to_tensor(x)).numpy() - expected).max() < 1e-5


def test_dropout_drops_inputs_and_keeps_the_mean() -> None:
    layer = LoRALinear(nn.Linear(8, 8, bias_attr=False), rank=2, alpha=2.0, dropout=0.25)
    for parameter, value in ((layer.base.weight, 0.0), (layer.lora_A, 1.0), (layer.lora_B, 1.0)):
        parameter.set_value(paddle.full_like(parameter, value))
    paddle.seed(0)
    dropped = layer(paddle.ones([20000, 8])).numpy()
    values, counts = np.unique(dropped[:, 0].round(3), return_counts=True)
    assert np.abs(values * 0.75 / 2 - (values * 0.75 / 2).round()).max() < 1e-2  # a number of the 8 inputs
    assert counts[-1] / 20000 == pytest.approx(0.75**8, rel=0.1)
    assert dropped.mean() == pytest.approx(16.0, rel=1e-2)


@pytest.mark.parametrize("patterns", [PADDLEMIX, DEFAULT], ids=["as PaddleMIX writes them", "by default"])
def test_every_linear_of_the_decoder(model: LlavaForConditionalGeneration, patterns: list[str]) -> None:
    layers = range(model.config.text.num_hidden_layers)
    attention = {f"self_attn.{kind}" for kind in KINDS if kind[0] in "qkvo"}
    mlp = {f"mlp.{kind}" for kind in ("gate_proj", "up_proj", "down_proj")}
    expected = {f"language_model.layers.{layer}.{name}" for layer in layers for name in attention | mlp}
    adapted = adapt(model, patterns)
    assert sorted(adapted) == sorted(expected)
    assert expected == {name for name, layer in model.named_sublayers() if isinstance(layer, LoRALinear)}
    assert len([name for name, _ in model.named_parameters() if ".lora_" in name]) == 2 * len(expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "pattern", ["llama.layer.*{}.*", ".*{}.*", r"llama\.layers\.\d+\.(self_attn|mlp)\.{}(\.weight)?"]
)
def test_a_pattern_selects_its_kind(kind: str, pattern: str) -> None:
    """Of the decoder alone: the vision tower has layers of these names too."""
    model = LlavaForConditionalGeneration.from_pretrained(FIXTURES / "v1_5")
    adapted = adapt(model, [pattern.format(kind), f"llama.*{kind}"])
    assert len(adapted) == len(set(adapted)) == model.config.text.num_hidden_layers
    assert all(re.fullmatch(rf"language_model\.layers\.\d\.\w+\.{kind}", name) for name in adapted)


def test_one_layer_of_many(model: LlavaForConditionalGeneration) -> None:
    assert adapt(model, ["llama.layers.1.mlp.up_proj"]) == ["language_model.layers.1.mlp.up_proj"]


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["llama.layers.*(q_proj"], "no regular expression"),
        (["q_proj"], "selects no layer; names are like llama.layers.0.self_attn.q_proj"),
        (["llama.layer.*q_proj.*", ".*mm_projector.*"], "'.*mm_projector.*' selects no layer"),
        (["llama.vision_tower.*q_proj"], "selects no layer"),
        ([""], "selects no layer"),
        ([], "names no layer"),
    ],
)
def test_a_bad_pattern_leaves_the_model_alone(patterns: list[str], said: str) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(FIXTURES / "v1_5")
    with pytest.raises(LlavaError, match=f"^lora_target_modules: .*{re.escape(said)}") as caught:
        adapt(model, patterns)
    assert "\n" not in str(caught.value)
    assert not any(isinstance(layer, LoRALinear) for layer in model.sublayers())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_adapters_of_a_16_bit_base_are_float32(dtype: str) -> None:
    """The CPU cannot compute with such a base; that the small updates are kept is what can be seen here."""
    model = LlavaForConditionalGeneration.from_pretrained(FIXTURES / "v1_5")
    model.to(dtype=dtype)
    adapt(model, PADDLEMIX)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (paddle.float32 if ".lora_" in name else getattr(paddle, dtype))
