"""The forward pass by OpenVINO, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from openvino import CompiledModel, InferRequest, Tensor

from paddle_llava.engines.openvino.inputs import Inputs

CHUNK = 512
"""Tokens of a prefill that run at a time: more are no faster, and attention's scores grow with them."""
COMPACT_FROM = 256
"""Forgotten slots of the cache that are worth a copy of the rest."""


class OpenVINOEngine:
    """Runs three compiled graphs over the cache that the decoder's graph keeps; see `PaddleEngine` for the promises.

    The cache grows at its end. What is rewound stays in it, hidden by the attention mask, until it is a third of the
    cache and `COMPACT_FROM` slots: taking it out copies all that stays.
    """

    def __init__(self, inputs: Inputs, decoder: CompiledModel) -> None:
        self.config = inputs.config
        self.encode_images = inputs.encode_images
        self._embed = inputs.embed
        self.decoder = decoder
        self._request: InferRequest = decoder.create_infer_request()
        self.reset()
        self.decode(np.zeros(1, np.int64))  # the plug-in packs the decoder's matrices when it first runs
        self.reset()

    @property
    def length(self) -> int:
        return len(self._slots)

    def reset(self) -> None:
        """Forget everything; the next prefill may have another batch size."""
        self._request.reset_state()
        self._slots = np.zeros(0, np.int64)  # of the positions held, where in the cache each is
        self._mask = np.zeros((1, 0), np.int64)  # [batch, slots], 0 where padding or something forgotten is
        self._broken_off = False  # whether Ctrl-C ended a change of the cache, which may have more slots than the mask

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
        mask = np.ones_like(ids) if given is None else np.asarray(given).astype(np.int64)
        embeds = self._embed(ids, features or [])
        for start in range(0, ids.shape[1], CHUNK):
            logits = self._run(embeds[:, start : start + CHUNK], mask[:, start : start + CHUNK])
        return logits

    def decode(self, token_ids: np.ndarray) -> np.ndarray:
        """Run one token a row, `token_ids` int64 [batch]; logits of what follows."""
        ids = np.asarray(token_ids, dtype=np.int64)[:, None]
        return self._run(self._embed(ids, []), np.ones_like(ids))

    def rewind(self, length: int) -> None:
        """Forget the positions from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind to {length}: the cache holds {self.length} positions")
        if length == 0:
            self.reset()
            return
        self._mask[:, self._slots[length:]] = 0
        self._slots = self._slots[:length]
        forgotten = self._mask.shape[1] - length
        if forgotten >= COMPACT_FROM and 3 * forgotten >= self._mask.shape[1]:
            self._compact()

    def take_rows(self, rows: Sequence[int]) -> None:
        """Row i of what is held becomes what row `rows[i]` was."""
        for state in self._request.query_state():
            state.state = Tensor(np.ascontiguousarray(state.state.data[list(rows)]))
        self._mask = self._mask[list(rows)]

    def _compact(self) -> None:
        # Broken off in its middle it leaves nothing that is of use.
        slots, self._slots, self._broken_off = self._slots, self._slots[:0], True
        for state in self._request.query_state():
            state.state = Tensor(np.ascontiguousarray(state.state.data[:, :, slots]))
        mask = np.ascontiguousarray(self._mask[:, slots])
        self._slots, self._mask, self._broken_off = np.arange(len(slots)), mask, False

    def _run(self, embeds: np.ndarray, mask: np.ndarray) -> np.ndarray:
        if self._broken_off:
            self._hide_the_unknown()
        batch, length, _ = embeds.shape
        before = self._mask if self._mask.shape[1] else np.zeros((batch, 0), np.int64)
        visible = np.concatenate([before, mask], axis=1)
        # Padding takes no position, and neither does what was rewound.
        positions = np.maximum(np.cumsum(visible, axis=1) - 1, 0)[:, -length:]
        inputs = {
            "inputs_embeds": np.ascontiguousarray(embeds),
            "attention_mask": visible,
            "position_ids": np.ascontiguousarray(positions),
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
        slots = np.append(self._slots, np.arange(before.shape[1], visible.shape[1]))
        self._broken_off = True  # Ctrl-C is heard when OpenVINO returns, and its cache has grown by then
        logits = _first(self._request.infer(inputs))[:, -1]
        self._slots, self._mask, self._broken_off = slots, visible, False
        return logits

    def _hide_the_unknown(self) -> None:
        if not self.length:
            self.reset()  # the next run may have another batch size
            return
        grown = self._request.query_state()[0].state.shape[2] - self._mask.shape[1]
        self._mask = np.pad(self._mask, [(0, 0), (0, grown)])
        self._broken_off = False


def _first(outputs: Mapping[Any, np.ndarray]) -> np.ndarray:
    return next(iter(outputs.values()))
