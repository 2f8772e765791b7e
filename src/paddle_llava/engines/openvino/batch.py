"""Several sequences in one batch, by OpenVINO; they join and leave between steps."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import ref

import numpy as np
from openvino import InferRequest, Tensor

from paddle_llava.engines.openvino.engine import OpenVINOEngine
from paddle_llava.generation.batch import Work

States = dict[str, np.ndarray]


class OpenVINOSequence:
    """Its keys and values are its own `states`, each [1, kv_heads, length, head_dim], or in a row of the batch."""

    def __init__(self) -> None:
        self.states: States | None = {}
        self.length = 0

    def rewind(self, length: int) -> None:
        """Forget the positions from `length` on; for a sequence that is in no batch."""
        if self.states is None or not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind to {length}: the sequence holds {self.length} positions")
        self.states = _beginning(self.states, length)
        self.length = length


class OpenVINOBatchEngine:
    """A `BatchEngine` over an `OpenVINOEngine`'s graphs.

    Prompts run one by one, in a request that takes over a sequence's states and gives them back. Answers run together,
    a token each, in another request, whose cache has a row a sequence: its slots fill from the left when somebody
    joins, and what a shorter row lacks is hidden by the mask. Who leaves is left out by `beam_idx`.
    """

    max_tokens = 512
    growth = 64

    def __init__(self, engine: OpenVINOEngine) -> None:
        self.config = engine.config
        text = engine.config.text
        self.bytes_per_token = 2 * 4 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
        self.encode_images = engine.encode_images
        self._embed = engine.embed
        self._prompts: InferRequest = engine.decoder.create_infer_request()
        self._answers: InferRequest = engine.decoder.create_infer_request()
        self._rows: list[ref[OpenVINOSequence]] = []
        self._mask = np.zeros((0, 0), np.int64)  # [rows, slots], 1 where a row holds something

    def new_sequence(self) -> OpenVINOSequence:
        return OpenVINOSequence()

    def fork(self, sequence: OpenVINOSequence, length: int) -> OpenVINOSequence:
        """A copy of the first `length` positions of `sequence`, which may go on meanwhile."""
        if not 0 <= length <= sequence.length:
            raise ValueError(f"cannot copy {length} positions: the sequence holds {sequence.length}")
        copy = OpenVINOSequence()
        states = self._states_of(sequence) if sequence.states is None else sequence.states
        copy.states, copy.length = _beginning(states, length), length
        return copy

    def step(self, work: Sequence[Work]) -> np.ndarray:
        logits = np.empty((len(work), self.config.text.vocab_size), np.float32)
        prompts = {number: one for number, one in enumerate(work) if not one.generated}
        answers = {number: one for number, one in enumerate(work) if one.generated}
        # Nothing is changed before everything has been run: a step that fails leaves all as they were.
        embeds = {number: self._embed(one.token_ids[None], list(one.image_features)) for number, one in prompts.items()}
        taken = {number: self._run_prompt(one.sequence, embeds[number]) for number, one in prompts.items()}
        if answers:
            logits[list(answers)] = self._run_answers(list(answers.values()))
        for number, (row, states) in taken.items():
            logits[number] = row
            work[number].sequence.states = states
            work[number].sequence.length += len(work[number].token_ids)
        return logits

    def _run_prompt(self, sequence: OpenVINOSequence, embeds: np.ndarray) -> tuple[np.ndarray, States]:
        """The logits after the last token, and the states then."""
        past, count = sequence.length, embeds.shape[1]
        self._take_out(sequence)
        _put(self._prompts, sequence.states)
        positions = np.arange(past, past + count)[None]
        logits = _run(self._prompts, embeds, np.ones((1, past + count), np.int64), positions, [0])
        return logits[0], {state.name: np.array(state.state.data) for state in self._prompts.query_state()}

    def _run_answers(self, work: Sequence[Work]) -> np.ndarray:
        sequences = [one.sequence for one in work]
        embeds = self._embed(np.stack([one.token_ids for one in work]), [])
        rows = self._rows_of(sequences)
        positions = np.array([[sequence.length] for sequence in sequences])
        mask = np.pad(self._mask[rows], [(0, 0), (0, 1)], constant_values=1)
        logits = _run(self._answers, embeds, mask, positions, rows)
        self._rows, self._mask = [ref(sequence) for sequence in sequences], mask
        for sequence in sequences:
            sequence.states = None
            sequence.length += 1
        return logits

    def _rows_of(self, sequences: list[OpenVINOSequence]) -> list[int]:
        """Where in the batch each of `sequences` is, all of them brought into it if any is not."""
        inside = [row() for row in self._rows]
        for sequence in inside:
            if sequence is not None and not any(sequence is other for other in sequences):
                self._take_out(sequence)
        places = {id(sequence): row for row, sequence in enumerate(inside)}
        if all(sequence.states is None for sequence in sequences):
            return [places[id(sequence)] for sequence in sequences]
        for sequence in sequences:
            self._take_out(sequence)
        lengths = [sequence.length for sequence in sequences]
        _put(self._answers, _stacked([sequence.states or {} for sequence in sequences], lengths))
        self._rows = [ref(sequence) for sequence in sequences]
        self._mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
        return list(range(len(sequences)))

    def _take_out(self, sequence: OpenVINOSequence) -> None:
        """Give `sequence` its states back, if they are in the batch."""
        if sequence.states is None:
            sequence.states = self._states_of(sequence)

    def _states_of(self, sequence: OpenVINOSequence) -> States:
        """A copy of what the batch holds of `sequence`."""
        row = next(number for number, other in enumerate(self._rows) if other() is sequence)
        slots = np.flatnonzero(self._mask[row])[: sequence.length]
        states = self._answers.query_state()
        return {state.name: np.ascontiguousarray(state.state.data[row : row + 1][:, :, slots]) for state in states}


def _run(
    request: InferRequest, embeds: np.ndarray, mask: np.ndarray, positions: np.ndarray, rows: list[int]
) -> np.ndarray:
    """The logits of the last position of each row."""
    inputs = {
        "inputs_embeds": np.ascontiguousarray(embeds),
        "attention_mask": np.ascontiguousarray(mask),
        "position_ids": np.ascontiguousarray(positions),
        "beam_idx": np.array(rows, np.int32),
    }
    return next(iter(request.infer(inputs).values()))[:, -1]


def _put(request: InferRequest, states: States | None) -> None:
    request.reset_state()
    if states:
        for state in request.query_state():
            state.state = Tensor(states[state.name])


def _beginning(states: States, length: int) -> States:
    return {name: np.ascontiguousarray(state[:, :, :length]) for name, state in states.items()} if length else {}


def _stacked(parts: list[States], lengths: list[int]) -> States:
    """One state of all rows, the shorter ones filled up with zeros."""
    stacked: States = {}
    for name, first in parts[0].items():
        _, heads, _, width = first.shape
        stacked[name] = np.zeros((len(parts), heads, max(lengths), width), first.dtype)
        for row, (part, length) in enumerate(zip(parts, lengths, strict=True)):
            stacked[name][row, :, :length] = part[name][0]
    return stacked
