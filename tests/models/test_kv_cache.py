from __future__ import annotations

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_llava.models.kv_cache import CHUNK, KVCache

LAYERS = 2


def new(count: int, start: int, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values [1, 3, count, 2] that tell where they belong."""
    key = np.zeros((1, 3, count, 2), np.float32)
    key[...] = layer * 10_000 + np.arange(start, start + count)[:, None]
    return key, -key


@settings(max_examples=60, deadline=None)
@given(
    st.booleans(),
    st.lists(st.one_of(st.integers(1, 400), st.integers(-300, 0), st.just(1)), min_size=1, max_size=12),
)
def test_what_was_appended_is_there(in_place: bool, steps: list[int]) -> None:
    """Positive steps append so many positions, others go back as far."""
    cache = KVCache(LAYERS)
    cache._in_place = in_place
    for step in steps:
        if step <= 0:
            cache.rewind(max(0, cache.length + step))
            continue
        start, end = cache.length, cache.length + step
        promised = cache.capacity(step)
        for layer in range(LAYERS):
            key, value = (paddle.to_tensor(array) for array in new(step, start, layer))
            keys, values = cache.append(layer, key, value)
            assert keys.shape == values.shape == [1, 3, promised, 2]
            expected, _ = new(end, 0, layer)
            assert np.array_equal(keys.numpy()[:, :, :end], expected)
            assert np.array_equal(values.numpy()[:, :, :end], -expected)
        cache.advance(step)
        assert cache.length == end
        assert promised % CHUNK == 0 or not in_place


def test_buffers_grow_by_chunks_and_stay() -> None:
    cache = KVCache(1)
    key, value = map(paddle.to_tensor, new(1, 0, 0))
    keys, _ = cache.append(0, key, value)
    cache.advance(1)
    again, _ = cache.append(0, key, value)
    assert again is keys
    assert keys.shape[2] == CHUNK
    assert cache.capacity(CHUNK - 1) == CHUNK
    assert cache.capacity(CHUNK) == 2 * CHUNK


def test_layers_stay_alike_after_an_interruption() -> None:
    """The first layer had grown for a long question when the run was stopped; then comes a short one."""
    cache = KVCache(LAYERS)
    for layer in range(LAYERS):
        cache.append(layer, *map(paddle.to_tensor, new(10, 0, layer)))
    cache.advance(10)
    cache.append(0, *map(paddle.to_tensor, new(CHUNK, 10, 0)))
    promised = cache.capacity(2)
    for layer in range(LAYERS):
        keys, values = cache.append(layer, *map(paddle.to_tensor, new(2, 10, layer)))
        assert keys.shape[2] == values.shape[2] == promised
        assert np.array_equal(keys.numpy()[:, :, :12], new(12, 0, layer)[0])


@pytest.mark.parametrize("length", [-1, 6])
def test_rewinding_beyond_what_is_held(length: int) -> None:
    cache = KVCache(1)
    cache.append(0, *map(paddle.to_tensor, new(5, 0, 0)))
    cache.advance(5)
    with pytest.raises(ValueError, match=f"rewind to {length}: the cache holds 5"):
        cache.rewind(length)
