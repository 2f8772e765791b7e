"""How many features a picture becomes, against `LlavaNextProcessor`'s own count."""

from __future__ import annotations

import random

import pytest
from pairs import SEED
from transformers import LlavaNextProcessor, PreTrainedTokenizerFast
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from vocabulary import build_tokenizer

from paddle_llava.config import ANYRES_PINPOINTS
from paddle_llava.geometry import image_layout
from reference_cases import PINPOINTS

pytestmark = pytest.mark.parity

GRIDS = {
    "published": (336, 14, ANYRES_PINPOINTS),
    "backwards": (336, 14, ANYRES_PINPOINTS[::-1]),
    "small": (56, 14, PINPOINTS),
    "many": (84, 7, tuple((84 * r, 84 * c) for r in range(1, 7) for c in range(1, 7) if r * c <= 6)),
}


def sizes(count: int) -> list[list[int]]:
    draw = random.Random(SEED)
    found = [[55, 176], [176, 55], [10, 513], [513, 10], [1, 1], [1, 100], [100, 1], [640, 480], [1080, 1920]]
    while len(found) < count:
        longest = draw.choice([20, 700, 4000])
        size = [draw.randint(1, longest), draw.randint(1, longest)]
        if draw.random() < 0.3:  # near the aspect ratios of the pinpoints, where the best one changes
            ratio = draw.choice([1, 2, 3, 0.5, 1 / 3])
            size[1] = max(1, round(size[0] * ratio) + draw.randint(-1, 1))
        found.append(size)
    return found


@pytest.mark.parametrize("name", GRIDS)
def test_feature_counts(name: str) -> None:
    tile, patch, pinpoints = GRIDS[name]
    images = LlavaNextImageProcessorPil(
        image_grid_pinpoints=[list(pinpoint) for pinpoint in pinpoints],
        size={"shortest_edge": tile},
        crop_size={"height": tile, "width": tile},
    )
    processor = LlavaNextProcessor(
        images,
        PreTrainedTokenizerFast(tokenizer_object=build_tokenizer()),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    asked = sizes(4000)
    expected = processor._get_num_multimodal_tokens(asked).num_image_tokens
    found = [image_layout((height, width), tile, patch, pinpoints).num_features for height, width in asked]
    different = [(size, a, b) for size, a, b in zip(asked, found, expected, strict=True) if a != b]
    assert not different, different[:5]
