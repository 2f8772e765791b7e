"""Several sequences in one batch, by OpenVINO; they join and leave between steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from openvino import CompiledModel, Model, Type
from openvino import opset13 as ops
from openvino._offline_transformations import paged_attention_transformation

from paddle_llava.engines.openvino.blocks import BLOCK, Blocks
from paddle_llava.engines.openvino.inputs import Inputs
from paddle_llava.engines.openvino.weights import parameter
from paddle_llava.generation.batch import Work


def for_many(decoder: Model) -> Model:
    """The graph `decoder` of `decoder.py`, made over for tokens of many sequences in one row.

    Keys and values are no state of it then but the caller's, in blocks (paged attention, arXiv:2309.06180, is one
    operation of the CPU plug-in); and `logits` are of the tokens that `wanted` names.
    """
    paged_attention_transformation(decoder)
    (result,) = decoder.get_results()
    head = result.input_value(0).get_node()
    while head.get_type_name() != "MatMul":
        head = head.input_value(0).get_node()
    wanted = parameter("wanted", [-1], Type.i64)
    head.input(0).replace_source_output(ops.gather(head.input_value(0), wanted, 0).output(0))
    decoder.add_parameters([wanted])
    decoder.validate_nodes_and_infer_types()
    return decoder


class OpenVINOSequence:
    """Its keys and values are in `blocks`, which sequences that begin alike have in common."""

    def __init__(self, pool: Blocks) -> None:
        self._pool = pool
        self.blocks: list[int] = []
        self.length = 0

    def __del__(self) -> None:
        self._pool.release(self.blocks)

    def rewind(self, length: int) -> None:
        """Forget the positions from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind to {length}: the sequence holds {self.length} positions")
        kept = -(-length // BLOCK)
        # In this order Ctrl-C leaves blocks that nobody has, and none that two have.
        gone, self.blocks, self.length = self.blocks[kept:], self.blocks[:kept], length
        self._pool.release(gone)

    def make_room(self, count: int) -> None:
        """Blocks for `count` further positions that are nobody else's."""
        first = self.length // BLOCK
        if first < len(self.blocks):
            self.blocks[first] = self._pool.own(self.blocks[first])
        while len(self.blocks) * BLOCK < self.length + count:
            self.blocks.append(self._pool.take())


class OpenVINOBatchEngine:
    """A `BatchEngine`; prompts and answers run in one step, each looking at its own blocks."""

    max_tokens = 512
    growth = BLOCK

    def __init__(self, inputs: Inputs, decoder: CompiledModel) -> None:
        self.config = inputs.config
        self.encode_images = inputs.encode_images
        self._embed = inputs.embed
        self._request = decoder.create_infer_request()
        self.blocks = Blocks(decoder, self._request)
        self.bytes_per_token = self.blocks.block_bytes // BLOCK
        self.step([Work(self.new_sequence(), np.zeros(1, np.int64))])  # the plug-in packs the decoder's matrices

    def new_sequence(self) -> OpenVINOSequence:
        return OpenVINOSequence(self.blocks)

    def fork(self, sequence: OpenVINOSequence, length: int) -> OpenVINOSequence:
        """The first `length` positions of `sequence`, which may go on meanwhile, as one of its own."""
        if not 0 <= length <= sequence.length:
            raise ValueError(f"cannot copy {length} positions: the sequence holds {sequence.length}")
        copy = self.new_sequence()
        copy.blocks = self.blocks.share(sequence.blocks[: -(-length // BLOCK)])
        copy.length = length
        return copy

    def step(self, work: Sequence[Work]) -> np.ndarray:
        features = [features for one in work for features in one.image_features]
        embeds = self._embed(np.concatenate([one.token_ids for one in work])[None], features)[0]
        ends = np.cumsum([len(one.token_ids) for one in work])
        return self.run([one.sequence for one in work], np.split(embeds, ends[:-1]))

    def run(self, sequences: Sequence[OpenVINOSequence], embeds: Sequence[np.ndarray]) -> np.ndarray:
        """Add to each of `sequences` its `embeds` [count, hidden_size]; logits of what follows each."""
        counts = [len(one) for one in embeds]
        for sequence, count in zip(sequences, counts, strict=True):
            sequence.make_room(count)
        past = np.array([sequence.length for sequence in sequences], np.int32)
        ends = np.cumsum(counts)
        logits: Any = self._request.infer(
            {
                "inputs_embeds": np.concatenate(embeds),
                "position_ids": np.concatenate([np.arange(p, p + n) for p, n in zip(past, counts, strict=True)]),
                "max_context_len": np.array(max(past + counts), np.int32),
                "past_lens": past,
                "subsequence_begins": np.append(0, ends).astype(np.int32),
                "block_indices": np.concatenate([sequence.blocks for sequence in sequences]).astype(np.int32),
                "block_indices_begins": np.cumsum([0, *(len(s.blocks) for s in sequences)]).astype(np.int32),
                "wanted": ends - 1,
            }
        )
        for sequence, count in zip(sequences, counts, strict=True):
            sequence.length += count
        return next(iter(logits.values()))[:, 0]
