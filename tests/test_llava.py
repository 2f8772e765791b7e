"""The model that users hold: loading, saving, and what `generate` takes."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from paddle_llava import LlavaError, LlavaForConditionalGeneration, LlavaProcessor
from paddle_llava.checkpoints.names import stored_names
from paddle_llava.checkpoints.write import ArraySource, write_checkpoint
from paddle_llava.config import ORIGINAL_IMAGE_TOKEN_ID, Layout
from paddle_llava.pretrained import find_pretrained
from reference_cases import CASES, CHECKPOINTS, FIXTURES


def weights(model: LlavaForConditionalGeneration) -> dict[str, np.ndarray]:
    return {name: weight.numpy() for name, weight in model.state_dict().items()}


def stored(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as float32, read by its definition."""
    data = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        raw = data[begin:end]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(raw, {"F16": np.float16, "F32": np.float32}[entry["dtype"]]).astype(np.float32)
        tensors[name] = values.reshape(entry["shape"])
    return tensors


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_weights_are_those_of_the_file(name: str) -> None:
    """Of float16 and of bfloat16 files."""
    model, expected = LlavaForConditionalGeneration.from_pretrained(FIXTURES / name), stored(FIXTURES / name)
    found = {name.replace(".vision_model.", "."): weight for name, weight in expected.items()}
    assert len(found) == len(model.state_dict())
    linear = model.language_model.layers[1].mlp.down_proj.weight.numpy()
    (theirs,) = (weight for name, weight in expected.items() if name.endswith("layers.1.mlp.down_proj.weight"))
    assert np.array_equal(linear, theirs.T)
    norms = [weight for name, weight in expected.items() if name.endswith("pre_layrnorm.bias")]
    assert np.array_equal(model.vision_tower.pre_layernorm.bias.numpy(), norms[0])
    total = sum(float(np.abs(weight).sum(dtype=np.float64)) for weight in weights(model).values())
    assert total == pytest.approx(sum(float(np.abs(w).sum(dtype=np.float64)) for w in expected.values()), rel=1e-9)


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    model = LlavaForConditionalGeneration.from_pretrained(FIXTURES / "v1_5", progress=lambda *step: told.append(step))
    count = len(model.state_dict())
    assert told == [(done, count) for done in range(1, count + 1)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "fp16"])
def test_the_cpu_says_that_it_computes_in_float32(dtype: str) -> None:
    with pytest.warns(UserWarning, match="has no matrix product on the CPU in Paddle; computing in float32"):
        model = LlavaForConditionalGeneration.from_pretrained(FIXTURES / "v1_5", dtype=dtype)
    assert {weight.dtype for weight in model.state_dict().values()} == {paddle.float32}
    assert model.config.dtype == "float32"
    assert paddle.get_default_dtype() == "float32"


def test_an_unknown_dtype() -> None:
    with pytest.raises(LlavaError, match=r"dtype 'bfloat61' is .*did you mean 'bfloat16'"):
        LlavaForConditionalGeneration.from_pretrained(FIXTURES / "v1_5", dtype="bfloat61")


def test_a_checkpoint_that_lacks_tensors(tmp_path: Path) -> None:
    """The weights of one model and the configuration of another."""
    shutil.copy(FIXTURES / "v1_5" / "model.safetensors", tmp_path)
    shutil.copy(FIXTURES / "v1_6" / "config.json", tmp_path)
    with pytest.raises(LlavaError, match=r"missing: .*image_newline.*lm_head.weight"):
        LlavaForConditionalGeneration.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("layout", ["hf", "original", "paddle"])
def test_saved_and_loaded(name: str, layout: Layout, tmp_path: Path) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(FIXTURES / name)
    model.save_pretrained(tmp_path, layout)
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    first, second = weights(model), weights(again)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert (again.config.text, again.config.vision) == (model.config.text, model.config.vision)
    kept = ("image_token_id", "image_grid_pinpoints", "has_image_newline", "vision_feature_layer", "keep_cls", "dtype")
    assert [getattr(again.config, field) for field in kept] == [getattr(model.config, field) for field in kept]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"do_pad": True}, "pad"),
        ({"do_pad": False}, "square"),
        ({"image_processor_type": "CLIPImageProcessor", "do_pad": True}, "square"),
        ({"do_pad": False, "size": {"height": 56, "width": 56}}, "square"),
    ],
)
@pytest.mark.parametrize("layout", ["original", "paddle"])
def test_what_is_done_to_pictures_stands_in_the_original_form(
    layout: Layout, settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """Which the hf form leaves to the preprocessor's file; and it is the same again when both are read back."""
    source, saved = tmp_path / "hf", tmp_path / "saved"
    shutil.copytree(FIXTURES / "v1_5", source)
    path = source / "processor_config.json"
    raw = json.loads(path.read_text())
    raw["image_processor"].update(settings)
    path.write_text(json.dumps(raw))
    LlavaForConditionalGeneration.from_pretrained(source).save_pretrained(saved, layout)
    assert json.loads((saved / "config.json").read_text())["image_aspect_ratio"] == said
    processor = LlavaProcessor.from_pretrained(source)
    processor.save_pretrained(saved, layout)
    assert LlavaProcessor.from_pretrained(saved).image_processor == processor.image_processor
    assert processor.image_processor.image_aspect_ratio == said


def test_a_separate_tower_brings_its_own_preprocessing(tmp_path: Path) -> None:
    tower, folder = tmp_path / "tower", tmp_path / "original"
    LlavaForConditionalGeneration.from_pretrained(FIXTURES / "v1_5").save_pretrained(folder, "original")
    tower.mkdir()
    vision = json.loads((FIXTURES / "v1_5" / "config.json").read_text())["vision_config"]
    (tower / "config.json").write_text(json.dumps(vision))
    (tower / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    raw = json.loads((folder / "config.json").read_text())
    del raw["vision_config"]
    (folder / "config.json").write_text(json.dumps(raw | {"mm_vision_tower": str(tower)}))
    images = find_pretrained(folder).image_processor
    assert (images.image_mean, images.image_std) == ((0.5,) * 3, (0.25,) * 3)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """Which would give ids that the model has no embedding of, and no places for pictures."""
    folder = tmp_path / "mixed"
    shutil.copytree(FIXTURES / "v1_5", folder)
    config, tokenizer = json.loads((folder / "config.json").read_text()), folder / "tokenizer.json"
    smaller = config | {"text_config": config["text_config"] | {"vocab_size": 100}}
    (folder / "config.json").write_text(json.dumps(smaller))
    with pytest.raises(LlavaError, match=r"the tokenizer has \d+ pieces, and vocab_size in config.json is only 100"):
        LlavaProcessor.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    raw = json.loads(tokenizer.read_text())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["id"] < 512]
    tokenizer.write_text(json.dumps(raw))
    with pytest.raises(LlavaError, match="the tokenizer has no <image>, which is token"):
        LlavaProcessor.from_pretrained(folder)


def test_an_original_vocabulary_gets_an_image_token(tmp_path: Path) -> None:
    """Which the hf layout needs: 64 rows more, of which `<image>` is the first."""
    twin = LlavaForConditionalGeneration.from_pretrained(FIXTURES / "v1_6")
    size = 500
    arrays = weights(twin)
    arrays["language_model.embed_tokens.weight"] = arrays["language_model.embed_tokens.weight"][:size]
    arrays["lm_head.weight"] = np.ascontiguousarray(arrays["lm_head.weight"][:, :size])
    text = replace(twin.config.text, vocab_size=size, pad_token_id=None)
    config = replace(twin.config, text=text, image_token_id=ORIGINAL_IMAGE_TOKEN_ID)
    write_checkpoint(tmp_path / "original", config, ArraySource(arrays), "original")
    original = LlavaForConditionalGeneration.from_pretrained(tmp_path / "original")
    assert original.config.image_token_id == ORIGINAL_IMAGE_TOKEN_ID

    original.save_pretrained(tmp_path / "hf")
    grown = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf")
    assert (grown.config.image_token_id, grown.config.text.pad_token_id) == (size, size + 1)
    assert grown.config.text.vocab_size == size + 64
    table, head = grown.language_model.embed_tokens.weight.numpy(), grown.lm_head.weight.numpy()
    assert np.array_equal(table[:size], arrays["language_model.embed_tokens.weight"])
    assert np.array_equal(head[:, :size], arrays["lm_head.weight"])
    assert np.abs(table[size:] - table[:size].mean(axis=0)).max() < 1e-6
    assert np.abs(head[:, size:] - head[:, :size].mean(axis=1, keepdims=True)).max() < 1e-6
    assert stored_names(grown.config, "hf").keys() == grown.state_dict().keys()


@pytest.fixture(scope="module")
def given() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    folder = FIXTURES / "v1_5"
    return LlavaForConditionalGeneration.from_pretrained(folder), LlavaProcessor.from_pretrained(folder)


def test_tensors_and_arrays_are_taken_alike(given: Any) -> None:
    model, processor = given
    case = CASES["batch"]
    tensors = processor(list(case.prompts), case.pictures)
    arrays = processor.prepare(list(case.prompts), case.pictures)
    assert all(isinstance(tensor, paddle.Tensor) for tensor in tensors.values())
    assert np.array_equal(model(**tensors).logits.numpy(), model(**arrays).logits.numpy())
    new = model.generate(**tensors, max_new_tokens=5)
    assert isinstance(new, paddle.Tensor)
    assert new.dtype == paddle.int64
    assert new.shape == [3, 5]
    assert np.array_equal(new.numpy(), model.generate(**arrays, max_new_tokens=5).numpy())


def test_settings_of_generate(given: Any) -> None:
    model, processor = given
    inputs = processor("USER: hi ASSISTANT:")
    drawn = [model.generate(**inputs, max_new_tokens=9, temperature=2.0, seed=seed).tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(TypeError, match=r"unknown settings \['do_sample'\]"):
        model.generate(**inputs, do_sample=False)
    with pytest.raises(LlavaError, match="temperature must be"):
        model.generate(**inputs, temperature=-1.0)


def test_a_prompt_that_is_too_long(given: Any) -> None:
    model, processor = given
    limit = model.config.text.max_position_embeddings
    with pytest.raises(LlavaError, match=f"leaves no room for an answer: the model holds {limit}"):
        model.generate(**processor("lake " * limit))
