"""Keys and values of the tokens that the decoder has seen."""

from __future__ import annotations

import paddle
from paddle import Tensor

CHUNK = 256


class KVCache:
    """One growing buffer a layer, [batch, kv_heads, capacity, head_dim]; the first `length` positions are in use.

    Buffers grow by `CHUNK` positions at a time and are handed out whole: the unused end is hidden by the causal mask,
    which is cheaper than copying the used part out of the buffer at every token. Where assigning into a buffer is
    not done on the device (custom devices such as NPU), the buffers are exactly as long as what is in use.
    """

    def __init__(self, num_layers: int) -> None:
        self.length = 0
        self.keys: list[Tensor | None] = [None] * num_layers
        self.values: list[Tensor | None] = [None] * num_layers
        self._capacity = 0
        self._in_place = paddle.get_device().split(":")[0] in ("cpu", "gpu")

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add [batch, kv_heads, new, head_dim] after the used positions; returns all keys and values to attend to."""
        self.keys[layer] = keys = self._extend(self.keys[layer], key)
        self.values[layer] = values = self._extend(self.values[layer], value)
        return keys, values

    def advance(self, count: int) -> None:
        """Mark `count` new positions as used, after every layer has appended them."""
        self.length += count

    def rewind(self, length: int) -> None:
        """Forget every position from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind to {length}: the cache holds {self.length} positions")
        self.length = length

    def take_rows(self, rows: list[int]) -> None:
        """Row i becomes what row `rows[i]` was."""
        index = paddle.to_tensor(rows)
        for buffers in (self.keys, self.values):
            buffers[:] = [None if buffer is None else paddle.gather(buffer, index) for buffer in buffers]

    def copy(self, length: int) -> KVCache:
        """A cache with the first `length` positions of this one."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot copy {length} positions: the cache holds {self.length}")
        other = KVCache(len(self.keys))
        for layer, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            if length and key is not None and value is not None:
                other.append(layer, key[:, :, :length], value[:, :, :length])
        other.advance(length)
        return other

    def capacity(self, new: int) -> int:
        """Number of key positions that `append` will return for `new` tokens."""
        needed = self.length + new
        if not self._in_place:
            return needed
        return self._capacity if needed <= self._capacity else -(-needed // CHUNK) * CHUNK

    def _extend(self, buffer: Tensor | None, new: Tensor) -> Tensor:
        start, end = self.length, self.length + new.shape[2]
        if not self._in_place:
            return new if buffer is None else paddle.concat([buffer[:, :, :start], new], axis=2)
        # The same for all layers, also after a run that was interrupted when only the first ones had grown.
        self._capacity = self.capacity(new.shape[2])
        if buffer is None or buffer.shape[2] < self._capacity:
            batch, kv_heads, _, head_dim = new.shape
            grown = paddle.zeros([batch, kv_heads, self._capacity, head_dim], dtype=new.dtype)
            if buffer is not None and start:
                grown[:, :, :start] = buffer[:, :, :start]
            buffer = grown
        buffer[:, :, start:end] = new
        return buffer
