"""Samples as a model sees them, to look at: the decoded text, with what is learnt marked."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.text import Text

from paddle_llava.console import CONTROLS
from paddle_llava.data.encoding import IGNORED, EncodedSample
from paddle_llava.processing.processor import LlavaProcessor


class Piece(NamedTuple):
    """A run of tokens: their text, and whether they are targets."""

    text: str
    target: bool


def decoded_pieces(sample: EncodedSample, processor: LlavaProcessor) -> list[Piece]:
    """The text that the ids of `sample` stand for, special tokens spelled out, pictures as `<image x576>`."""
    tokenizer, image = processor.tokenizer, processor.config.image_token_id
    # Decoding strips the space before the first word, so a run is decoded behind a word, which is cut off again.
    before = [tokenizer.anchor_id]
    skip = len(tokenizer.decode(before))
    pieces, counts = [], iter(sample.feature_counts)
    kinds = np.where(sample.input_ids == image, 2, sample.labels != IGNORED).tolist()
    for kind, run in groupby(zip(kinds, sample.input_ids.tolist(), strict=True), key=lambda pair: pair[0]):
        ids = [token for _, token in run]
        if kind < 2:
            text = tokenizer.decode(before + ids, skip_special_tokens=False)[skip:]
            pieces.append(Piece(text, bool(kind)))
        while kind == 2 and ids:  # pictures may stand side by side
            count = next(counts)
            pieces.append(Piece(f"<image x{count}>", False))
            del ids[:count]
    return pieces


def print_sample(sample: EncodedSample, processor: LlavaProcessor, console: Console) -> None:
    """`sample` on `console`, the targets in green, or between [[ and ]] where there are no colours."""
    cut = f", cut from {sample.full_length:,}" if sample.truncated else ""
    header = f"{sample.name}: {len(sample):,} tokens{cut}, {sample.num_targets:,} of them learnt"
    text = Text(_visible(header) + "\n", style="bold")
    for piece in decoded_pieces(sample, processor):
        shown = _visible(piece.text)
        if piece.target:
            text.append(shown if console.color_system else f"[[{shown}]]", style="not bold green")
        else:
            text.append(shown, style="not bold dim" if piece.text.startswith("<image x") else "not bold")
    console.print(text, soft_wrap=True)
    console.print()


def _visible(text: str) -> str:
    return CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)
