from __future__ import annotations

import numpy as np
import paddle
import pytest
from formulas import attention as expected_attention

from paddle_llava.models.attention import MASKED, QUERY_BLOCK, attention, causal_mask, swap_heads

assert QUERY_BLOCK == 64  # the lengths below lie around it


def arrays(queries: int, keys: int, heads: int = 4, kv_heads: int = 2, batch: int = 2) -> list[np.ndarray]:
    random = np.random.default_rng(queries + keys)
    shapes = [(batch, heads, queries, 8), (batch, kv_heads, keys, 8), (batch, kv_heads, keys, 8)]
    return [random.standard_normal(shape, dtype=np.float32) * 2 for shape in shapes]


def causal(queries: int, keys: int, past: int, batch: int = 2) -> np.ndarray:
    visible = np.zeros((batch, queries, keys), bool)
    for query in range(queries):
        visible[:, query, : past + query + 1] = True
    return visible


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("queries", [1, 63, 64, 65, 200])
def test_every_key_is_seen_without_past(queries: int, heads: tuple[int, int]) -> None:
    query, key, value = arrays(queries, 70, *heads)
    output = attention(*map(paddle.to_tensor, (query, key, value))).numpy()
    expected = expected_attention(query, key, value, np.ones((2, queries, 70), bool))
    assert np.abs(output - expected).max() < 1e-5


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("queries", [1, 63, 64, 65, 200])
@pytest.mark.parametrize(("past", "unused"), [(0, 0), (1, 0), (70, 0), (70, 30)])
def test_causal(queries: int, past: int, unused: int, heads: tuple[int, int]) -> None:
    """`unused` keys follow, as at the end of a cache's buffer; nobody may look at them."""
    keys = past + queries + unused
    query, key, value = arrays(queries, keys, *heads)
    if unused:
        value[:, :, -unused:] = 1e6
    tensors = [paddle.to_tensor(array) for array in (query, key, value)]
    mask = causal_mask(queries, keys, past) if past else None
    output = attention(*tensors, mask, past=past).numpy()
    assert np.abs(output - expected_attention(query, key, value, causal(queries, keys, past))).max() < 1e-5
    again = attention(*tensors, causal_mask(queries, keys, past), past=past).numpy()
    assert np.abs(output - again).max() < 1e-5


@pytest.mark.parametrize("queries", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("past", [0, 5])
def test_padding_is_not_seen(queries: int, past: int) -> None:
    """Rows are padded on the left, one by more than a block."""
    keys = past + queries
    query, key, value = arrays(queries, keys)
    valid = np.ones((2, keys), bool)
    valid[0, : keys // 2] = False
    valid[1, :1] = keys == 1
    mask = causal_mask(queries, keys, past, paddle.to_tensor(valid))
    assert mask.shape == [2, 1, queries, keys]
    output = attention(*map(paddle.to_tensor, (query, key, value)), mask, past=past).numpy()
    visible = causal(queries, keys, past) & valid[:, None]
    some = visible.any(axis=-1)  # a padded query sees nobody, and nobody uses what comes of it
    expected = expected_attention(query, key, value, visible | ~some[..., None])
    difference = np.abs(output - expected).max(axis=(1, 3))
    assert difference[some].max() < 1e-5
    assert np.isfinite(output).all()


def test_the_mask_says_who_sees_whom() -> None:
    x = MASKED
    assert causal_mask(2, 5, 2).tolist() == [[0, 0, 0, x, x], [0, 0, 0, 0, x]]
    valid = paddle.to_tensor([[False, True, True], [True, True, True]])
    assert causal_mask(2, 3, 1, valid).tolist() == [[[[x, 0, x], [x, 0, 0]]], [[[0, 0, x], [0, 0, 0]]]]
    assert causal_mask(2, 3, 1).dtype == paddle.float32


@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (1, 1, 6, 2), (3, 4, 1, 2), (2, 1, 1, 8)])
def test_heads_change_places_with_tokens(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    factors = np.random.default_rng(1).standard_normal(array.transpose(0, 2, 1, 3).shape).astype(np.float32)
    x = paddle.to_tensor(array, stop_gradient=False)
    swapped = swap_heads(x)
    assert (swapped.numpy() == array.transpose(0, 2, 1, 3)).all()
    (swapped * paddle.to_tensor(factors)).sum().backward()
    assert (x.grad.numpy() == factors.transpose(0, 2, 1, 3)).all()
    assert (swap_heads(swapped).numpy() == array).all()
    assert (swap_heads(x.astype("float64")).numpy() == array.transpose(0, 2, 1, 3)).all()
