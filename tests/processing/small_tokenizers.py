"""Small sentencepiece models for tests, trained on the spot with LLaMA's settings."""

from __future__ import annotations

import io
import json
from pathlib import Path

import sentencepiece

ENGLISH = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "USER: What is in the picture? ASSISTANT: A red bus in the street, at 0.23, 0.33, 0.79, 0.78.",
    "[INST] Describe it. [/INST] Three people   walk along the lake -- 1234 steps.",
    "### Human: hello there ### Assistant: hi <image> </s> <|im_start|>user",
    "    def area(width, height):        return width * height",
]
CHINESE = [
    "描述这张照片 这是一个照片,展示了一辆红色公交车在街道上行驶。",
    "车辆正在行驶在一个狭窄的道路上,周围有一些汽车和树木。给出公交车位置的坐标",
    "车辆的前部有一个路灯,并且还有一个路灯在车辆的右侧。",
]


def train(lines: list[str] = ENGLISH, *, vocab_size: int = 480, **options: object) -> bytes:
    """A `tokenizer.model`: byte pair encoding with the options that LLaMA's was trained with."""
    model = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "byte_fallback": True,
        "split_digits": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "hard_vocab_limit": False,
        "minloglevel": 3,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 20), model_writer=model, vocab_size=vocab_size, **(settings | options)
    )
    return model.getvalue()


def write_original(folder: Path, model: bytes, *, legacy: bool | None = None) -> Path:
    """The tokenizer files of an original checkpoint: the sentencepiece model and its settings."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    bos = {"__type": "AddedToken", "content": "<s>", **flags}
    config: dict[str, object] = {"tokenizer_class": "LlamaTokenizer", "bos_token": bos}
    if legacy is not None:
        config["legacy"] = legacy
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
