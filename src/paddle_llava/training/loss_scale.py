"""The scale of the loss in float16, which keeps small gradients from vanishing (Micikevicius et al. 2018,
arXiv:1710.03740), and what of it a checkpoint must hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle

_COUNTS = ("incr_count", "decr_count")


def loss_scaler(dtype: str) -> paddle.amp.GradScaler:
    """A scaler for products in `dtype`, which does nothing but for float16."""
    scaler = paddle.amp.GradScaler(enable=dtype == "float16", init_loss_scaling=2.0**15)
    _make_scalar(scaler)
    return scaler


def scaler_state(scaler: paddle.amp.GradScaler) -> dict[str, float]:
    """Its `scale`, and how many steps in a row were sound or overflowed, in JSON's terms; of one that does nothing,
    nothing."""
    state = scaler.state_dict()
    return {"scale": state["scale"].item(), **{key: state[key] for key in _COUNTS}} if state else {}


def restore_scaler(scaler: paddle.amp.GradScaler, state: dict[str, float]) -> None:
    """Let `scaler` go on from `state`; it stays as it is when that is of a run without one."""
    if state and scaler.is_enable():
        scale = np.array([state["scale"]], np.float32)
        scaler.load_state_dict({**scaler.state_dict(), **state, "scale": scale})
        _make_scalar(scaler)


def is_scaler_state(value: Any) -> bool:
    """Whether `value`, from a file, is what `scaler_state` gives."""
    if not isinstance(value, dict) or (value and value.keys() != {"scale", *_COUNTS}):
        return False
    scale, counts = value.get("scale", 1.0), [value.get(key, 0) for key in _COUNTS]
    return type(scale) is float and scale >= 0 and all(type(count) is int and count >= 0 for count in counts)


def _make_scalar(scaler: paddle.amp.GradScaler) -> None:
    """Paddle takes `float` of its scale, a vector of one, which NumPy 2.4 no longer gives."""
    if scaler.is_enable():
        scaler._scale = scaler._scale.reshape([])
