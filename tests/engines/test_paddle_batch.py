"""Sequences side by side: what each says does not depend on who runs with it or what was known before; to the bit with
AVX-512, where a row of a product does not depend on how many there are, and to rounding with other kernels."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from paddle_llava import LlavaForConditionalGeneration
from paddle_llava.demo.model import write_untrained
from paddle_llava.engines.paddle import PaddleEngine
from paddle_llava.engines.paddle_batch import PaddleBatchEngine
from paddle_llava.environment import cpu_info
from paddle_llava.generation.batch import Work
from reference_cases import FIXTURES

NEW = 4
TO_THE_BIT = "avx512f" in cpu_info().get("flags", "").split()


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return np.array_equal(found, expected) if TO_THE_BIT else float(np.abs(found - expected).max()) < 1e-4


@pytest.fixture(scope="module", params=["v1_5", "demo", "street"])
def engine(
    request: pytest.FixtureRequest, demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> PaddleBatchEngine:
    """A few shapes: grouped-query attention, equal heads, an output head that is the embeddings."""
    folder = {"v1_5": FIXTURES / "v1_5", "demo": demo_checkpoint}.get(request.param)
    if folder is None:
        folder = tmp_path_factory.mktemp("street")
        write_untrained(folder)
    return PaddleBatchEngine(LlavaForConditionalGeneration.from_pretrained(folder))


@pytest.fixture(scope="module")
def prompts(engine: PaddleBatchEngine) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    lengths = [1, 2, 63, 64, 65, 130, *random.integers(3, 290, 4)]
    return [random.integers(3, 300, int(length)) for length in lengths]


def prefill(engine: PaddleBatchEngine, sequence: object, ids: np.ndarray, size: int = 128) -> np.ndarray:
    for start in range(0, len(ids), size):
        logits = engine.step([Work(sequence, ids[start : start + size])])
    return logits[0]


def go_on(engine: PaddleBatchEngine, sequence: object, logits: np.ndarray) -> np.ndarray:
    """The logits of `logits` and of the NEW - 1 likeliest tokens after it, [NEW, vocab_size]."""
    rows = [logits]
    while len(rows) < NEW:
        rows.append(engine.step([Work(sequence, np.array([rows[-1].argmax()]), (), True)])[0])
    return np.stack(rows)


@pytest.fixture(scope="module")
def alone(engine: PaddleBatchEngine, prompts: list[np.ndarray]) -> list[np.ndarray]:
    found = []
    for ids in prompts:
        sequence = engine.new_sequence()
        found.append(go_on(engine, sequence, prefill(engine, sequence, ids)))
    return found


def test_as_the_other_engine_says(
    engine: PaddleBatchEngine, prompts: list[np.ndarray], alone: list[np.ndarray]
) -> None:
    other = PaddleEngine(engine.network)
    for ids, rows in zip(prompts, alone, strict=True):
        other.reset()
        assert np.abs(other.prefill({"input_ids": ids[None]})[0] - rows[0]).max() < 1e-4
        for before, row in pairwise(rows):
            assert np.abs(other.decode(np.array([before.argmax()]))[0] - row).max() < 1e-4


def test_the_same_bits_together(engine: PaddleBatchEngine, prompts: list[np.ndarray], alone: list[np.ndarray]) -> None:
    """Each joins when the one before it has had its first token, in parts of odd sizes, and leaves when it is done."""
    sequences = [engine.new_sequence() for _ in prompts]
    rows: list[list[np.ndarray]] = [[] for _ in prompts]
    left = list(prompts)
    while any(len(row) < NEW for row in rows):
        going = [n for n, row in enumerate(rows) if 0 < len(row) < NEW]
        work = [Work(sequences[n], np.array([rows[n][-1].argmax()]), (), True) for n in going]
        joining = next((n for n, row in enumerate(rows) if not row), None)
        if joining is not None:
            part, left[joining] = left[joining][:101], left[joining][101:]
            work.append(Work(sequences[joining], part))
            going += [joining] if not len(left[joining]) else []
        for n, row in zip(going, engine.step(work), strict=False):
            rows[n].append(row)
    for found, expected in zip(rows, alone, strict=True):
        assert same(np.stack(found), expected)


@pytest.mark.parametrize("known", [1, 63, 64, 65])
def test_the_same_bits_with_a_known_beginning(
    engine: PaddleBatchEngine, prompts: list[np.ndarray], alone: list[np.ndarray], known: int
) -> None:
    """It was run before as part of something else, and is taken over as it is or as a copy."""
    for ids, expected in zip(prompts, alone, strict=True):
        if len(ids) <= known:
            continue
        earlier = engine.new_sequence()
        prefill(engine, earlier, np.append(ids[:known], [7, 8, 9]), 90)
        copy = engine.fork(earlier, known)
        earlier.rewind(known)
        for sequence in (copy, earlier):
            assert same(prefill(engine, sequence, ids[known:]), expected[0])


def test_a_copy_is_one(engine: PaddleBatchEngine, prompts: list[np.ndarray]) -> None:
    first = engine.new_sequence()
    prefill(engine, first, prompts[4])
    second = engine.fork(first, first.length)
    before = engine.step([Work(second, np.array([5]), (), True)])
    prefill(engine, first, prompts[4])
    second.rewind(second.length - 1)
    assert np.array_equal(engine.step([Work(second, np.array([5]), (), True)]), before)
    with pytest.raises(ValueError, match="cannot copy"):
        engine.fork(first, first.length + 1)


def test_pictures_in_parts(engine: PaddleBatchEngine) -> None:
    """A step may end within a picture."""
    config = engine.config
    size = config.vision.image_size
    pixels = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float32)
    (features,) = engine.encode_images(pixels, np.array([[size, size]]))
    image = np.full(len(features), config.image_token_id)
    ids = np.concatenate([[1, 5], image, [6, 7, 8]])
    whole = engine.step([Work(engine.new_sequence(), ids, [features])])
    sequence, cut = engine.new_sequence(), 12
    engine.step([Work(sequence, ids[:cut], [features[: cut - 2]])])
    assert same(engine.step([Work(sequence, ids[cut:], [features[cut - 2 :]])]), whole)


def test_a_step_that_fails_changes_nothing(engine: PaddleBatchEngine, prompts: list[np.ndarray]) -> None:
    sequence = engine.new_sequence()
    prefill(engine, sequence, prompts[2])
    with pytest.raises(Exception, match=r"(?i)expected|invalid|image"):
        engine.step([Work(sequence, np.array([5])), Work(engine.new_sequence(), np.array([10**6]))])
    assert sequence.length == len(prompts[2])
    fresh = engine.new_sequence()
    prefill(engine, fresh, prompts[2])
    one, other = (engine.step([Work(x, np.array([5]), (), True)]) for x in (sequence, fresh))
    assert np.array_equal(one, other)


def test_what_a_token_takes(engine: PaddleBatchEngine) -> None:
    sequence = engine.new_sequence()
    prefill(engine, sequence, np.arange(3, 13))
    held = sum(tensor.numel().item() * tensor.element_size() for tensor in [*sequence.keys, *sequence.values])
    assert held == engine.growth * engine.bytes_per_token
