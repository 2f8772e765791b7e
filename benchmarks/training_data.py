"""What both sides of a comparison of training steps are given: samples of random words with a picture or without, in
the lengths that training meets, and the settings of the recipe."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

Case = Literal["equal", "mixed", "grouped"]
FEATURES = 576
DEVICES = 8  # of the published recipe
WORDS = range(2000, 32000)  # beyond the tokenizer's own
ANSWERED = 0.6  # of a sample's words
IGNORED = -100

LEARNING_RATE = 2e-4
LORA_RANK, LORA_ALPHA, LORA_DROPOUT = 32, 64.0, 0.05


class Drawn(NamedTuple):
    """`input_ids` and `labels` int64 [length], not shifted; `pixel_values` float32 [3, 336, 336], or None."""

    input_ids: np.ndarray
    labels: np.ndarray
    pixel_values: np.ndarray | None


def draw_samples(case: Case, count: int, image_token: int, random: np.random.Generator) -> list[Drawn]:
    """`count` samples; of `mixed` ones, every sixteenth has no picture, which one of them being drawn.

    `grouped` ones are all with a picture or, every sixteenth time, all without, and a device's share of a larger batch.
    """
    wordy = -1 if case == "equal" else int(random.integers(16))
    if case == "mixed":
        return [_draw(case, number % 16 != wordy, image_token, random) for number in range(count)]
    if case == "equal":
        return [_draw(case, True, image_token, random) for _ in range(count)]
    drawn = [_draw(case, wordy > 0, image_token, random) for _ in range(count * DEVICES)]
    return _shares(drawn)[random.integers(DEVICES)]


def _shares(samples: list[Drawn]) -> list[list[Drawn]]:
    """`DEVICES` shares of `samples` that are even in sum, as `group_by_modality_length` of haotian-liu/LLaVA
    (`split_to_even_chunks`) deals them: the longest first, each to the share that has least yet."""
    shares: list[list[Drawn]] = [[] for _ in range(DEVICES)]
    for sample in sorted(samples, key=lambda sample: -len(sample.labels)):
        open_shares = [share for share in shares if len(share) < len(samples) // DEVICES]
        min(open_shares, key=lambda share: sum(len(each.labels) for each in share)).append(sample)
    return shares


def _draw(case: Case, pictured: bool, image_token: int, random: np.random.Generator) -> Drawn:
    if case == "equal":
        length = 128
    elif pictured:
        length = int(np.clip(random.lognormal(np.log(160), 0.9), 24, 1400))
    else:
        length = int(np.clip(random.lognormal(np.log(700), 0.7), 64, 2000))
    words = random.integers(WORDS.start, WORDS.stop, length)
    answer = round(ANSWERED * length)
    picture = np.full(FEATURES if pictured else 0, image_token)
    input_ids = np.concatenate([words[:1], picture, words[1:]]).astype(np.int64)
    labels = np.full_like(input_ids, IGNORED)
    labels[-answer:] = input_ids[-answer:]
    return Drawn(input_ids, labels, random.standard_normal((3, 336, 336), np.float32) if pictured else None)
