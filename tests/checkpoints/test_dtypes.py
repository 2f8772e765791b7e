from __future__ import annotations

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from paddle_llava.checkpoints.dtypes import FLOATS, to_dtype
from paddle_llava.errors import LlavaError

# Any bit pattern: subnormals, infinities, NaNs and ties included.
float32_bits = hnp.arrays(np.uint32, hnp.array_shapes(max_dims=3, max_side=8), elements=st.integers(0, 2**32 - 1))
bits16 = hnp.arrays(np.uint16, hnp.array_shapes(max_dims=3, max_side=8), elements=st.integers(0, 2**16 - 1))


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    """Equal bit for bit, except that a NaN need only be a NaN."""
    if found.dtype != expected.dtype:
        return False
    if found.dtype == np.uint16:
        found, expected = ((bits.astype(np.uint32) << 16).view(np.float32) for bits in (found, expected))
    signs = np.isnan(found) | (np.signbit(found) == np.signbit(expected))
    return np.array_equal(found, expected, equal_nan=True) and bool(signs.all())


@given(float32_bits)
def test_float32_to_bfloat16_rounds_as_paddle_does(bits: np.ndarray) -> None:
    values = bits.view(np.float32)
    expected = paddle.to_tensor(values).cast("bfloat16").numpy()
    assert same(to_dtype(values, "float32", "bfloat16"), expected)


@given(float32_bits)
def test_float32_to_float16_rounds_as_paddle_does(bits: np.ndarray) -> None:
    values = bits.view(np.float32)
    size = np.abs(values)
    # Paddle 3.3 makes the smallest subnormal of some values near 1e-25; zero, as torch has it, is nearer.
    values = np.where((size < 1e-20) | np.isfinite(size) & (size > 65504), np.float32(1), values)
    expected = paddle.to_tensor(values).cast("float16").numpy()
    assert same(to_dtype(values, "float32", "float16"), expected)


@given(bits16)
def test_bfloat16_survives_float32(bits: np.ndarray) -> None:
    wide = to_dtype(bits, "bfloat16", "float32")
    expected = paddle.to_tensor(bits.view(np.int16)).view("bfloat16").cast("float32").numpy()
    assert same(wide, expected)
    assert same(to_dtype(wide, "float32", "bfloat16"), bits)


@given(bits16)
def test_float16_survives_float32(bits: np.ndarray) -> None:
    halves = bits.view(np.float16)
    assert same(to_dtype(to_dtype(halves, "float16", "float32"), "float32", "float16"), halves)


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0x3F808000, 0x3F80),  # a tie goes to the even neighbour, here down
        (0x3F818000, 0x3F82),  # and here up
        (0x3F808001, 0x3F81),
        (0x7F7FFFFF, 0x7F80),  # the largest float32 rounds to infinity
        (0x80000000, 0x8000),
        (0x7F800001, 0x7FC0),  # a NaN whose upper bits alone would be infinity
        (0xFFFFFFFF, 0xFFFF),  # a NaN that rounding would carry away
    ],
)
def test_ties_and_ends(bits: int, expected: int) -> None:
    values = np.array([bits], np.uint32).view(np.float32)
    assert to_dtype(values, "float32", "bfloat16")[0] == expected


def test_pieces_join() -> None:
    """Longer than the pieces that it is done in, and not a multiple of them; not contiguous either."""
    values = np.arange(3_000_002, dtype=np.float32).reshape(2, -1).T
    half = to_dtype(values, "float32", "bfloat16")
    assert half.shape == values.shape
    assert same(half, paddle.to_tensor(np.ascontiguousarray(values)).cast("bfloat16").numpy())


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", FLOATS)
def test_a_transposed_view_is_turned(source: str, target: str) -> None:
    """Longer and wider than the strips that it is done in, and not a multiple of them."""
    values = np.random.default_rng(0).standard_normal((37, 5001), np.float32)
    stored = to_dtype(values, "float32", source)
    turned = to_dtype(stored.T, source, target)
    assert turned.flags.c_contiguous
    assert np.array_equal(turned, to_dtype(stored, source, target).T)


def test_every_float16_is_cast_as_numpy_does() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    assert same(to_dtype(halves, "float16", "float32"), halves.astype(np.float32))


def test_same_dtype_is_the_same_array() -> None:
    values = np.ones(3, np.float16)
    assert to_dtype(values, "float16", "float16") is values


@pytest.mark.parametrize("target", FLOATS)
def test_infinity_stays(target: str) -> None:
    values = np.array([np.inf, -np.inf], np.float32)
    back = to_dtype(to_dtype(values, "float32", target), target, "float32")
    assert np.array_equal(back, values)


def test_overflow_is_refused() -> None:
    with pytest.raises(LlavaError, match=r"lm_head.*do not fit float16"):
        to_dtype(np.array([1e5], np.float32), "float32", "float16", where="lm_head")


@pytest.mark.parametrize("pair", [("int8", "float32"), ("float32", "float8")])
def test_unknown_dtype(pair: tuple[str, str]) -> None:
    with pytest.raises(LlavaError, match="not supported"):
        to_dtype(np.ones(1, np.float32), *pair)
