"""The OpenVINO engine against what `transformers` answered, and against Paddle where shapes are out of the way."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise, product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino")
from openvino import Core, Model, Node

from paddle_llava import ChatSession, LlavaProcessor, SamplingParams
from paddle_llava.checkpoints.names import parameter_shapes
from paddle_llava.checkpoints.write import ArraySource
from paddle_llava.config import LlavaConfig, TextConfig, VisionConfig
from paddle_llava.engines.openvino.batch import OpenVINOBatchEngine, for_many
from paddle_llava.engines.openvino.blocks import BLOCK
from paddle_llava.engines.openvino.engine import OpenVINOEngine
from paddle_llava.engines.openvino.formats import Formats
from paddle_llava.engines.openvino.graphs import DECODER, EMBEDDING, VISION, build, engine_in_memory
from paddle_llava.pretrained import find_pretrained
from parting_rows import check_parting_rows
from reference_cases import ANSWER_TOKENS, CASES, CHECKPOINTS, CONVERSATIONS, FIXTURES, PHOTOS, TOLERANCE

SMALL = LlavaConfig(
    VisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=6, patch_size=2
    ),
    TextConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256,
    ),
    image_token_id=39,
    image_aspect_ratio="pad",
)  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    engine: OpenVINOEngine
    processor: LlavaProcessor
    expected: dict[str, np.ndarray]

    def inputs(self, title: str) -> dict[str, np.ndarray]:
        return self.processor.prepare(list(CASES[title].prompts), CASES[title].pictures)

    def last(self, title: str) -> np.ndarray:
        """What `transformers` said after the whole prompts of a case."""
        return self.expected[f"{title}/logits"][:, -1]


def engine_of(name: str, weights: str) -> OpenVINOEngine:
    pretrained = find_pretrained(FIXTURES / name)
    with pretrained.open_weights() as tensors:
        return engine_in_memory(OpenVINOEngine, pretrained.config, tensors, Formats(weights, 32))


@pytest.fixture(scope="module", params=CHECKPOINTS)
def loaded(request: pytest.FixtureRequest) -> Loaded:
    with np.load(FIXTURES / f"{request.param}.npz") as expected:
        processor = LlavaProcessor.from_pretrained(FIXTURES / request.param)
        return Loaded(engine_of(request.param, "f32"), processor, dict(expected))


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> None:
    if "loaded" in request.fixturenames:
        request.getfixturevalue("loaded").engine.reset()


@pytest.mark.parametrize("title", CASES)
def test_logits_are_those_of_transformers(loaded: Loaded, title: str) -> None:
    logits = loaded.engine.prefill(loaded.inputs(title))
    assert logits.dtype == np.float32
    assert np.abs(logits - loaded.last(title)).max() < TOLERANCE


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("title", ["two pictures", "batch"])
def test_a_prefill_in_chunks_is_the_whole(
    loaded: Loaded, title: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk of 1 is also what decoding does; with padding in front, and chunks of padding alone."""
    monkeypatch.setattr(OpenVINOBatchEngine, "max_tokens", chunk)
    assert np.abs(loaded.engine.prefill(loaded.inputs(title)) - loaded.last(title)).max() < TOLERANCE


@pytest.mark.parametrize("first", [1, 20, 40])
def test_prefills_that_follow_each_other(loaded: Loaded, first: int) -> None:
    """Also when one ends within a picture; the last tokens are decoded one by one."""
    inputs, engine = loaded.inputs("two pictures"), loaded.engine
    ids, is_image = inputs["input_ids"], inputs["input_ids"][0] == engine.config.image_token_id
    features = np.concatenate(engine.encode_images(inputs["pixel_values"], inputs["image_sizes"]))
    for start, end in pairwise([0, first, ids.shape[1] - 6]):
        shown = features[is_image[:start].sum() : is_image[:end].sum()]
        engine.prefill({"input_ids": ids[:, start:end], "image_features": [shown]})
        assert engine.length == end
    for token in ids[:, -6:].T:
        logits = engine.decode(token)
    assert np.abs(logits - loaded.last("two pictures")).max() < TOLERANCE


@pytest.mark.parametrize("title", CONVERSATIONS)
def test_greedy_answers_of_three_turns(loaded: Loaded, title: str) -> None:
    session = ChatSession(loaded.engine, loaded.processor, params=SamplingParams(max_new_tokens=ANSWER_TOKENS))
    texts = ["".join(session.ask(text, photo and PHOTOS / photo)) for text, photo in CONVERSATIONS[title]]
    answers = [[int(token) for token in row if token >= 0] for row in loaded.expected[f"{title}/answers"]]
    assert texts == [loaded.processor.tokenizer.decode(tokens) for tokens in answers]


def test_what_is_rewound_is_forgotten(loaded: Loaded) -> None:
    """In a batch with padding, and its memory is free again."""
    engine, inputs = loaded.engine, loaded.inputs("batch")
    length = inputs["input_ids"].shape[1]
    engine.prefill(inputs)
    kept = engine.decode(np.array([5, 6, 7]))
    used = engine._many.blocks.used
    wrong = np.full((3, length), 9)
    for _ in range(2):
        engine.prefill({"input_ids": wrong})
        engine.decode(np.array([9, 9, 9]))
        engine.rewind(length + 1)
        engine.rewind(length)
        assert engine.length == length
        assert np.abs(engine.decode(np.array([5, 6, 7])) - kept).max() < 1e-4
        assert engine._many.blocks.used == used
    engine.rewind(0)
    assert engine.length == 0
    assert np.abs(engine.prefill(inputs) - loaded.last("batch")).max() < TOLERANCE
    with pytest.raises(ValueError):
        engine.rewind(length + 1)


class Interrupted:
    """An inference request: Ctrl-C comes as run number `run` returns."""

    def __init__(self, request: Any, run: int) -> None:
        self._request, self._left = request, run

    def infer(self, inputs: Any) -> Any:
        outputs = self._request.infer(inputs)
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt
        return outputs


@pytest.mark.parametrize("run", [1, 2, 3])
def test_an_interrupt_as_a_run_returns_leaves_the_positions_before_it(
    loaded: Loaded, run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache has grown by then: in the first run of a batch, in the middle of a prefill, and in a decoding step."""
    engine, inputs = loaded.engine, loaded.inputs("two pictures")
    length = inputs["input_ids"].shape[1]
    monkeypatch.setattr(OpenVINOBatchEngine, "max_tokens", length - 3)
    with monkeypatch.context() as patch:
        patch.setattr(engine._many, "_request", Interrupted(engine._many._request, run))
        with pytest.raises(KeyboardInterrupt):
            (engine.prefill(inputs), engine.decode(np.array([5])))
    assert engine.length == [0, length - 3, length][run - 1]
    if run == 1:
        assert np.abs(engine.prefill(loaded.inputs("batch")) - loaded.last("batch")).max() < TOLERANCE
        return
    engine.rewind(length - 3)
    logits = engine.prefill({"input_ids": inputs["input_ids"][:, length - 3 :]})
    assert np.abs(logits - loaded.last("two pictures")).max() < TOLERANCE


def test_an_interrupt_while_the_cache_grows(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of("v1_5" if loaded.engine.config.image_grid_pinpoints is None else "v1_6", "f32")
    inputs, blocks = loaded.inputs("two pictures"), engine._many.blocks
    engine.prefill(inputs)
    more = {"input_ids": np.full((1, BLOCK * len(blocks._users) + 1), 5)}

    def break_off(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(blocks, "_request", SimpleNamespace(set_tensor=break_off))
        with pytest.raises(KeyboardInterrupt):
            engine.prefill(more)
    engine.reset()
    assert np.isfinite(engine.prefill(more)).all()
    engine.reset()
    assert np.abs(engine.prefill(inputs) - loaded.last("two pictures")).max() < TOLERANCE


def test_features_and_tokens_must_be_as_many(loaded: Loaded) -> None:
    image_token = loaded.engine.config.image_token_id
    with pytest.raises(ValueError, match="2 image tokens in input_ids, but 0"):
        loaded.engine.prefill({"input_ids": np.array([[1, image_token, image_token]])})


# --- formats of weights ---------------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "error"), [("bf16", 0.04), ("int8", 0.12), ("int4", 0.3)])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_rounded_weights_stay_near(name: str, weights: str, error: float) -> None:
    """Root mean squared errors, against logits of a deviation of 2.4; models of this width suffer most."""
    loaded = Loaded(engine_of(name, weights), LlavaProcessor.from_pretrained(FIXTURES / name), {})
    exact = engine_of(name, "f32")
    inputs = loaded.inputs("batch")
    rounded, whole = loaded.engine.prefill(inputs), exact.prefill(inputs)
    assert np.sqrt(np.mean((rounded - whole) ** 2)) < error * whole.std()
    if weights != "bf16":  # which some of the fixtures are in, and some processors then compute as float32
        assert np.abs(rounded - whole).max() > 1e-3


@pytest.mark.parametrize(("weights", "error"), [("f32", 1e-4), ("bf16", 0.1), ("int8", 0.1), ("int4", 0.1)])
def test_what_runs_together_changes_little(weights: str, error: float) -> None:
    """Of a prompt's logits, by their deviation: with its beginning run before, for two, and with padding in front."""
    engine = engine_of("v1_6", weights)
    ids = np.random.default_rng(0).integers(3, 500, (1, 90))
    whole = engine.prefill({"input_ids": ids})
    engine.reset()
    engine.prefill({"input_ids": ids[:, :30]})
    engine.take_rows([0, 0])
    parted = engine.prefill({"input_ids": np.repeat(ids[:, 30:], 2, axis=0)})
    engine.reset()
    mask = np.repeat([[0, 1]], [10, 90], axis=1)
    padded = engine.prefill({"input_ids": np.pad(ids, [(0, 0), (10, 0)]), "attention_mask": mask})
    for logits in (*parted, *padded):
        assert np.abs(logits - whole).max() < error * whole.std()


def layers_of(decoder: Model, settings: dict[str, str]) -> tuple[Counter[str], Counter[str]]:
    """The kinds of nodes that the plug-in runs, and the types of the matrices of its products."""
    nodes = Core().compile_model(decoder, "CPU", settings).get_runtime_model().get_ops()
    kinds = Counter(node.rt_info["layerType"].astype(str) for node in nodes)
    products = [node for node in nodes if node.rt_info["layerType"].astype(str) == "FullyConnected"]
    return kinds, Counter(product.rt_info["runtimePrecision"].astype(str) for product in products)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_the_plugin_runs_each_layer_in_few_nodes(heads: tuple[int, int]) -> None:
    """Else it is right but slow: attention with its cache in one node, as state or paged, and so are norms and
    rotations, and products take the rounded matrices as they are."""
    layers = 3  # with int4 the first and the last one stay in 8 bits
    config = changed(num_attention_heads=heads[0], num_key_value_heads=heads[1], num_hidden_layers=layers)
    for (weights, of_four_bits), paged in product((("int8", 0), ("int4", 5)), (False, True)):
        formats = Formats(weights, 32)
        decoder = dict(build(config, random_tensors(config), formats))[DECODER]
        settings = formats.decoder_settings(config.text)
        kinds, matrices = layers_of(for_many(decoder) if paged else decoder, settings)
        assert kinds["PagedAttention" if paged else "ScaledDotProductAttention"] == layers
        assert kinds["MemoryInput"] == kinds["MemoryOutput"] == (0 if paged else 2 * layers)
        assert kinds["RMS"] == 2 * layers + (not paged)  # made over, the last one comes in parts
        assert kinds["RoPE"] == 2 * layers
        assert kinds["FullyConnected"] == 5 * layers + 1
        assert "MatMul" not in kinds
        assert matrices["i4"] + matrices["u4"] == of_four_bits  # unsigned for products of whole numbers
        assert matrices["i8"] + matrices["u8"] == 5 * layers + 1 - of_four_bits


def test_four_bits_are_in_the_middle_of_the_decoder_alone() -> None:
    config = changed(num_hidden_layers=3)
    graphs = dict(build(config, random_tensors(config), Formats("int4", 32)))
    held = {
        name: Counter(constant.get_element_type().to_string() for constant in constants(graphs[name]))
        for name in graphs
    }
    assert (held[VISION]["i4"], held[EMBEDDING]["i4"], held[DECODER]["i4"]) == (0, 0, 5)
    assert (held[VISION]["i8"], held[EMBEDDING]["i8"], held[DECODER]["i8"]) == (6 + 2, 1, 2 * 5 + 1)
    node = graphs[DECODER].output("logits").node.input_value(0).node.input_value(1).node  # the head's matrix
    while node.get_type_name() != "Constant":
        node = node.input_value(0).node
    assert node.get_element_type().to_string() == "i8"


def constants(graph: Model) -> list[Node]:
    return [node for node in graph.get_ops() if node.get_type_name() == "Constant"]


# --- shapes against Paddle ------------------------------------------------------------------------


def random_tensors(config: LlavaConfig) -> ArraySource:
    random = np.random.default_rng(0)
    arrays = {}
    for name, shape in parameter_shapes(config).items():
        noise = random.standard_normal(shape).astype(np.float32)
        arrays[name] = 1 + 0.2 * noise if "norm.weight" in name else noise * (0.3 if len(shape) == 1 else 0.2)
    return ArraySource(arrays)


def changed(**text: Any) -> LlavaConfig:
    return replace(SMALL, text=replace(SMALL.text, **text))


SHAPES = {
    "biases": changed(attention_bias=True, mlp_bias=True),
    "a head for each key": changed(num_key_value_heads=4),
    "one key for all heads": changed(num_key_value_heads=1),
    "heads wider than the model": changed(head_dim=16),
    "scaled rotations": changed(rope_theta=5e5, rope_scaling_factor=4.0),
    "tied embeddings": changed(tie_word_embeddings=True),
    "another norm": changed(rms_norm_eps=1e-2),
    "one layer": changed(num_hidden_layers=1),
    "the class token": replace(SMALL, keep_cls=True),
    "the first layer of the tower": replace(SMALL, vision_feature_layer=1),
    "GELU in the tower": replace(SMALL, vision=replace(SMALL.vision, hidden_act="gelu")),
    "a projector of one layer": replace(SMALL, projector_type="linear"),
    "a projector of three layers": replace(SMALL, projector_type="mlp3x_gelu", projector_bias=False),
    "tiles without unpadding": replace(
        SMALL, image_aspect_ratio="anyres", image_grid_pinpoints=((6, 12), (12, 12)), unpad=False
    ),
    "tiles with newlines": replace(SMALL, image_aspect_ratio="anyres", image_grid_pinpoints=((6, 12), (12, 12))),
    "tiles with class tokens": replace(
        SMALL, image_aspect_ratio="anyres", image_grid_pinpoints=((6, 12), (12, 12)), keep_cls=True
    ),
}


@pytest.mark.parametrize("title", SHAPES)
def test_other_shapes_answer_as_paddle_does(title: str) -> None:
    from paddle_llava import LlavaForConditionalGeneration
    from paddle_llava.engines.paddle import PaddleEngine

    config = SHAPES[title]
    tensors = random_tensors(config)
    ours = engine_in_memory(OpenVINOEngine, config, tensors, Formats("f32"))
    paddles = PaddleEngine(LlavaForConditionalGeneration.from_tensors(config, tensors))
    sizes = np.array([[9, 20], [30, 11]])
    layouts = [config.image_layout((height, width)) for height, width in sizes.tolist()]
    pixels = np.random.default_rng(1).standard_normal((sum(layout.tiles for layout in layouts), 3, 6, 6))
    pixels = pixels.astype(np.float32)
    for mine, its in zip(ours.encode_images(pixels, sizes), paddles.encode_images(pixels, sizes), strict=True):
        assert np.abs(mine - its.numpy()).max() < 1e-4
    rows = [[1, *[39] * layout.num_features, 7, 8] for layout in layouts]
    longest = max(map(len, rows))
    inputs = {
        "input_ids": np.array([[0] * (longest - len(row)) + row for row in rows]),
        "attention_mask": np.array([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        "pixel_values": pixels,
        "image_sizes": sizes,
    }
    assert np.abs(ours.prefill(inputs) - paddles.prefill(inputs)).max() < 1e-4
    for token in (3, 4):
        tokens = np.array([token, token + 5])
        assert np.abs(ours.decode(tokens) - paddles.decode(tokens)).max() < 1e-4


COME_AND_GO = """
import gc, signal, sys
from paddle_llava.engines.openvino.engine import OpenVINOEngine
from paddle_llava.engines.openvino.formats import Formats
from paddle_llava.engines.openvino.graphs import engine_in_memory
from paddle_llava.pretrained import find_pretrained

pretrained = find_pretrained(sys.argv[1])
with pretrained.open_weights() as tensors:
    engines = [engine_in_memory(OpenVINOEngine, pretrained.config, tensors, Formats("f32", 32)) for _ in range(3)]
while engines:
    engines.pop(0)
    gc.collect()
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("heard")
"""


def test_ctrl_c_is_heard_after_engines_came_and_went() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COME_AND_GO, FIXTURES / "v1_5"], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


def test_several_rows_go_on_from_one(loaded: Loaded) -> None:
    single = engine_of("v1_5" if loaded.engine.config.image_grid_pinpoints is None else "v1_6", "f32")

    def alone(ids: list[int]) -> np.ndarray:
        single.reset()
        return single.prefill({"input_ids": np.array([ids])})[0]

    check_parting_rows(loaded.engine, alone)
