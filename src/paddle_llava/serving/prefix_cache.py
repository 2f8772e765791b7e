"""Keys and values of earlier requests, for those that begin alike: the next turn of a conversation, or another question
about the same picture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from paddle_llava.generation.batch import BatchEngine

# Copying fewer positions is not worth its while.
FEWEST_COPIED = 8


class Held(NamedTuple):
    """A sequence and what it holds: `keys` int64, at least `sequence.length` of them (see `prompt.Prompt`)."""

    sequence: Any
    keys: np.ndarray


class PrefixCache:
    """Sequences that nobody runs any more, the least recently used thrown away first.

    What runs reserves its memory here too, so that both together stay under `max_bytes`.
    """

    def __init__(self, engine: BatchEngine, max_bytes: int) -> None:
        self._engine = engine
        self._max_bytes = max_bytes
        self._kept: list[Held] = []  # the most recently used last
        self.reserved_bytes = 0

    @property
    def kept_bytes(self) -> int:
        return sum(self.size(held.sequence.length) for held in self._kept)

    def size(self, tokens: int) -> int:
        """Bytes of a sequence of so many tokens."""
        return -(-tokens // self._engine.growth) * self._engine.growth * self._engine.bytes_per_token

    def reserve(self, tokens: int, keys: np.ndarray) -> bool:
        """Memory for a sequence of `tokens`; False when what runs leaves too little.

        What is kept makes room, last of all what the sequence of `keys` would go on from.
        """
        if self.reserved_bytes + self.size(tokens) > self._max_bytes:
            return False
        self.reserved_bytes += self.size(tokens)
        best, _ = _longest(self._kept, keys)
        if best is not None:
            self._touch(best)
        self._make_room()
        return True

    def release(self, tokens: int) -> None:
        """Give back what `reserve` took."""
        self.reserved_bytes -= self.size(tokens)

    def begin(self, keys: np.ndarray, running: Iterable[Held]) -> Any:
        """A sequence for `keys` that holds as many of them as are known, all but the last at most.

        They are taken from what is kept or, as a copy, from what is `running`.
        """
        best, common = _longest([*self._kept, *running], keys)
        common = min(common, len(keys) - 1)
        if best is not None and common == best.sequence.length and any(held is best for held in self._kept):
            self._kept = [held for held in self._kept if held is not best]
            return best.sequence
        if best is None or common < FEWEST_COPIED:
            return self._engine.new_sequence()
        self._touch(best)
        return self._engine.fork(best.sequence, common)

    def keep(self, held: Held) -> None:
        """For later requests; its reservation must have been released."""
        length = held.sequence.length
        if length and self.size(length) + self.reserved_bytes <= self._max_bytes:
            self._kept.append(Held(held.sequence, held.keys[:length].copy()))
            self._make_room()

    def clear(self) -> None:
        self._kept.clear()

    def _touch(self, held: Held) -> None:
        if any(other is held for other in self._kept):
            self._kept = [*(other for other in self._kept if other is not held), held]

    def _make_room(self) -> None:
        while self._kept and self.reserved_bytes + self.kept_bytes > self._max_bytes:
            self._kept.pop(0)


def _longest(candidates: Iterable[Held], keys: np.ndarray) -> tuple[Held | None, int]:
    """The one that begins most like `keys`, and how many positions are the same."""
    best, longest = None, 0
    for held in candidates:
        count = min(held.sequence.length, len(keys))
        if count <= longest or held.keys[longest] != keys[longest]:
            continue  # at most as good as the best; all begin with the same words
        differing = held.keys[:count] != keys[:count]
        common = int(differing.argmax()) if differing.any() else count
        if common > longest:
            best, longest = held, common
    return best, longest
