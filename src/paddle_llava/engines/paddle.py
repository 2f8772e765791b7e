"""The forward pass by Paddle itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import paddle

from paddle_llava.models.kv_cache import KVCache
from paddle_llava.models.llava import LlavaNetwork


class PaddleEngine:
    """Runs a `LlavaNetwork` over a growing KV cache.

    What an engine is to generation: `prefill` and `decode` give the next token's logits as float32 numpy
    [batch, vocab_size] and remember the tokens; `rewind` forgets from a position on; `take_rows` lets several rows go
    on from one; `length` is how many positions are held; `encode_images` gives features that later prefills take
    instead of pixels.
    """

    def __init__(self, network: LlavaNetwork) -> None:
        self.network = network
        self.config = network.config
        self.reset()

    @property
    def length(self) -> int:
        return self._cache.length

    def reset(self) -> None:
        """Forget everything; the next prefill may have another batch size."""
        self._cache = KVCache(self.config.text.num_hidden_layers)
        self._valid: np.ndarray | None = None

    def encode_images(self, pixel_values: np.ndarray, image_sizes: np.ndarray) -> list[Any]:
        """One opaque [num_features, hidden_size] tensor a picture; arguments as the processor gives them."""
        with paddle.no_grad():
            return self.network.encode_images(paddle.to_tensor(pixel_values), np.asarray(image_sizes).tolist())

    def prefill(self, inputs: Mapping[str, Any]) -> np.ndarray:
        """Run the tokens `inputs["input_ids"]` [batch, length] after those held; logits of the last position.

        Pictures come as `pixel_values` and `image_sizes`, or as `image_features`. `attention_mask` [batch, length]
        marks padding, which nobody looks at and which takes no position, at the left of what this prefill adds.
        """
        features = inputs.get("image_features")
        if features is None and inputs.get("pixel_values") is not None:
            features = self.encode_images(inputs["pixel_values"], inputs["image_sizes"])
        ids, mask = np.asarray(inputs["input_ids"], dtype=np.int64), inputs.get("attention_mask")
        if mask is not None and not np.all(mask):
            held = self._held(len(ids), self.length)
            self._valid = np.concatenate([held, np.asarray(mask, dtype=bool)], axis=1)
        return self._run(ids, features or [])

    def decode(self, token_ids: np.ndarray) -> np.ndarray:
        """Run one token a row, `token_ids` int64 [batch]; logits of what follows."""
        return self._run(np.asarray(token_ids, dtype=np.int64)[:, None], [])

    def rewind(self, length: int) -> None:
        """Forget the positions from `length` on."""
        self._cache.rewind(length)
        if self._valid is not None:
            self._valid = self._valid[:, :length]

    def take_rows(self, rows: Sequence[int]) -> None:
        """Row i of what is held becomes what row `rows[i]` was."""
        with paddle.no_grad():
            self._cache.take_rows(list(rows))
        if self._valid is not None:
            self._valid = self._valid[list(rows)]

    def _held(self, batch: int, length: int) -> np.ndarray:
        """bool [batch, length], False on the padding among the first `length` positions."""
        valid = np.ones((batch, 0), dtype=bool) if self._valid is None else self._valid
        return np.pad(valid, [(0, 0), (0, length - valid.shape[1])], constant_values=True)

    def _run(self, input_ids: np.ndarray, image_features: list[Any]) -> np.ndarray:
        mask = None
        if self._valid is not None:
            mask = paddle.to_tensor(self._held(len(input_ids), self.length + input_ids.shape[1]))
        with paddle.no_grad():
            output = self.network(
                paddle.to_tensor(input_ids),
                image_features=image_features,
                attention_mask=mask,
                cache=self._cache,
                last_only=True,
            )
        return output.logits[:, -1].astype("float32").numpy()
