from __future__ import annotations

import numpy as np
import paddle
import pytest
from formulas import clip_hidden_states

from paddle_llava.config import VisionConfig
from paddle_llava.models.clip import CLIPVisionTower


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("feature_layer", [-4, -3, -2, -1, 0, 1, 2, 3])
def test_the_layer_that_is_asked_for(feature_layer: int, act: str) -> None:
    """Counted as in `hidden_states`: 0 is what the first of the 3 layers takes, 3 and -1 are what the last gives."""
    config = VisionConfig(
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=12,
        patch_size=4,
        hidden_act=act,
        layer_norm_eps=1e-4,
    )
    random = np.random.default_rng(0)
    tower = CLIPVisionTower(config, feature_layer)
    tower.eval()
    weights = {}
    for name, parameter in tower.state_dict().items():
        weights[name] = random.standard_normal(parameter.shape).astype(np.float32) * 0.4 + ("norm" in name)
        parameter.set_value(weights[name])
    pixels = random.standard_normal((2, 3, 12, 12)).astype(np.float32)
    expected = clip_hidden_states(weights, pixels, patch=4, heads=3, eps=1e-4, act=act)
    assert len(expected) == 4
    output = tower(paddle.to_tensor(pixels)).numpy()
    assert output.shape == (2, 10, 12)
    assert np.abs(output - expected[feature_layer]).max() < 1e-4
