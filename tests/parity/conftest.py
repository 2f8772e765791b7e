"""Fresh checkpoints of many shapes, written by `transformers` and loaded by both sides.

The reference is imported only when it is asked for: `make test` needs neither torch nor transformers.
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from pairs import SEED, SHAPES, Pair

from paddle_llava import LlavaForConditionalGeneration, LlavaProcessor


@pytest.fixture(scope="session", params=SHAPES, ids=[f"{name}, PARITY_SEED={SEED}" for name in SHAPES])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    from reference import Reference, write_checkpoint

    folder = tmp_path_factory.mktemp("reference")
    write_checkpoint(folder, seed=SEED, **SHAPES[request.param])
    model, processor = LlavaForConditionalGeneration.from_pretrained(folder), LlavaProcessor.from_pretrained(folder)
    return Pair(folder, model, processor, Reference(folder))


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    without = config.option.markexpr == "not parity" or find_spec("torch") is None
    return True if without else None
