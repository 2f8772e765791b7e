"""Tiles and settings compared live with `transformers`' Pillow processors: equal bit for bit."""

from __future__ import annotations

import json
import random
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from paddle_llava.config import ANYRES_PINPOINTS, LlavaConfig, TextConfig, VisionConfig
from paddle_llava.geometry import select_best_resolution
from paddle_llava.processing.images import ImageProcessor, fitted_size

pytestmark = pytest.mark.parity

reference = runpy.run_path(str(Path(__file__).with_name("make_image_fixtures.py")))["reference"]
SMALL_PINPOINTS = tuple((height // 12, width // 12) for height, width in ANYRES_PINPOINTS)
PROCESSORS = [
    ImageProcessor("crop"),
    ImageProcessor("crop", shortest_edge=384, resample=2),
    ImageProcessor("pad"),
    ImageProcessor("pad", image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.3, 0.4)),
    ImageProcessor("resize"),
    ImageProcessor("anyres", image_grid_pinpoints=ANYRES_PINPOINTS),
]
SIZES = [
    (55, 176),
    (176, 55),
    (336, 336),
    (640, 480),
    (480, 640),
    (1080, 1920),
    (1, 100),
    (100, 1),
    (10, 513),
]
SIZES += [(200, 300), (335, 337), (1, 1)]


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def options(processor: ImageProcessor) -> dict[str, Any]:
    raw = processor.to_dict()
    del raw["processor_class"]
    return raw


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda p: f"{p.mode}{p.resample}")
def test_pixels_are_equal(processor: ImageProcessor, size: tuple[int, int]) -> None:
    image = noise(*size)
    assert np.array_equal(processor([image])[0], reference(options(processor), image))


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["crop", "pad", "resize", "anyres"]),
    st.integers(1, 160),
    st.integers(1, 160),
    st.sampled_from([0, 1, 2, 3, 4, 5]),
    st.integers(0, 99),
)
def test_pixels_are_equal_at_any_size(mode: Any, height: int, width: int, resample: int, seed: int) -> None:
    pinpoints = SMALL_PINPOINTS if mode == "anyres" else ()
    processor = ImageProcessor(mode, 28, 28, pinpoints, resample=resample)
    image = noise(height, width, seed)
    assert np.array_equal(processor([image])[0], reference(options(processor), image))


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "L", "1", "CMYK"])
def test_modes_convert_alike(kind: str) -> None:
    image = noise(40, 50).convert("RGBA")
    image.putalpha(noise(40, 50, 1).convert("L"))
    image = image.convert("RGB").convert(kind) if kind == "P" else image.convert(kind)
    processor = ImageProcessor("resize", 28, 28)
    assert np.array_equal(processor([image])[0], reference(options(processor), image))


def test_sizes_are_those_of_the_reference() -> None:
    from transformers import image_processing_utils as hf

    rng = random.Random(1)
    grids = [list(map(list, pinpoints)) for pinpoints in (ANYRES_PINPOINTS, ANYRES_PINPOINTS[::-1])]
    for _ in range(20_000):
        size = rng.randint(1, 3000), rng.randint(1, 3000)
        if rng.random() < 0.2:  # around the pinpoints' own sizes and aspect ratios, where ties are
            size = tuple(max(1, side // rng.choice([1, 2, 3]) + rng.randint(-1, 1)) for side in (672, 1008))
        for grid in grids:
            target = hf.select_best_resolution(size, grid)
            assert select_best_resolution(size, tuple(map(tuple, grid))) == target, size
            shape = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (3, *size), (0, 0, 0))
            assert fitted_size(size, target) == hf.get_patch_output_size(shape, target, "channels_first"), size


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda p: f"{p.mode}{p.resample}")
def test_transformers_reads_what_is_written_and_back(processor: ImageProcessor, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor.to_dict()))
    theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    image = noise(123, 77)
    pixels = np.array(theirs([image])["pixel_values"])
    assert np.array_equal(processor([image])[0], pixels[0] if pixels.ndim == 5 else pixels)

    theirs.save_pretrained(tmp_path / "again")
    raw = json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())
    anyres = processor.mode == "anyres"
    config = LlavaConfig(
        VisionConfig(image_size=336, patch_size=14),
        TextConfig(),
        image_aspect_ratio="anyres" if anyres else None,
        image_grid_pinpoints=ANYRES_PINPOINTS if anyres else None,
    )
    assert ImageProcessor.from_config(config, raw) == processor
