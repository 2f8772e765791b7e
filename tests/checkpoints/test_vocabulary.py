from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paddle_llava.checkpoints.dtypes import to_dtype
from paddle_llava.checkpoints.names import parameter_shapes
from paddle_llava.checkpoints.read import open_checkpoint
from paddle_llava.checkpoints.vocabulary import extend_vocabulary
from paddle_llava.checkpoints.write import ArraySource, write_checkpoint
from paddle_llava.config import ORIGINAL_IMAGE_TOKEN_ID, LlavaConfig

EMBEDDING, LM_HEAD = "language_model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("vocab_size", [40, 2500])  # 2500: more than the mean takes at a time
def test_original_to_hf(
    v15: LlavaConfig,
    make_folder: Callable,
    make_arrays: Callable,
    tmp_path: Path,
    dtype: str,
    vocab_size: int,
) -> None:
    text = replace(v15.text, vocab_size=vocab_size, pad_token_id=0)
    config = replace(v15, text=text, image_token_id=ORIGINAL_IMAGE_TOKEN_ID)
    with open_checkpoint(make_folder(config, "original", dtype), config) as checkpoint:
        source, grown = extend_vocabulary(checkpoint, config)
        assert source.folder == checkpoint.folder
        write_checkpoint(tmp_path / "out", grown, source, "hf")

    found = LlavaConfig.from_dict(json.loads((tmp_path / "out" / "config.json").read_text()))
    assert (found.text.vocab_size, found.image_token_id) == (vocab_size + 64, vocab_size)
    assert found.text.pad_token_id == vocab_size + 1
    before = make_arrays(config, dtype)
    with open_checkpoint(tmp_path / "out", found) as checkpoint:
        after = {name: checkpoint.read(name) for name in checkpoint.names()}
    for name in before.keys() - {EMBEDDING, LM_HEAD}:
        assert np.array_equal(after[name], before[name])
    for name, axis in ((EMBEDDING, 0), (LM_HEAD, 1)):
        old, new = np.split(after[name], [vocab_size], axis)
        assert np.array_equal(old, before[name])
        assert new.shape[axis] == 64
        mean = to_dtype(before[name], dtype, "float32").mean(axis, dtype=np.float64, keepdims=True)
        tolerance = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}[dtype]
        assert np.allclose(to_dtype(new, dtype, "float32"), mean, rtol=tolerance, atol=1e-6)


def test_tied(v15: LlavaConfig, make_arrays: Callable) -> None:
    text = replace(v15.text, tie_word_embeddings=True)
    config = replace(v15, text=text, image_token_id=ORIGINAL_IMAGE_TOKEN_ID)
    source, grown = extend_vocabulary(ArraySource(make_arrays(config)), config)
    assert {name: source.shape(name) for name in source.names()} == parameter_shapes(grown)
    assert source.read(EMBEDDING).shape == (104, 16)


def test_the_first_token_beyond(v15: LlavaConfig, make_arrays: Callable) -> None:
    config = replace(v15, image_token_id=40)
    source, grown = extend_vocabulary(ArraySource(make_arrays(config)), config)
    assert (grown.image_token_id, grown.text.vocab_size) == (40, 104)
    assert source.shape(LM_HEAD) == (16, 104)


@pytest.mark.parametrize("image_token_id", [0, 39])
def test_an_image_token_with_an_embedding(v15: LlavaConfig, make_arrays: Callable, image_token_id: int) -> None:
    config = replace(v15, image_token_id=image_token_id)
    given = ArraySource(make_arrays(config))
    source, same = extend_vocabulary(given, config)
    assert source is given
    assert same is config
