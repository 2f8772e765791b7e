"""The shapes of the checkpoints that are compared.

Each run draws other weights and shapes; `PARITY_SEED=123 make parity` repeats those of a failed test, which names it.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddle_llava import LlavaForConditionalGeneration, LlavaProcessor

if TYPE_CHECKING:
    from reference import Reference

# The same in all processes of a run (pytest-xdist), which must find the same tests.
SEED = int(os.environ.get("PARITY_SEED") or random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID")).randrange(10**6))
TIED: dict[str, Any] = {"text": {"tie_word_embeddings": True}, "tie_word_embeddings": True}
BIASES: dict[str, Any] = {"text": {"attention_bias": True, "mlp_bias": True}}
SLOW_ROPE: dict[str, Any] = {
    "text": {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 20000.0}},
}
SHAPES: dict[str, dict[str, Any]] = {
    "v1.5, grouped heads": {"anyres": False},
    "v1.5, tied": {"anyres": False, **TIED},
    "v1.5, every head its own": {"anyres": False, "text": {"num_key_value_heads": 8}, "legacy_tokenizer": False},
    "v1.5, wide heads and biases": {"anyres": False, "text": {"head_dim": 12, **BIASES["text"]}},
    "v1.5, scaled rope": {"anyres": False, **SLOW_ROPE},
    "v1.5, class token": {"anyres": False, "vision_feature_select_strategy": "full", "preprocessing": "crop"},
    "v1.5, early layer": {"anyres": False, "vision_feature_layer": 1, "preprocessing": "resize"},
    "v1.5, last layer": {"anyres": False, "vision_feature_layer": -1, "vision": {"hidden_act": "gelu"}},
    "v1.5, projector without bias": {"anyres": False, "multimodal_projector_bias": False},
    "v1.6, grouped heads": {"anyres": True},
    "v1.6, tied, one key head": {"anyres": True, **TIED, "legacy_tokenizer": False}
    | {"text": {"num_key_value_heads": 1, **TIED["text"]}},
    "v1.6, biases and scaled rope": {"anyres": True, "text": {**BIASES["text"], **SLOW_ROPE["text"]}},
}


def random_shape(draw: random.Random) -> dict[str, Any]:
    heads = draw.choice([2, 4, 6, 8])
    patch, side = draw.choice([4, 7, 14]), draw.randint(2, 5)
    grids = [(rows, columns) for rows in (1, 2, 3) for columns in (1, 2, 3)]
    return {
        "anyres": draw.random() < 0.7,
        "legacy_tokenizer": draw.random() < 0.5,
        "preprocessing": draw.choice(["pad", "crop", "resize"]),
        "pinpoints": [(patch * side * r, patch * side * c) for r, c in draw.sample(grids, draw.randint(1, 6))],
        "vision_feature_layer": draw.choice([-3, -2, -1, 1, 2]),  # 0 fails in the reference
        "text": {
            "hidden_size": heads * draw.choice([6, 10, 16]),
            "intermediate_size": draw.randint(30, 200),
            "num_hidden_layers": draw.randint(1, 4),
            "num_attention_heads": heads,
            "num_key_value_heads": draw.choice([n for n in (1, 2, 3, 4, 6, 8) if heads % n == 0]),
            "head_dim": draw.choice([2, 6, 8, 16]),
            "rms_norm_eps": draw.choice([1e-6, 1e-5, 1e-2]),
            "attention_bias": draw.random() < 0.5,
            "max_position_embeddings": 4096,
        },
        "vision": {
            "hidden_size": 4 * draw.choice([5, 8, 12]),
            "intermediate_size": draw.randint(20, 100),
            "num_hidden_layers": draw.randint(2, 4),
            "num_attention_heads": draw.choice([1, 2, 4]),
            "image_size": patch * side,
            "patch_size": patch,
            "layer_norm_eps": draw.choice([1e-5, 1e-3]),
        },
    }


SHAPES |= {f"random {number}": random_shape(random.Random(SEED + number)) for number in range(3)}


@dataclass(frozen=True)
class Pair:
    """One checkpoint in `folder`, loaded by this package and by `transformers`."""

    folder: Path
    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    reference: Reference
