"""OpenVINO's sequences side by side say what its engine says of each alone, to rounding."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")

from paddle_llava.engines.openvino.batch import OpenVINOBatchEngine
from paddle_llava.engines.openvino.engine import OpenVINOEngine
from paddle_llava.engines.openvino.export import Exported, export
from paddle_llava.engines.openvino.formats import Formats
from paddle_llava.engines.openvino.graphs import engine_in_memory
from paddle_llava.generation.batch import Work
from paddle_llava.pretrained import find_pretrained
from reference_cases import FIXTURES

NEW, ROUNDING = 5, 1e-4


@pytest.fixture(scope="module", params=["v1_5", "demo"])
def folder(request: pytest.FixtureRequest, demo_checkpoint: Path) -> Path:
    return demo_checkpoint if request.param == "demo" else FIXTURES / "v1_5"


@pytest.fixture(scope="module")
def single(folder: Path) -> OpenVINOEngine:
    pretrained = find_pretrained(folder)
    with pretrained.open_weights() as tensors:
        return engine_in_memory(OpenVINOEngine, pretrained.config, tensors, Formats("f32", 32))


@pytest.fixture(scope="module")
def batch(single: OpenVINOEngine, folder: Path) -> OpenVINOBatchEngine:
    pretrained = find_pretrained(folder)
    with pretrained.open_weights() as tensors:
        return engine_in_memory(OpenVINOBatchEngine, pretrained.config, tensors, Formats("f32", 32))


PROMPTS = [np.random.default_rng(length).integers(3, 250, length) for length in (1, 2, 30, 64, 70, 150)]
ANSWERS = [np.random.default_rng(length).integers(3, 250, NEW - 1) for length in range(len(PROMPTS))]


@pytest.fixture(scope="module")
def alone(single: OpenVINOEngine) -> list[np.ndarray]:
    """The logits after each prompt and after each token of what is said to be its answer."""
    found = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        single.reset()
        rows = [single.prefill({"input_ids": prompt[None]})[0]]
        rows += [single.decode(np.array([token]))[0] for token in answer]
        found.append(np.stack(rows))
    return found


def token(token_id: int) -> tuple[np.ndarray, tuple[()], bool]:
    return np.array([token_id]), (), True


def test_they_join_and_leave(batch: OpenVINOBatchEngine, alone: list[np.ndarray]) -> None:
    sequences = [batch.new_sequence() for _ in PROMPTS]
    rows: list[list[np.ndarray]] = [[] for _ in PROMPTS]
    while any(len(row) < NEW for row in rows):
        going = [n for n, row in enumerate(rows) if 0 < len(row) < NEW]
        work = [Work(sequences[n], *token(ANSWERS[n][len(rows[n]) - 1])) for n in going]
        joining = next((n for n, row in enumerate(rows) if not row), None)
        if joining is not None:
            work.append(Work(sequences[joining], PROMPTS[joining]))
            going.append(joining)
        for n, row in zip(going, batch.step(work), strict=True):
            rows[n].append(row)
    for found, expected in zip(rows, alone, strict=True):
        assert np.abs(np.stack(found) - expected).max() < ROUNDING


def test_in_parts_and_from_copies(batch: OpenVINOBatchEngine, alone: list[np.ndarray]) -> None:
    prompt, expected = PROMPTS[5], alone[5]
    first = batch.new_sequence()
    for start in range(0, 100, 40):
        batch.step([Work(first, prompt[start : start + 40])])
    copy = batch.fork(first, 90)
    first.rewind(60)
    assert (first.length, copy.length) == (60, 90)
    for sequence in (first, copy):
        assert np.abs(batch.step([Work(sequence, prompt[sequence.length :])])[0] - expected[0]).max() < ROUNDING
    with pytest.raises(ValueError, match="cannot copy"):
        batch.fork(copy, 1000)
    with pytest.raises(ValueError, match="cannot rewind"):
        copy.rewind(1000)


def test_a_copy_of_one_that_runs(batch: OpenVINOBatchEngine, alone: list[np.ndarray]) -> None:
    """And it can go on as a prompt itself, when its conversation does."""
    prompt, answer, expected = PROMPTS[3], ANSWERS[3], alone[3]
    one, other = batch.new_sequence(), batch.new_sequence()
    batch.step([Work(one, prompt), Work(other, PROMPTS[4])])
    batch.step([Work(one, *token(answer[0])), Work(other, *token(ANSWERS[4][0]))])
    copy = batch.fork(one, len(prompt) + 1)
    batch.step([Work(one, *token(answer[1])), Work(other, *token(ANSWERS[4][1]))])
    assert np.abs(batch.step([Work(copy, answer[1:2])])[0] - expected[2]).max() < ROUNDING
    batch.step([Work(other, *token(ANSWERS[4][2]))])  # the first leaves
    assert np.abs(batch.step([Work(one, answer[2:4])])[0] - expected[4]).max() < ROUNDING
    assert np.abs(batch.step([Work(other, *token(ANSWERS[4][3]))])[0] - alone[4][4]).max() < ROUNDING


def test_who_is_forgotten_is_gone(batch: OpenVINOBatchEngine, alone: list[np.ndarray]) -> None:
    before = batch.blocks.used
    sequences = [batch.new_sequence() for _ in range(3)]
    batch.step([Work(sequence, PROMPTS[n]) for n, sequence in enumerate(sequences)])
    batch.step([Work(sequence, *token(ANSWERS[n][0])) for n, sequence in enumerate(sequences)])
    del sequences[0]
    found = batch.step([Work(sequence, *token(ANSWERS[n + 1][1])) for n, sequence in enumerate(sequences)])
    for row, expected in zip(found, alone[1:3], strict=True):
        assert np.abs(row - expected[2]).max() < ROUNDING
    assert batch.blocks.used - before == 2
    sequences.clear()
    assert batch.blocks.used == before


def test_beginnings_in_common_are_held_once(batch: OpenVINOBatchEngine, alone: list[np.ndarray]) -> None:
    """And whoever goes on from one leaves it to the others as it was."""
    before, prompt = batch.blocks.used, PROMPTS[5]
    first = batch.new_sequence()
    batch.step([Work(first, prompt)])
    copies = [batch.fork(first, length) for length in (150, 149, 100)]
    assert batch.blocks.used - before == -(-len(prompt) // batch.growth)
    first.rewind(120)
    found = batch.step([Work(one, np.append(prompt[one.length :], ANSWERS[5][0])) for one in [first, *copies]])
    assert all(np.abs(row - alone[5][1]).max() < ROUNDING for row in found)


@pytest.mark.parametrize("weights", ["int4", "int8", "bf16", "f32"])
def test_in_each_number_format(weights: str, tmp_path: Path) -> None:
    """From the graphs in a folder, as large models are served; the figures say how far a format's keys may be off."""
    export(FIXTURES / "v1_5", tmp_path / "out", Formats(weights, 32))
    single, many = (Exported.read(tmp_path / "out").engine(kind) for kind in (OpenVINOEngine, OpenVINOBatchEngine))
    expected = single.prefill({"input_ids": PROMPTS[5][None]})[0]
    first = many.new_sequence()
    many.step([Work(first, PROMPTS[5][:100])])
    found = many.step([Work(many.fork(first, 90), PROMPTS[5][90:]), Work(many.new_sequence(), PROMPTS[5])])
    distance = np.abs(found - expected).max() / expected.std()
    assert distance < {"f32": 1e-4}.get(weights, 0.1), distance


def test_a_step_that_fails_changes_nothing(batch: OpenVINOBatchEngine, alone: list[np.ndarray]) -> None:
    one, image = batch.new_sequence(), batch.config.image_token_id
    batch.step([Work(one, PROMPTS[2])])
    batch.step([Work(one, *token(ANSWERS[2][0]))])
    with pytest.raises(ValueError, match="image tokens"):
        batch.step([Work(one, *token(ANSWERS[2][1])), Work(batch.new_sequence(), np.array([image]))])
    rows = [batch.step([Work(one, *token(answer))])[0] for answer in ANSWERS[2][1:]]
    assert all(np.abs(x - y).max() < ROUNDING for x, y in zip(rows, alone[2][2:], strict=True))


def test_pictures_in_parts(single: OpenVINOEngine, batch: OpenVINOBatchEngine) -> None:
    size = batch.config.vision.image_size
    pixels = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float32)
    (features,) = batch.encode_images(pixels, np.array([[size, size]]))
    ids = np.concatenate([[1, 5], np.full(len(features), batch.config.image_token_id), [6, 7]])
    single.reset()
    expected = single.prefill({"input_ids": ids[None], "image_features": [features]})[0]
    sequence = batch.new_sequence()
    for start, end in pairwise((0, 12, len(ids))):
        part = features[max(start - 2, 0) : end - 2]
        (found,) = batch.step([Work(sequence, ids[start:end], [part])])
    assert np.abs(found - expected).max() < ROUNDING
