"""Calibration for 4 bits: it changes nothing but how weights are rounded, and that for the better."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np
import paddle
import pytest

pytest.importorskip("openvino")

from paddle_llava import LlavaForConditionalGeneration, LlavaProcessor
from paddle_llava.checkpoints.names import parameter_shapes
from paddle_llava.checkpoints.write import ArraySource
from paddle_llava.config import LlavaConfig, TextConfig, VisionConfig
from paddle_llava.engines.openvino.calibrate import calibrate
from paddle_llava.engines.openvino.calibration import Calibration, Folded
from paddle_llava.engines.openvino.conversations import TOKENS, calibration_inputs
from paddle_llava.engines.openvino.engine import OpenVINOEngine
from paddle_llava.engines.openvino.formats import Formats
from paddle_llava.engines.openvino.graphs import engine_in_memory
from paddle_llava.engines.openvino.quantize import quantize
from paddle_llava.errors import LlavaError

GROUP = 32
LAYERS = range(4)


@pytest.fixture(scope="module")
def config() -> LlavaConfig:
    """Four layers, two query heads to each key and value head, biases everywhere."""
    text = TextConfig(200, 128, 256, 4, 4, 2, head_dim=32, attention_bias=True, mlp_bias=True)
    return LlavaConfig(VisionConfig(32, 64, 2, 2, image_size=28, patch_size=14), text, image_token_id=199)


@pytest.fixture(scope="module")
def tensors(config: LlavaConfig) -> ArraySource:
    """As trained models are: a few channels are far larger than the others."""
    random = np.random.default_rng(0)
    arrays = {}
    for name, shape in parameter_shapes(config).items():
        noise = random.standard_normal(shape, np.float32) * 0.1
        if name.startswith("language_model") and name.endswith("layernorm.weight"):
            noise = np.where(np.arange(128) % 31 == 5, 12, 1).astype(np.float32)
        arrays[name] = noise
    return ArraySource(arrays)


def conversation(config: LlavaConfig, seed: int, length: int = 60) -> dict[str, np.ndarray]:
    """With a picture of four features."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, 199, (1, length))
    ids[:, 3:7] = 199
    pixels = random.standard_normal((1, 3, 28, 28), np.float32)
    return {"input_ids": ids, "pixel_values": pixels, "image_sizes": np.array([[28, 28]])}


@pytest.fixture(scope="module")
def calibration(config: LlavaConfig, tensors: ArraySource) -> Calibration:
    told: list[tuple[int, int]] = []
    conversations = [conversation(config, seed) for seed in range(4)]
    result = calibrate(config, tensors, conversations, LAYERS, GROUP, lambda *done: told.append(done))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    return result


def test_a_layer_leaves_the_memory_before_the_next_one_comes(config: LlavaConfig, tensors: ArraySource) -> None:
    def matrices() -> int:
        return sum(isinstance(it, paddle.nn.Linear) for it in gc.get_objects())

    gc.collect()
    before, living = matrices(), list[int]()
    gc.disable()  # of a 7B the few objects of a layer are a gigabyte, which does not bring it about
    try:
        calibrate(config, tensors, [conversation(config, 0)], LAYERS, GROUP, lambda *_: living.append(matrices()))
    finally:
        gc.enable()
    assert living == [before] * 4


def logits(config: LlavaConfig, tensors: ArraySource | Folded | Rounded, seed: int = 100) -> np.ndarray:
    model = LlavaForConditionalGeneration.from_tensors(config, tensors)
    with paddle.no_grad():
        return model(**conversation(config, seed)).logits.numpy()


class Rounded:
    """Tensors whose Linear weights in the decoder's layers have been through 4 bits."""

    folder = None

    def __init__(self, base: ArraySource | Folded, importance: dict[str, np.ndarray]) -> None:
        self.names, self.shape, self._base, self._importance = base.names, base.shape, base, importance

    def dtype(self, name: str) -> str:
        return "float32"

    def read(self, name: str) -> np.ndarray:
        array = self._base.read(name)
        if not (name.startswith("language_model.layers.") and name.endswith("proj.weight")):
            return array
        importance = self._importance.get(name.removesuffix(".weight"))
        return np.ascontiguousarray(quantize(array.T.copy(), 4, GROUP, importance).dequantized().T)


def test_the_function_stays_the_same(config: LlavaConfig, tensors: ArraySource, calibration: Calibration) -> None:
    assert any((np.abs(factors - 1) > 0.1).any() for factors in calibration.factors.values())
    folded = Folded(tensors, calibration)
    assert folded.names() == tensors.names()
    before = logits(config, tensors)
    assert np.abs(logits(config, folded) - before).max() < 1e-4 * np.abs(before).max()


def test_graphs_with_a_calibration_are_the_same_function(
    config: LlavaConfig, tensors: ArraySource, calibration: Calibration
) -> None:
    inputs = conversation(config, 100)
    plain, calibrated = (
        engine_in_memory(OpenVINOEngine, config, tensors, Formats("f32"), calibration=it).prefill(inputs)
        for it in (None, calibration)
    )
    assert np.abs(calibrated - plain).max() < 1e-3 * np.abs(plain).max()


def test_other_conversations_lose_less(config: LlavaConfig, tensors: ArraySource, calibration: Calibration) -> None:
    exact = logits(config, tensors)

    def loss(rounded: Rounded) -> float:
        return float(np.square(logits(config, rounded) - exact).mean())

    plain = loss(Rounded(tensors, {}))
    assert loss(Rounded(Folded(tensors, calibration), calibration.importance)) < 0.8 * plain


def test_importance_is_the_mean_square_of_what_enters(config: LlavaConfig, tensors: ArraySource) -> None:
    model = LlavaForConditionalGeneration.from_tensors(config, tensors)
    seen: list[np.ndarray] = []
    down = model.language_model.layers[2].mlp.down_proj
    down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy()[0]))
    logits_of = [conversation(config, seed) for seed in (1, 2)]
    with paddle.no_grad():
        for inputs in logits_of:
            model(**inputs)
    expected = np.square(np.concatenate(seen)).mean(axis=0)
    result = calibrate(config, tensors, logits_of, [2], GROUP)
    name = "language_model.layers.2.mlp.down_proj"
    assert result.importance[name] * result.factors[name] ** 2 == pytest.approx(expected, rel=1e-3)
    assert all(".layers.2." in each for each in [*result.factors, *result.divisors, *result.importance])


def test_groups_that_do_not_fit_are_left_alone(config: LlavaConfig, tensors: ArraySource) -> None:
    result = calibrate(config, tensors, [conversation(config, 0)], [1], 256)
    assert list(result.factors) == ["language_model.layers.1.mlp.down_proj"]


def test_built_in_conversations(demo_checkpoint: Path) -> None:
    processor = LlavaProcessor.from_pretrained(demo_checkpoint)
    inputs = calibration_inputs(processor)
    lengths = [each["input_ids"].shape[1] for each in inputs]
    assert sum(lengths[:-1]) < TOKENS
    assert len(inputs) > 1
    assert all(each["pixel_values"].shape[0] == 1 for each in inputs)


def test_conversations_of_a_file(
    demo_checkpoint: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{"conversations": [[f"Say {number}.", f"{number}."]]} for number in range(400)]
    records[399] |= {"image": str(photo), "conversations": [["<image>\nWhat is it?", "A lake."]]}
    data = tmp_path / "data.json"
    data.write_text(json.dumps(records))
    processor = LlavaProcessor.from_pretrained(demo_checkpoint)
    inputs = calibration_inputs(processor, data)
    assert 10 < len(inputs) <= 64
    assert sum("pixel_values" in each for each in inputs) <= 1
    data.write_text("[]")
    with pytest.raises(LlavaError, match=r"data\.json"):
        calibration_inputs(processor, data)


def test_an_export_with_other_weights_refuses_data(demo_checkpoint: Path, tmp_path: Path) -> None:
    from paddle_llava.engines.openvino.export import export
    from paddle_llava.engines.openvino.formats import Formats

    with pytest.raises(LlavaError, match="--calibrate is for int4"):
        export(demo_checkpoint, tmp_path / "out", Formats("int8"), calibrate=tmp_path / "data.json")
    assert not any(tmp_path.iterdir())


def test_weights_that_are_no_numbers_are_named(config: LlavaConfig, tensors: ArraySource) -> None:
    from paddle_llava.engines.openvino.formats import Formats
    from paddle_llava.engines.openvino.graphs import build

    arrays = {name: tensors.read(name) for name in tensors.names()}
    arrays["language_model.layers.2.mlp.up_proj.weight"] = np.full((128, 256), np.nan, np.float32)
    with pytest.raises(LlavaError, match=r"layers\.2\.mlp\.up_proj.*not finite"):
        list(build(config, ArraySource(arrays), Formats("int8")))
