"""Image features by size, against figures published or worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_llava.config import ANYRES_PINPOINTS
from paddle_llava.geometry import image_layout, select_best_resolution

SIDES = st.integers(1, 4000)


def layout(height: int, width: int):
    return image_layout((height, width), 336, 14, ANYRES_PINPOINTS)


@pytest.mark.parametrize(
    ("height", "width", "features"),
    [
        (480, 640, 2340),
        (336, 336, 1176),
        (1080, 1920, 1948),
        (672, 672, 576 + 48 * 49),
        (55, 176, 576 + 16 * 49),
    ],
)
def test_published_feature_counts(height, width, features):
    assert layout(height, width).num_features == features


def test_v1_5_is_one_tile_of_576_features_at_any_size():
    for size in [(1, 1), (10, 513), (3000, 2)]:
        one = image_layout(size, 336, 14)
        assert (one.tiles, one.num_features) == (1, 576)


def test_nothing_left_after_unpadding_keeps_the_base_view():
    assert layout(10, 513).rows == 0
    assert layout(10, 513).num_features == 576
    tall = layout(513, 10)
    assert (tall.columns, tall.num_features) == (0, 576 + tall.rows)


def test_flat_keeps_every_feature_of_every_tile():
    assert image_layout((480, 640), 336, 14, ANYRES_PINPOINTS, unpad=False).num_features == 5 * 576


def test_the_order_of_pinpoints_decides_between_equals():
    assert select_best_resolution((200, 300), ((336, 672), (672, 336))) == (336, 672)
    assert select_best_resolution((200, 300), ((672, 336), (336, 672))) == (672, 336)


@given(SIDES, SIDES)
def test_unpadding_equals_the_rounded_float_formula(height, width):
    """transformers: int(round(x, 7)); ours is exact integer division."""
    found = layout(height, width)
    rows, columns = found.grid[0] * 24, found.grid[1] * 24
    if width / height > columns / rows:
        padding = (rows - int(round(height * (columns / width), 7))) // 2
        expected = (rows - 2 * padding, columns)
    else:
        padding = (columns - int(round(width * (rows / height), 7))) // 2
        expected = (rows, columns - 2 * padding)
    assert (found.rows, found.columns) == expected
    assert found.num_features <= 2928


@given(SIDES, SIDES)
def test_the_chosen_pinpoint_keeps_the_most_pixels(height, width):
    def kept(target):
        scale = min(target[1] / width, target[0] / height)
        return min(math.floor(width * scale) * math.floor(height * scale), width * height)

    best = select_best_resolution((height, width), ANYRES_PINPOINTS)
    assert kept(best) == max(kept(pinpoint) for pinpoint in ANYRES_PINPOINTS)
