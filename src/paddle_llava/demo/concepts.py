"""What the words of the street world have in common before anything is learnt, in the decoder's embeddings.

`bus`, `buses` and `公交车` begin alike, and near coordinates too; and the tongue's reader gives a cell the embeddings
of what is in it. So a question's word finds its cell, and a cell's colour its word, with little to learn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer

from paddle_llava.demo.backdrop import PLACES, TIMES
from paddle_llava.demo.cells import COLOUR_NAMES, KIND_NAMES, STEPS, WIDTHS
from paddle_llava.demo.naming import colour_word, kind_word, place_word, plural, time_word
from paddle_llava.demo.vocabulary import COORDINATES

WORD_SPREAD = 0.3  # standard deviation of an embedding's numbers
SHARED = 0.8  # of a word's embedding is its concept's; 0.6 its own
CONCEPTS: dict[str, list[tuple[str, ...]]] = {
    "kind": [(kind, plural(kind, "en"), kind.capitalize(), kind_word(kind, "zh")) for kind in KIND_NAMES],
    "colour": [(colour, colour.capitalize(), colour_word(colour, "zh")) for colour in COLOUR_NAMES],
    "place": [(place, place_word(place, "zh")) for place in PLACES],
    "time": [(time, time_word(time, "zh")) for time in TIMES],
}


def relate_words(embeddings: np.ndarray, tokenizer: Tokenizer) -> None:
    """Make the rows of words of one concept alike, and lay coordinates along a smooth random curve; in place.

    Random Fourier features of many scales (Rahimi & Recht 2007), as large as the other words' embeddings.
    """
    random = np.random.default_rng(0)
    width = embeddings.shape[1]
    frequencies = np.exp(random.uniform(math.log(0.3), math.log(6.0), width))
    phases = random.uniform(0, 2 * math.pi, width)
    for text in COORDINATES:
        curve = np.cos(2 * math.pi * frequencies * float(text) + phases) * 2**0.5 * WORD_SPREAD
        embeddings[list(_ids([text], tokenizer))] = curve
    for words in (words for concepts in CONCEPTS.values() for words in concepts):
        ids = list(_ids(words, tokenizer))
        concept = random.standard_normal(width) * WORD_SPREAD
        embeddings[ids] = SHARED * concept + (1 - SHARED**2) ** 0.5 * embeddings[ids]


def aligned_weight(embeddings: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """float32 [WIDTH, hidden_size]: a layer's weight that reads cells, as `as_numbers` gives them, into embeddings.

    A concept is the mean of its words; each of a box's four coordinates is turned by a random rotation of its own.
    """
    random = np.random.default_rng(1)
    width = embeddings.shape[1]
    parts = []
    for name, length in WIDTHS.items():
        if name == "box":
            coordinates = np.stack([embeddings[next(_ids([text], tokenizer))] for text in COORDINATES[:STEPS]])
            rotations = [np.linalg.qr(random.standard_normal((width, width)))[0] for _ in range(4)]
            parts.append(np.concatenate([coordinates @ rotation for rotation in rotations]))
        elif name in CONCEPTS:
            means = np.stack([embeddings[list(_ids(words, tokenizer))].mean(0) for words in CONCEPTS[name]])
            parts.append(np.concatenate([np.zeros((length - len(means), width)), means]))
        else:
            parts.append(random.standard_normal((length, width)) * WORD_SPREAD)
    return np.concatenate(parts).astype(np.float32)


def _ids(words: tuple[str, ...] | list[str], tokenizer: Tokenizer) -> Iterator[int]:
    """The tokens that words end with: of `traffic light`, those of `light`, behind a space and bare."""
    for word in dict.fromkeys(word.split()[-1] for word in words):
        for form in (word, f"▁{word}"):
            number = tokenizer.token_to_id(form)
            if number is not None:
                yield number
