"""What training in 16 bits adds to a checkpoint. A CPU has neither AdamW nor products for it: parts stand in."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

from paddle_llava.errors import LlavaError
from paddle_llava.training import start, step
from paddle_llava.training.checkpoint import (
    STATE,
    TrainerState,
    load_checkpoint,
    optimizer_slots,
    save_checkpoint,
)
from paddle_llava.training.loss_scale import loss_scaler, restore_scaler, scaler_state
from paddle_llava.training.optimizer import trainable
from training_runs import Runner, losses, weights, write_records


class Small(nn.Layer):
    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)
        self.to(dtype=dtype)
        self.adapter = self.create_parameter([4], dtype="float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_with_float32_masters(dtype: str, tmp_path: Path) -> None:
    """The CPU has no AdamW for these: the tensors are filled by hand."""

    def make() -> tuple[nn.Layer, paddle.optimizer.AdamW]:
        model = Small(dtype)
        schedule = paddle.optimizer.lr.LambdaDecay(0.1, lambda step: 1 / (1 + step))
        return model, paddle.optimizer.AdamW(schedule, parameters=model.parameters(), multi_precision=True)

    model, optimizer = make()
    slots = optimizer_slots(optimizer, trainable(model))
    kinds = {"moment1", "moment2", "beta1_pow_acc", "beta2_pow_acc"}
    assert {slot.split("/")[1] for slot in slots if slot.startswith("linear.weight/")} == kinds | {"master"}
    assert {slot.split("/")[1] for slot in slots if slot.startswith("adapter/")} == kinds
    for tensor in slots.values():
        assert tensor.dtype == paddle.float32
        tensor.set_value(paddle.randn(tensor.shape))
    folder = save_checkpoint(tmp_path, model, optimizer, TrainerState(step=7))
    other, other_optimizer = make()
    load_checkpoint(folder, other, other_optimizer, {})
    for name, parameter in trainable(model).items():
        found = trainable(other)[name]
        assert found.dtype == parameter.dtype
        assert np.array_equal(found.numpy(), parameter.numpy())
    for name, tensor in optimizer_slots(other_optimizer, trainable(other)).items():
        assert np.array_equal(tensor.numpy(), slots[name].numpy()), name
    assert other_optimizer.get_lr() == 0.1 / 8
    narrow = Small("float32")
    narrow_optimizer = paddle.optimizer.AdamW(optimizer._learning_rate, parameters=narrow.parameters())
    with pytest.raises(LlavaError, match=rf"linear\.\w+ is {dtype} .* there, float32 .* in this run"):
        load_checkpoint(folder, narrow, narrow_optimizer, {})


# --- the scale of the loss in float16


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float16 is computed in float32 here, and its loss scaled."""
    gpu = SimpleNamespace(_expected_place=SimpleNamespace(is_gpu_place=lambda: True))
    monkeypatch.setattr(paddle.amp.grad_scaler, "_dygraph_tracer", lambda: gpu)
    monkeypatch.setattr(start, "compute_dtype", lambda asked: (asked, None))


def test_the_scale_goes_on(
    scaling: None, tmp_path: Path, demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an overflow in the first step, which lowers it."""
    run = Runner(tmp_path, demo_checkpoint, write_records(tmp_path, 4))
    right, calls = step.Stepper._loss, 0

    def overflow(stepper: Any, batch: Any) -> paddle.Tensor:
        nonlocal calls
        calls += 1
        value = right(stepper, batch)
        return value + paddle.sqrt(value - value) if calls == 1 else value

    steps = {"fp16": True, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "max_length": 256}
    with monkeypatch.context() as patch:
        patch.setattr(step.Stepper, "_loss", overflow)
        whole = run("whole", **steps)
    assert _scaler(whole / "checkpoint-2") == {"scale": 2.0**14, "incr_count": 1, "decr_count": 0}
    assert _scaler(whole / "checkpoint-4") == {"scale": 2.0**14, "incr_count": 3, "decr_count": 0}
    again = run("again", resume_from_checkpoint=str(whole / "checkpoint-2"), **steps)
    assert _scaler(again / "checkpoint-4") == _scaler(whole / "checkpoint-4")
    assert losses(again) == losses(whole)[2:]
    assert weights(again) == weights(whole)


def test_gradients_that_no_scale_makes_numbers_end_the_run(
    scaling: None, tmp_path: Path, demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, right = Runner(tmp_path, demo_checkpoint, write_records(tmp_path, 4)), step.Stepper._loss

    def overflow(stepper: Any, batch: Any) -> paddle.Tensor:
        value = right(stepper, batch)
        return value + paddle.sqrt(value - value)

    def low(dtype: str) -> paddle.amp.GradScaler:
        scaler = loss_scaler(dtype)
        restore_scaler(scaler, {"scale": 2.0, "incr_count": 0, "decr_count": 0})
        return scaler

    monkeypatch.setattr(step.Stepper, "_loss", overflow)
    monkeypatch.setattr(step, "loss_scaler", low)
    with pytest.raises(LlavaError, match="step 2: the gradient is not a number"):
        run("run", fp16=True, max_steps=4, max_length=256)


def _scaler(folder: Path) -> Any:
    return json.loads((folder / STATE).read_text())["scaler"]


def test_without_a_scale(scaling: None) -> None:
    """A checkpoint of a run without scaling leaves a scaler as it is, and that of one with it is no matter without."""
    new = loss_scaler("float16")
    before = scaler_state(new)
    restore_scaler(new, {})
    assert scaler_state(new) == before == {"scale": 2.0**15, "incr_count": 0, "decr_count": 0}
    idle = loss_scaler("float32")
    restore_scaler(idle, {"scale": 2.0, "incr_count": 1, "decr_count": 0})
    assert scaler_state(idle) == {}
