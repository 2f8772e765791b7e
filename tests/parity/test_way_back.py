"""What this package writes, `transformers` loads and answers with as we do; what it writes then, we load again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pairs import Pair
from reference import Reference

from paddle_llava import LlavaError, LlavaForConditionalGeneration, LlavaProcessor
from paddle_llava.checkpoints.write import ArraySource, write_checkpoint
from paddle_llava.config import ORIGINAL_IMAGE_TOKEN_ID
from paddle_llava.convert import convert
from reference_cases import CASES, TOLERANCE

pytestmark = pytest.mark.parity


def assert_loads_alike(folder: Path, model: Any, processor: LlavaProcessor) -> Reference:
    """`transformers` finds each key of `folder` and gives the ids, pixels and logits of `model` and `processor`."""
    reference = Reference(folder)
    assert not any(reference.loading.values()), reference.loading
    for case in CASES.values():
        inputs, theirs = processor.prepare(list(case.prompts), case.pictures), reference.inputs(case)
        ids = np.where(inputs["input_ids"] < 0, reference.processor.image_token_id, inputs["input_ids"])
        mask = inputs["attention_mask"].astype(bool)
        assert np.array_equal(mask, theirs["attention_mask"].numpy().astype(bool))
        assert np.array_equal(ids[mask], theirs["input_ids"].numpy()[mask])
        if case.sizes:
            assert np.abs(inputs["pixel_values"] - reference.tiles(case)).max() < 1e-6
        ours = model(**inputs).logits.numpy()
        assert np.abs(ours - reference.logits(case)[..., : ours.shape[-1]])[mask].max() < TOLERANCE
    return reference


def assert_same(model: Any, folder: Path) -> None:
    """The model in `folder` has the very weights of `model`."""
    again = LlavaForConditionalGeneration.from_pretrained(folder)
    weights = {name: weight.numpy() for name, weight in model.state_dict().items()}
    assert weights.keys() == again.state_dict().keys()
    for name, weight in again.state_dict().items():
        assert np.array_equal(weight.numpy(), weights[name]), name


def test_what_is_saved(pair: Pair, tmp_path: Path) -> None:
    pair.model.save_pretrained(tmp_path / "ours")
    pair.processor.save_pretrained(tmp_path / "ours")
    reference = assert_loads_alike(tmp_path / "ours", pair.model, pair.processor)

    reference.model.save_pretrained(tmp_path / "theirs")
    reference.processor.save_pretrained(tmp_path / "theirs")
    assert_same(pair.model, tmp_path / "theirs")
    processor = LlavaProcessor.from_pretrained(tmp_path / "theirs")
    assert processor.image_processor == pair.processor.image_processor


@pytest.mark.parametrize("layout", ["original", "paddle"])
def test_what_is_converted(pair: Pair, layout: Any, tmp_path: Path) -> None:
    if not pair.model.config.projector_bias:
        with pytest.raises(LlavaError, match=f"the {layout} layout has no projector without bias"):
            convert(pair.folder, tmp_path / layout, layout)
        return
    convert(pair.folder, tmp_path / layout, layout)
    convert(tmp_path / layout, tmp_path / "hf", "hf", max_shard_bytes=50_000)
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
    assert_loads_alike(tmp_path / "hf", pair.model, pair.processor)


def test_an_original_vocabulary_is_extended(pair: Pair, tmp_path: Path) -> None:
    """A checkpoint as the original program has it: no `<image>` in the vocabulary, -200 in the prompt."""
    if not pair.model.config.projector_bias:
        pytest.skip("original checkpoints have biases")
    original, size = tmp_path / "original", pair.processor.tokenizer.vocab_size - 2
    arrays = {name: weight.numpy() for name, weight in pair.model.state_dict().items()}
    arrays["language_model.embed_tokens.weight"] = arrays["language_model.embed_tokens.weight"][:size]
    if "lm_head.weight" in arrays:
        arrays["lm_head.weight"] = np.ascontiguousarray(arrays["lm_head.weight"][:, :size])
    config = pair.model.config
    config = replace(
        config,
        text=replace(config.text, vocab_size=size, pad_token_id=None),
        image_token_id=ORIGINAL_IMAGE_TOKEN_ID,
        image_aspect_ratio={"pad": "pad", "anyres": "anyres"}.get(pair.processor.image_processor.mode, "square"),
    )
    write_checkpoint(original, config, ArraySource(arrays), "original")
    pair.processor.save_pretrained(original, "original")
    raw = json.loads((original / "tokenizer.json").read_text())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["id"] < size]
    (original / "tokenizer.json").write_text(json.dumps(raw))
    settings = json.loads((original / "tokenizer_config.json").read_text())
    for key in ("added_tokens_decoder", "pad_token", "image_token"):
        settings.pop(key, None)
    (original / "tokenizer_config.json").write_text(json.dumps(settings))
    (original / "special_tokens_map.json").unlink()

    convert(original, tmp_path / "hf", "hf")
    model, processor = LlavaForConditionalGeneration.from_pretrained(original), LlavaProcessor.from_pretrained(original)
    assert processor.tokenizer.image_token_id is None
    assert_loads_alike(tmp_path / "hf", model, processor)


def test_the_processor_alone(pair: Pair, tmp_path: Path) -> None:
    """From the files that `transformers` writes without a model, and from those that we write."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    pair.reference.processor.save_pretrained(theirs)
    pair.processor.save_pretrained(ours)
    case = CASES["batch"]
    expected = pair.processor.prepare(list(case.prompts), case.pictures)
    for folder in (theirs, ours):
        assert not (folder / "config.json").exists()
        inputs = LlavaProcessor.from_pretrained(folder).prepare(list(case.prompts), case.pictures)
        assert inputs.keys() == expected.keys()
        for name, array in expected.items():
            assert np.array_equal(inputs[name], array), name
