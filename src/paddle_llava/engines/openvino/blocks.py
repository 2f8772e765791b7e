"""Memory for keys and values in blocks, which sequences take, share and give back."""

from __future__ import annotations

from collections.abc import Sequence

from openvino import CompiledModel, InferRequest, Tensor

BLOCK = 32
"""Positions of a block; the CPU plug-in's number."""
FEWEST = 16


class Blocks:
    """Blocks of all layers: number n stands for the nth of each layer's keys and values, which are `request`'s inputs.

    There are twice as many when they are used up; the system gives memory for those only that were written to.
    """

    def __init__(self, decoder: CompiledModel, request: InferRequest) -> None:
        self._request = request
        self._ports = {
            port.any_name: port for port in decoder.inputs if port.any_name.startswith(("key_cache.", "value_cache."))
        }
        self._caches = {name: self._empty(name, 0) for name in self._ports}
        self._users: list[int] = []
        self._free: list[int] = []
        self.block_bytes = sum(self._empty(name, 1).byte_size for name in self._ports)

    @property
    def used(self) -> int:
        """How many have a user."""
        return len(self._users) - len(self._free)

    def take(self) -> int:
        """A block with one user."""
        if not self._free:
            self._grow()
        block = self._free.pop()
        for cache in self._caches.values():
            cache.data[block] = 0  # fresh memory may hold NaN, which attention's weights of 0 do not cancel
        self._users[block] = 1
        return block

    def share(self, blocks: Sequence[int]) -> list[int]:
        """`blocks`, with one user more."""
        for block in blocks:
            self._users[block] += 1
        return list(blocks)

    def release(self, blocks: Sequence[int]) -> None:
        """`blocks`, with one user less."""
        for block in blocks:
            self._users[block] -= 1
            if not self._users[block]:
                self._free.append(block)

    def own(self, block: int) -> int:
        """`block` itself if it has one user, else a copy of it in its place."""
        if self._users[block] == 1:
            return block
        copy = self.take()
        for cache in self._caches.values():
            cache.data[copy] = cache.data[block]
        self.release([block])
        return copy

    def _empty(self, name: str, blocks: int) -> Tensor:
        port = self._ports[name]
        return Tensor(port.element_type, [blocks, *(size.get_length() for size in list(port.partial_shape)[1:])])

    def _grow(self) -> None:
        before = len(self._users)
        after = max(FEWEST, 2 * before)
        for name, cache in self._caches.items():
            grown = self._empty(name, after)
            grown.data[:before] = cache.data[:before]  # which has more where Ctrl-C broke off an earlier growth
            self._caches[name] = grown
            self._request.set_tensor(name, grown)
        self._users += [0] * (after - before)
        self._free += reversed(range(before, after))
