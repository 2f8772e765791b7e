from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from paddle_llava.errors import LlavaError
from paddle_llava.processing.boxes import (
    answer_boxes,
    box_iou,
    draw_boxes,
    find_boxes,
    format_box,
    from_padded_frame,
    in_picture,
    to_padded_frame,
)
from paddle_llava.processing.images import ImageProcessor, Mode

side = st.integers(1, 5000)
fraction = st.floats(0, 1, allow_nan=False)


@given(side, side, fraction, fraction, fraction, fraction)
def test_frames_round_trip(width: int, height: int, a: float, b: float, c: float, d: float) -> None:
    box = (min(a, c) * width, min(b, d) * height, max(a, c) * width, max(b, d) * height)
    padded = to_padded_frame(box, width, height)
    assert all(-1e-9 <= value <= 1 + 1e-9 for value in padded)
    assert from_padded_frame(padded, width, height) == pytest.approx(box, abs=1e-6)


@given(side, side)
def test_a_square_of_pixels_stays_a_square(width: int, height: int) -> None:
    x1, y1, x2, y2 = to_padded_frame((0, 0, 1, 1), width, height)
    assert x2 - x1 == pytest.approx(y2 - y1) == pytest.approx(1 / max(width, height))


@pytest.mark.parametrize("size", [(60, 40), (41, 60), (60, 41), (50, 50), (7, 60)])
def test_frame_is_where_the_processor_puts_the_picture(size: tuple[int, int]) -> None:
    """A white picture in the processor's padding: its edges in the tile are the frame's box of all of it."""
    side = max(size)
    processor = ImageProcessor(mode="pad", tile_size=side, shortest_edge=side, resample=0)
    pixels, _ = processor([Image.new("RGB", size, "white")])
    white = np.argwhere(pixels[0, 0] == pixels[0, 0].max())
    (top, left), (bottom, right) = white.min(0), white.max(0) + 1
    expected = tuple(value / side for value in (left, top, right, bottom))
    assert to_padded_frame((0, 0, *size), *size) == pytest.approx(expected)


def test_an_empty_picture_is_refused() -> None:
    with pytest.raises(LlavaError, match="0x5"):
        to_padded_frame((0, 0, 1, 1), 0, 5)


BUS = (0.23, 0.33, 0.79, 0.78)


@pytest.mark.parametrize(
    "text",
    [
        "0.23, 0.33, 0.79, 0.78",
        "0.23,0.33,0.79,0.78.",
        "[0.23, 0.33, 0.79, 0.78]",
        "The bus is at [.23, .33, .79, .78], on the left.",
        "<box>0.23 0.33 0.79 0.78</box>",
        "<box>[[230, 330, 790, 780]]</box>",
        "<|box_start|>(230,330),(790,780)<|box_end|>",
        "<ref>the bus</ref><box>(0.23, 0.33), (0.79, 0.78)</box>",
        "(0.23,0.33),(0.79,0.78)",
        "[23%, 33%, 79%, 78%]",
        "<box>(23.0%, 33%), (79%, 78%)</box>",
        "公交车在0.23，0.33，0.79，0.78。",
        "There is 1 bus: 0.23, 0.33, 0.79, 0.78",
    ],
)
def test_boxes_as_models_write_them(text: str) -> None:
    assert find_boxes(text) == [BUS]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "red bus",
        "0.23, 0.33, 0.79",
        "0.23, 0.33, 0.79, 0.78, 0.5",
        "there are 2, 3, 4 and 5",
        "2, 3, 4, 5",
        "10%, 20%, 30%, 40%",
        "[10%, 20%, 30%, 0.4]",
        "[10%, 20%, 30%, 140%]",
        "1, 0, 1, 1",
        "[0.79, 0.33, 0.23, 0.78]",
        "[230, 330, 790, 1780]",
        "0.23, 1.33, 0.79, 1.78",
        "-0.23, 0.33, 0.79, 0.78",
        "0.23, -0.33, 0.79, 0.78",
        "1.2.3.4",
        "0.1 and 0.2, 0.3, 0.4",
        "[" + "9" * 400 + ", 1, 2, 3]",
    ],
)
def test_what_is_no_box(text: str) -> None:
    assert find_boxes(text) == []


@given(side, side, st.data())
def test_what_is_written_of_a_picture_comes_back_to_it(width: int, height: int, data: st.DataObject) -> None:
    """A box of any picture, written as models write it and read again, is where it was but for the two decimals."""
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = (x1, y1, data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height)))
    found = answer_boxes(f"[{format_box(to_padded_frame(box, width, height))}]", width, height)
    rounding = 0.005 * max(width, height) + 1e-6
    thin = min(box[2] - x1, box[3] - y1) < rounding  # then the decimals may put it into the padding
    assert thin or len(found) == 1
    for each in found:
        assert each == pytest.approx(box, abs=rounding)
        assert 0 <= each[0] <= each[2] <= width
        assert 0 <= each[1] <= each[3] <= height


@given(side, side, fraction, fraction, fraction, fraction)
def test_frames_round_trip_from_the_answers_side(w: int, h: int, a: float, b: float, c: float, d: float) -> None:
    box = (min(a, c), min(b, d), max(a, c), max(b, d))
    assert to_padded_frame(from_padded_frame(box, w, h), w, h) == pytest.approx(box, abs=1e-9)


@pytest.mark.parametrize("size", [(300, 200), (160, 320), (200, 200)])
@pytest.mark.parametrize(("mode", "edge"), [("pad", 56), ("crop", 56), ("crop", 64), ("resize", 56), ("resize", 64)])
def test_a_frame_is_what_the_model_is_shown(mode: Mode, edge: int, size: tuple[int, int]) -> None:
    """Where a white block stands in the tile that the model sees, as fractions of it, leads back to the block."""
    width, height = size
    block = (width // 2 - 20, height // 2 - 30, width // 2 + 40, height // 2 + 30)
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), block)
    images = ImageProcessor(mode, tile_size=56, shortest_edge=edge, image_mean=(0, 0, 0), image_std=(1, 1, 1))
    (tile,) = images([image])[0]
    rows, columns = (np.flatnonzero(tile[0].max(axis=axis) > 0.5) for axis in (1, 0))
    seen = columns[0] / 56, rows[0] / 56, (columns[-1] + 1) / 56, (rows[-1] + 1) / 56
    pixel = max(size) / 56
    assert in_picture(seen, images.frame(width, height)) == pytest.approx(block, abs=pixel)
    assert answer_boxes(format_box(seen), width, height, images.frame(width, height)) == [
        pytest.approx(block, abs=pixel + 0.005 * max(size))
    ]


def test_a_box_of_the_padding_is_none_of_the_picture() -> None:
    assert answer_boxes("0.00, 0.00, 1.00, 0.20", 100, 40) == []
    assert answer_boxes("0.00, 0.00, 1.00, 0.50; 0.10, 0.40, 0.20, 0.60", 100, 40) == [
        pytest.approx((0, 0, 100, 20)),
        pytest.approx((10, 10, 20, 30)),
    ]


def test_several_boxes() -> None:
    other = (0.0, 0.1, 1.0, 0.5)
    assert find_boxes("a: 0.23, 0.33, 0.79, 0.78; b: 0, 0.1, 1, 0.5") == [BUS, other]
    assert find_boxes("[0.23, 0.33, 0.79, 0.78], [0.00, 0.10, 1.00, 0.50]") == [BUS, other]
    assert find_boxes("0.23, 0.33, 0.79, 0.78\n0.00, 0.10, 1.00, 0.50") == [BUS, other]
    assert find_boxes("(0.23,0.33),(0.79,0.78) (0,0.1),(1,0.5)") == [BUS, other]


@given(st.lists(fraction, min_size=4, max_size=4))
def test_what_is_written_is_found(values: list[float]) -> None:
    x1, x2, y1, y2 = *sorted(values[:2]), *sorted(values[2:])
    found = find_boxes(format_box((x1, y1, x2, y2)))
    assert found == [tuple(float(f"{value:.2f}") for value in (x1, y1, x2, y2))]


@given(st.text(alphabet="0123456789., ()[]<>box-\n，", max_size=80))
def test_any_text_is_read(text: str) -> None:
    assert all(0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1 for x1, y1, x2, y2 in find_boxes(text))


def test_a_long_text_is_read_quickly() -> None:
    assert find_boxes("1" * 200_000 + " " * 200_000 + "2, " * 50_000) == []


def test_iou() -> None:
    assert box_iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert box_iou(BUS, BUS) == pytest.approx(1)
    assert box_iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    assert box_iou((0, 0, 0, 1), (0, 0, 0, 1)) == 0


def test_drawn_boxes_frame_their_region_only() -> None:
    image = Image.new("RGB", (100, 80), "white")
    drawn = np.asarray(draw_boxes(image, [(20, 30, 60, 70)]))
    touched = np.argwhere((drawn != 255).any(2))
    assert touched.min(0).tolist() == [30, 20]
    assert touched.max(0).tolist() == [69, 59]
    assert (drawn[35:65, 25:55] == 255).all()
    assert np.asarray(image).min() == 255, "the given picture is left alone"


def test_boxes_beyond_the_picture_and_odd_labels_are_drawn() -> None:
    image = Image.new("L", (64, 48))
    drawn = draw_boxes(image, [(-50, -50, 500, 500), (70, 60, 90, 95)], ["red bus", "公交车"])
    assert drawn.size == (64, 48)
    assert drawn.mode == "RGB"
    assert len(drawn.getcolors() or ()) > 1
