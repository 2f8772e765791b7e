"""Write fixtures/images.npz: what `transformers`' image processors make of synthetic pictures.

    python tests/processing/make_image_fixtures.py

Tiles are kept as the bytes before rescaling and normalising, which one picture of each mode keeps as floats.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FIXTURES = Path(__file__).parent / "fixtures" / "images.npz"
TILE = 14
PINPOINTS = ((14, 28), (28, 14), (28, 28), (42, 14), (14, 42))
SIZES = (
    (1, 1),
    (1, 40),
    (40, 1),
    (3, 2),
    (10, 51),
    (14, 14),
    (21, 20),
    (23, 64),
    (64, 23),
    (27, 48),
    (75, 100),
)
FLOAT_SIZE = (23, 64)
# Our settings of each case, beside the tile size.
CASES: dict[str, dict[str, Any]] = {
    "crop": {"mode": "crop", "shortest_edge": TILE},
    "crop_from_17": {"mode": "crop", "shortest_edge": 17},
    "pad": {"mode": "pad", "shortest_edge": TILE},
    "pad_other_mean": {
        "mode": "pad",
        "shortest_edge": TILE,
        "image_mean": (0.5, 0.25, 0.75),
        "image_std": (0.5, 1.0, 0.25),
    },
    "resize_bilinear": {"mode": "resize", "shortest_edge": TILE, "resample": 2},
    "anyres": {"mode": "anyres", "shortest_edge": TILE, "image_grid_pinpoints": PINPOINTS},
}


def picture(height: int, width: int) -> Image.Image:
    """Slopes in red and green, a fine checked pattern in blue.

    Its contrast stays below where bicubic overshoot is cut off at 0 or 255: Pillow resizes a row or a column
    first depending on its version, and only the cutting in between makes that visible.
    """
    y, x = np.mgrid[:height, :width]
    slopes = x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1)
    return Image.fromarray(np.stack([*slopes, 50 + (x // 5 + y // 3) % 2 * 150], -1).astype(np.uint8))


def reference(settings: dict[str, Any], image: Image.Image) -> np.ndarray:
    """float32 [tiles, 3, side, side]: `image` by the `transformers` processor that `settings` describe."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    classes = {
        "CLIPImageProcessor": CLIPImageProcessorPil,
        "LlavaImageProcessor": LlavaImageProcessorPil,
        "LlavaNextImageProcessor": LlavaNextImageProcessorPil,
    }
    settings = dict(settings)
    processor = classes[settings.pop("image_processor_type")](**settings)
    pixels = np.array(processor([image])["pixel_values"])
    return pixels[0] if pixels.ndim == 5 else pixels


def main() -> None:
    common = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_center_crop": True}
    arrays = {}
    for name, case in CASES.items():
        edge, mode = case["shortest_edge"], case["mode"]
        kinds = {"pad": "LlavaImageProcessor", "anyres": "LlavaNextImageProcessor"}
        settings = {
            **common,
            "image_processor_type": kinds.get(mode, "CLIPImageProcessor"),
            "size": {"height": edge, "width": edge} if mode == "resize" else {"shortest_edge": edge},
            "crop_size": {"height": TILE, "width": TILE},
            "resample": case.get("resample", 3),
            "image_mean": list(case.get("image_mean", (0.48145466, 0.4578275, 0.40821073))),
            "image_std": list(case.get("image_std", (0.26862954, 0.26130258, 0.27577711))),
        }
        if mode == "pad":
            settings["do_pad"] = True
        if mode == "anyres":
            settings["image_grid_pinpoints"] = [list(pinpoint) for pinpoint in PINPOINTS]
        mean = np.array(settings["image_mean"])[:, None, None]
        std = np.array(settings["image_std"])[:, None, None]
        for height, width in SIZES:
            pixels = reference(settings, picture(height, width))
            arrays[f"{name}/{height}x{width}"] = np.rint((pixels * std + mean) * 255).astype(np.uint8)
            if (height, width) == FLOAT_SIZE:
                arrays[f"{name}/float"] = pixels
    np.savez_compressed(FIXTURES, **arrays)
    print(f"{len(arrays)} arrays, {FIXTURES.stat().st_size} bytes")


if __name__ == "__main__":
    main()
