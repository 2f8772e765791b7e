"""Several sequences in one batch, by Paddle itself; they join and leave between steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle

from paddle_llava.generation.batch import Work
from paddle_llava.models.kv_cache import CHUNK, KVCache
from paddle_llava.models.llava import LlavaNetwork
from paddle_llava.models.side_by_side import SideBySide, Span

# With AVX-512, products of fewer rows take another way through MKL, and round otherwise; with an output head that is
# the transposed embeddings, of fewer than sixteen.
FEWEST_ROWS = 2
FEWEST_LOGITS = 16


class PaddleBatchEngine:
    """A `BatchEngine` over a `LlavaNetwork`; a sequence is a `KVCache`."""

    max_tokens = 256
    """The rows of one step up to which, with AVX-512, a row's bits do not depend on the others."""

    def __init__(self, network: LlavaNetwork) -> None:
        self.network = network
        self.config = network.config
        text = network.config.text
        width = {"float32": 4}.get(network.config.dtype, 2)
        self.bytes_per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * width
        self.growth = CHUNK

    def encode_images(self, pixel_values: np.ndarray, image_sizes: np.ndarray) -> list[Any]:
        """One [num_features, hidden_size] tensor a picture; arguments as the processor gives them."""
        with paddle.no_grad():
            return self.network.encode_images(paddle.to_tensor(pixel_values), np.asarray(image_sizes).tolist())

    def new_sequence(self) -> KVCache:
        return KVCache(self.config.text.num_hidden_layers)

    def fork(self, sequence: KVCache, length: int) -> KVCache:
        """A copy of the first `length` positions of `sequence`, which may go on meanwhile."""
        with paddle.no_grad():
            return sequence.copy(length)

    def step(self, work: Sequence[Work]) -> np.ndarray:
        spans, ids, positions, features, end = [], [], [], list[Any](), 0
        for sequence, token_ids, image_features, generated in work:
            start, end = end, end + len(token_ids)
            spans.append(Span(sequence, start, end, generated))
            ids.append(token_ids)
            positions.append(np.arange(sequence.length, sequence.length + len(token_ids)))
            features += image_features
        rows = max(end, FEWEST_ROWS)
        lasts = [span.end - 1 for span in spans]
        lasts += [lasts[-1]] * (FEWEST_LOGITS - len(lasts))
        with paddle.no_grad():
            embeds = self.network.embed(_column(ids, rows), features)
            hidden = self.network.language_model(embeds, _column(positions, rows), cache=SideBySide(spans, rows))
            logits = self.network.logits(paddle.gather(hidden[:, 0], paddle.to_tensor(lasts)))
            return logits.astype("float32").numpy()[: len(work)]


def _column(parts: list[np.ndarray], rows: int) -> paddle.Tensor:
    """int64 [rows, 1], padded with zeros."""
    column = np.zeros((rows, 1), np.int64)
    values = np.concatenate(parts)
    column[: len(values), 0] = values
    return paddle.to_tensor(column)
