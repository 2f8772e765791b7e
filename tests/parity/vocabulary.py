"""A small vocabulary like LLaMA's: pieces of words with "▁" for the space before them, and one for each byte."""

from __future__ import annotations

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SIZE = 512
TEXT = """A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful,
detailed, and polite answers to the user's questions. USER: What is in the picture? ASSISTANT: It shows a lake
between hills, with trees, boats and a house of many windows. USER: Where are the leaves, and which colour is
the sky? ASSISTANT: They are behind the flower, on the left side; it is a bright blue with a few white clouds.
USER: Who is there, and what is she doing? ASSISTANT: Nobody but a young woman in a yellow dress, who walks
her dog along the water. USER: Say it in one word. ASSISTANT: Summer. USER: Describe the larger of the two
animals, please. ASSISTANT: The horse is brown and tall."""


def build_tokenizer() -> Tokenizer:
    """The `legacy` form, which puts a space before every stretch of text between special tokens."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()  # no piece spans two words
    reserved = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=SIZE - len(reserved), show_progress=False)
    learner.train_from_iterator([" ".join(TEXT.split())], trainer)
    learned = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    pieces = {piece: index for index, piece in enumerate([*reserved, *(piece for piece, _ in learned)])}
    assert len(pieces) == SIZE
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]

    tokenizer = Tokenizer(models.BPE(pieces, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<image>", "<pad>"])
    return tokenizer
