from __future__ import annotations

from dataclasses import replace

import numpy as np
import paddle
import pytest
from formulas import gelu

from paddle_llava.config import LlavaConfig, TextConfig, VisionConfig
from paddle_llava.models.projector import build_projector

CONFIG = LlavaConfig(VisionConfig(hidden_size=6), TextConfig(hidden_size=10))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "depth"), [("linear", 1), ("mlp1x_gelu", 1), ("mlp2x_gelu", 2), ("mlp4x_gelu", 4)])
def test_projector(kind: str, depth: int, bias: bool) -> None:
    projector = build_projector(replace(CONFIG, projector_type=kind, projector_bias=bias))
    weights = {}
    random = np.random.default_rng(0)
    for name, parameter in projector.state_dict().items():
        weights[name] = random.standard_normal(parameter.shape).astype(np.float32)
        parameter.set_value(weights[name])
    assert {int(name.split(".")[0]) for name in weights} == {2 * i for i in range(depth)}
    assert any(name.endswith("bias") for name in weights) == bias

    x = random.standard_normal((4, 6)).astype(np.float32)
    expected = x.astype(np.float64)
    for i in range(depth):
        expected = (gelu(expected) if i else expected) @ weights[f"{2 * i}.weight"] + weights.get(f"{2 * i}.bias", 0)
    assert np.abs(projector(paddle.to_tensor(x)).numpy() - expected).max() < 1e-4
