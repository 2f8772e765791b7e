"""Checkpoints of any shape with random weights, in the `-hf` layout, made tensor by tensor."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from paddle_llava.checkpoints.dtypes import FLOATS, to_dtype
from paddle_llava.checkpoints.names import parameter_shapes
from paddle_llava.checkpoints.write import write_checkpoint
from paddle_llava.config import CLIP_VIT_L_336, LlavaConfig, TextConfig, VisionConfig
from paddle_llava.demo.checkpoint import build_tokenizer
from paddle_llava.json_file import write_json
from paddle_llava.processing.images import ImageProcessor

SMALL_VIT = VisionConfig(768, 3072, 12, 12, image_size=336, patch_size=14)
TINY_VIT = VisionConfig(256, 1024, 6, 4, image_size=336, patch_size=14)
SHAPES = {
    "0.1B": (TINY_VIT, TextConfig(32064, 768, 2048, 8, 12, 12, head_dim=64)),
    "0.15B": (TINY_VIT, TextConfig(32064, 1024, 2816, 8, 16, 4, head_dim=64)),
    "0.2B": (SMALL_VIT, TextConfig(32064, 768, 2048, 12, 12, 4, head_dim=64)),
    "1.1B": (CLIP_VIT_L_336, TextConfig(32064, 2048, 5632, 22, 32, 4, head_dim=64)),
    "7B": (CLIP_VIT_L_336, TextConfig(32064, 4096, 11008, 32, 32, 32, head_dim=128)),
}


class RandomSource:
    """The weights of `config`, each drawn when it is read: uniform with a standard deviation of 0.02, norms 1.

    The output head gives the tokenizer's own tokens 0, which is never the greatest logit of 32064: no answer ends
    before its time or names an image.
    """

    folder: Path | None = None

    def __init__(self, config: LlavaConfig, silent_tokens: int) -> None:
        self._shapes = parameter_shapes(config)
        self._dtype = config.dtype
        self._silent = silent_tokens

    def names(self) -> list[str]:
        return list(self._shapes)

    def dtype(self, name: str) -> str:
        return self._dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def read(self, name: str) -> np.ndarray:
        shape = self._shapes[name]
        if "norm" in name:
            values = np.full(shape, name.endswith("weight"), np.float32)
        else:
            values = np.random.default_rng(zlib.crc32(name.encode())).random(shape, np.float32)
            values -= 0.5
            values *= 0.02 * 12**0.5
        if name == "lm_head.weight":
            values[:, : self._silent] = 0
        return to_dtype(values, "float32", self._dtype)


def random_config(shape: str, dtype: str, layers: int | None = None) -> tuple[LlavaConfig, Tokenizer]:
    """The model of a shape, with `layers` decoder layers if given, and the tokenizer of its first few tokens."""
    vision, text = SHAPES[shape]
    tokenizer = build_tokenizer()
    ids = tokenizer.get_vocab()
    text = replace(text, num_hidden_layers=layers or text.num_hidden_layers, max_position_embeddings=4096)
    text = replace(text, pad_token_id=ids["<pad>"])
    config = LlavaConfig(vision, text, image_token_id=ids["<image>"], image_aspect_ratio="pad", dtype=dtype)
    return config, tokenizer


def save_companions(folder: Path, config: LlavaConfig, tokenizer: Tokenizer) -> None:
    """What stands beside the weights."""
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizerFast", **special})
    write_json(folder / "preprocessor_config.json", ImageProcessor.from_config(config, None).to_dict())


class Builder:
    """A process of its own, so that making a checkpoint counts in nobody's memory."""

    def build(self, folder: Path, shape: str, dtype: str, layers: int | None = None, shards: int = 1) -> int:
        """Write the checkpoint, with `layers` decoder layers if given; returns the bytes of its largest shard."""
        config, tokenizer = random_config(shape, dtype, layers)
        folder.mkdir(parents=True)
        save_companions(folder, config, tokenizer)
        sizes = [int(np.prod(size)) * FLOATS[dtype].itemsize for size in parameter_shapes(config).values()]
        # A tensor more than an equal part, so that the last shard holds no leavings of the others.
        limit = sum(sizes) // shards + max(sizes) if shards > 1 else sum(sizes)
        source = RandomSource(config, tokenizer.get_vocab_size())
        write_checkpoint(folder, config, source, "hf", max_shard_bytes=limit)
        return max(file.stat().st_size for file in folder.glob("*.safetensors"))
