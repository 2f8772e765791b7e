"""A small LLaVA with random weights in the `-hf` layout, built on the spot: all parts run, no word means anything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from paddle_llava.checkpoints.names import parameter_shapes
from paddle_llava.checkpoints.write import ArraySource, write_checkpoint
from paddle_llava.config import LlavaConfig, TextConfig, VisionConfig
from paddle_llava.json_file import write_json
from paddle_llava.processing.images import ImageProcessor

_TEXT = """A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful,
detailed, and polite answers to the user's questions. USER: Describe this picture. ASSISTANT: The picture shows a
lake with trees, a pavilion, boats on the water, a bridge, people walking, a red bus on the street and a blue sky."""


def build_tokenizer(vocab_size: int = 600) -> Tokenizer:
    """A LLaMA-style BPE tokenizer with byte fallback and `<image>`, trained on a paragraph."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()  # no piece spans two words
    reserved = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - len(reserved), show_progress=False)
    learner.train_from_iterator([_TEXT], trainer)
    learned = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    vocab = {token: number for number, token in enumerate([*reserved, *(token for token, _ in learned)])}
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]

    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<image>", "<pad>"])
    return tokenizer


def build(folder: Path, seed: int = 0) -> None:
    """Write the checkpoint to `folder`: weights, configuration, tokenizer and preprocessor."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    ids = tokenizer.get_vocab()
    config = LlavaConfig(
        vision=VisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=112,
            patch_size=14,
        ),
        text=TextConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=128,
            intermediate_size=344,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=2048,
            pad_token_id=ids["<pad>"],
        ),
        image_token_id=ids["<image>"],
        image_aspect_ratio="pad",
    )
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in parameter_shapes(config).items():
        noise = random.standard_normal(shape, dtype=np.float32) * 0.08
        weights[name] = noise + 1 if "norm" in name and name.endswith("weight") else noise
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizerFast", **special})
    write_json(folder / "preprocessor_config.json", ImageProcessor.from_config(config, None).to_dict())
    write_checkpoint(folder, config, ArraySource(weights), "hf")
