"""A vocabulary with room for `<image>`, which `transformers` looks up like any other token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from paddle_llava.checkpoints.dtypes import to_dtype
from paddle_llava.checkpoints.write import TensorSource
from paddle_llava.config import LlavaConfig

ADDED_TOKENS = 64  # as the published -hf files have it: 32000 -> 32064
_AXES = {"language_model.embed_tokens.weight": 0, "lm_head.weight": 1}


def extend_vocabulary(source: TensorSource, config: LlavaConfig) -> tuple[TensorSource, LlavaConfig]:
    """The same model with an `<image>` and a `<pad>` token after its vocabulary, which grows by 64 tokens.

    Original checkpoints mark images with -200, outside of the vocabulary. New embeddings and new columns of
    `lm_head` are the mean of the existing ones. When the image token has an embedding already, the arguments
    are returned as they are. The source is read only when the result is.
    """
    size = config.text.vocab_size
    if 0 <= config.image_token_id < size:
        return source, config
    text = replace(config.text, vocab_size=size + ADDED_TOKENS, pad_token_id=size + 1)
    return _Extended(source), replace(config, text=text, image_token_id=size)


class _Extended:
    def __init__(self, source: TensorSource) -> None:
        self._source = source

    @property
    def folder(self) -> Path | None:
        return self._source.folder

    def names(self) -> list[str]:
        return self._source.names()

    def dtype(self, name: str) -> str:
        return self._source.dtype(name)

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._source.shape(name)
        if name not in _AXES:
            return shape
        return tuple(n + ADDED_TOKENS if axis == _AXES[name] else n for axis, n in enumerate(shape))

    def read(self, name: str) -> np.ndarray:
        array = self._source.read(name)
        if name not in _AXES:
            return array
        axis, dtype = _AXES[name], self.dtype(name)
        mean = to_dtype(_mean(array, dtype, axis), "float32", dtype, where=name)
        extended = np.empty_like(array, shape=self.shape(name))  # in the order of the array, too
        old, new = np.split(extended, [array.shape[axis]], axis)
        old[...], new[...] = array, np.expand_dims(mean, axis)
        return extended


def _mean(array: np.ndarray, dtype: str, axis: int) -> np.ndarray:
    """The float32 mean, summed in float64; in strips, for the whole array as floats might not fit memory."""
    tokens = np.moveaxis(array, axis, 0)
    total = np.zeros(tokens.shape[1:], np.float64)
    for start in range(0, len(tokens), 1024):
        total += to_dtype(tokens[start : start + 1024], dtype, "float32").sum(axis=0, dtype=np.float64)
    return (total / len(tokens)).astype(np.float32)
