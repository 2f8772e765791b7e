"""From the vision tower's width to the decoder's (LLaVA-1.5, arXiv:2310.03744, section 3.2)."""

from __future__ import annotations

from paddle import nn

from paddle_llava.config import LlavaConfig


def build_projector(config: LlavaConfig) -> nn.Sequential:
    """`linear`: one Linear. `mlpNx_gelu`: N Linear layers with exact GELU between them (indices 0, 2, 4, ...)."""
    bias = None if config.projector_bias else False
    width = config.text.hidden_size
    layers: list[nn.Layer] = [nn.Linear(config.vision.hidden_size, width, bias_attr=bias)]
    for _ in range(1, config.projector_depth):
        layers += [nn.GELU(), nn.Linear(width, width, bias_attr=bias)]
    return nn.Sequential(*layers)
