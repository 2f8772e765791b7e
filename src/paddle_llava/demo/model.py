"""The street model before it has learnt anything: its shape, its tokenizer, and an untrained checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path

import paddle
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from paddle_llava.config import LlavaConfig, TextConfig, VisionConfig
from paddle_llava.demo.concepts import WORD_SPREAD, relate_words
from paddle_llava.demo.vocabulary import COORDINATES, all_words
from paddle_llava.json_file import write_json
from paddle_llava.llava import LlavaForConditionalGeneration
from paddle_llava.processing.images import ImageProcessor
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.templates import TEMPLATES

IMAGE_SIZE, PATCH_SIZE = 128, 16
TEMPLATE = TEMPLATES["vicuna_v1"]
_RESERVED = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
_APART = "\t"


def build_tokenizer() -> Tokenizer:
    """A LLaMA-style BPE tokenizer, with byte fallback, that knows each word of the street world whole.

    A coordinate is one token, in running English (`▁0.23`) as after a Chinese word (`0.23`).
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(_APART)
    trainer = trainers.BpeTrainer(vocab_size=4000, min_frequency=1, show_progress=False)
    learner.train_from_iterator([_APART.join(_pieces())], trainer)
    learned = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    vocab = {token: number for number, token in enumerate([*_RESERVED, *(token for token, _ in learned)])}
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]

    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<image>", "<pad>"])
    return tokenizer


def _pieces() -> list[str]:
    """What is to be one token: English words behind a space, or bare where they can begin a line; Chinese ones bare."""
    structure = re.findall("[A-Za-z]+", f"{TEMPLATE.system} {TEMPLATE.user_prefix} {TEMPLATE.assistant_prefix}")
    words = dict.fromkeys([*all_words(), *structure])
    pieces = []
    for word in words:
        is_latin = word[0].isascii() and word[0].isalpha()
        if is_latin or word in COORDINATES or word.isdigit():
            pieces.append(f"▁{word}")
        if not is_latin or word[0].isupper():
            pieces.append(word)
    return pieces


def street_config(tokenizer: Tokenizer) -> LlavaConfig:
    """64 features a picture, of the tower's last layer: nothing is held that is not used. 7.1 M parameters."""
    ids = tokenizer.get_vocab()
    return LlavaConfig(
        vision=VisionConfig(
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=7,
            num_attention_heads=3,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
        ),
        text=TextConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=64,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=ids["<pad>"],
        ),
        image_token_id=ids["<image>"],
        image_aspect_ratio="pad",
        vision_feature_layer=-1,
    )


def write_untrained(folder: Path, seed: int = 0) -> None:
    """A checkpoint in the `-hf` layout with random weights, tokenizer and preprocessor."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    config = street_config(tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizerFast", **special})
    write_json(folder / "preprocessor_config.json", ImageProcessor.from_config(config, None).to_dict())
    paddle.seed(seed)
    model = LlavaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if name == "language_model.norm.weight":
            parameter.set_value(paddle.full(parameter.shape, 0.15))  # the output head's rows are embeddings, so large
        elif "norm" not in name and parameter.ndim > 1:
            parameter.set_value(paddle.randn(parameter.shape) * _spread(name, parameter.shape, config))
        elif name.endswith("bias"):
            parameter.set_value(paddle.zeros(parameter.shape))
    embeddings = model.language_model.embed_tokens.weight.numpy()
    relate_words(embeddings, tokenizer)
    model.language_model.embed_tokens.weight.set_value(embeddings)
    model.save_pretrained(folder)
    LlavaProcessor.from_pretrained(folder).save_pretrained(folder)


def _spread(name: str, shape: list[int], config: LlavaConfig) -> float:
    """Standard deviation of a random weight: by the number of its inputs, less where the layers' outputs add up.

    Words and positions are as large as what layers add to them, or the first layers would hardly see them.
    """
    if name.endswith(("embed_tokens.weight", "position_embedding.weight")):
        return WORD_SPREAD
    inputs = shape[0] if len(shape) == 2 else shape[1] * shape[2] * shape[3]
    depth = config.vision.num_hidden_layers if name.startswith("vision_tower") else config.text.num_hidden_layers
    added = name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "fc2.weight"))
    return float(0.7 * inputs**-0.5 * ((2 * depth) ** -0.5 if added else 1.0))
