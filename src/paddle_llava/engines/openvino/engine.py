"""One batch that grows, on the engine for many sequences: what chat, evaluation and `generate` run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from openvino import CompiledModel

from paddle_llava.engines.openvino.batch import OpenVINOBatchEngine, OpenVINOSequence
from paddle_llava.engines.openvino.inputs import Inputs


class OpenVINOEngine:
    """A sequence for each row; see `PaddleEngine` for the promises.

    The plug-in's paged attention takes prompts in parts at full speed, where attention over the graph's own state works
    through all that came before at a fraction of it. Padding is left out, so that a row costs what it holds.
    """

    def __init__(self, inputs: Inputs, decoder: CompiledModel) -> None:
        self.config = inputs.config
        self.encode_images = inputs.encode_images
        self._embed = inputs.embed
        self._many = OpenVINOBatchEngine(inputs, decoder)
        self.reset()

    @property
    def length(self) -> int:
        return self._valid.shape[1]

    def reset(self) -> None:
        """Forget everything; the next prefill may have another batch size."""
        self._rows: list[OpenVINOSequence] = []
        self._valid = np.zeros((0, 0), bool)  # [batch, positions], False where padding is, which a row's sequence lacks

    def prefill(self, inputs: Mapping[str, Any]) -> np.ndarray:
        """Run the tokens `inputs["input_ids"]` [batch, length] after those held; logits of the last position.

        Pictures come as `pixel_values` and `image_sizes`, or as `image_features`. `attention_mask` [batch, length]
        marks padding, which nobody looks at and which takes no position, at the left of what this prefill adds.
        """
        features = inputs.get("image_features")
        if features is None and inputs.get("pixel_values") is not None:
            features = self.encode_images(inputs["pixel_values"], inputs["image_sizes"])
        ids = np.asarray(inputs["input_ids"], dtype=np.int64)
        given = inputs.get("attention_mask")
        valid = np.ones(ids.shape, bool) if given is None else np.asarray(given).astype(bool)
        embeds = self._embed(ids, features or [])
        at_a_time = max(1, self._many.max_tokens // len(ids))
        logits = np.zeros((len(ids), self.config.text.vocab_size), np.float32)
        for start in range(0, ids.shape[1], at_a_time):
            part = slice(start, start + at_a_time)
            self._run(embeds[:, part], valid[:, part], logits)
        return logits

    def decode(self, token_ids: np.ndarray) -> np.ndarray:
        """Run one token a row, `token_ids` int64 [batch]; logits of what follows."""
        ids = np.asarray(token_ids, dtype=np.int64)[:, None]
        logits = np.zeros((len(ids), self.config.text.vocab_size), np.float32)
        self._run(self._embed(ids, []), np.ones(ids.shape, bool), logits)
        return logits

    def rewind(self, length: int) -> None:
        """Forget the positions from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind to {length}: the cache holds {self.length} positions")
        self._valid = self._valid[:, :length]
        if not length:
            self.reset()

    def take_rows(self, rows: Sequence[int]) -> None:
        """Row i of what is held becomes what row `rows[i]` was."""
        self._settle()
        self._rows = [self._many.fork(self._rows[row], self._rows[row].length) for row in rows]
        self._valid = self._valid[list(rows)]

    def _run(self, embeds: np.ndarray, valid: np.ndarray, logits: np.ndarray) -> None:
        """Add `embeds` [batch, length, hidden_size] where they are `valid`; the last ones' go to `logits`."""
        if not self.length:
            self._rows = [self._many.new_sequence() for _ in embeds]
            self._valid = np.zeros((len(embeds), 0), bool)
        self._settle()
        busy = np.flatnonzero(valid.any(axis=1))
        if len(busy):
            logits[busy] = self._many.run([self._rows[row] for row in busy], [embeds[row][valid[row]] for row in busy])
        self._valid = np.concatenate([self._valid, valid], axis=1)

    def _settle(self) -> None:
        """Let sequences be as long as their rows, which Ctrl-C or a rewinding may have left shorter."""
        for sequence, count in zip(self._rows, self._valid.sum(axis=1).tolist(), strict=True):
            sequence.rewind(count)
