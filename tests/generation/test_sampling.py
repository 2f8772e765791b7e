"""Sampling against its definitions."""

import numpy as np
import pytest

from paddle_llava.errors import LlavaError
from paddle_llava.generation.sampling import Sampler, SamplingParams

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.06, 0.04], dtype=np.float32))
NOTHING = np.array([], dtype=np.int64)


def draw(count: int, **settings) -> np.ndarray:
    sampler = Sampler(SamplingParams(seed=1, **settings), NOTHING)
    return np.array([sampler.sample(LOGITS) for _ in range(count)])


def test_greedy_takes_the_largest():
    assert set(draw(5)) == {0}


def test_temperature_one_follows_the_probabilities():
    shares = np.bincount(draw(4000, temperature=1.0), minlength=5) / 4000
    np.testing.assert_allclose(shares, np.exp(LOGITS), atol=0.03)


def test_low_temperature_sharpens():
    shares = np.bincount(draw(4000, temperature=0.5), minlength=5) / 4000
    expected = np.exp(2 * LOGITS) / np.exp(2 * LOGITS).sum()
    np.testing.assert_allclose(shares, expected, atol=0.03)


def test_top_k_keeps_k():
    assert set(draw(500, temperature=2.0, top_k=2)) == {0, 1}


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, {0}), (0.74, {0, 1}), (0.76, {0, 1, 2}), (1.0, {0, 1, 2, 3, 4})])
def test_top_p_keeps_the_smallest_sufficient_set(top_p, kept):
    assert set(draw(800, temperature=1.0, top_p=top_p)) == kept


def test_the_same_seed_gives_the_same_tokens():
    assert draw(50, temperature=1.0).tolist() == draw(50, temperature=1.0).tolist()


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    logits = np.array([2.0, 1.5, -0.5, -1.0], dtype=np.float32)
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), np.array([0, -200, 2]))
    assert sampler.sample(logits) == 1  # 2.0 / 2 < 1.5
    assert sampler.sample(logits) == 0  # the drawn token 1 counts as seen too: 1.5 / 2 < 2.0 / 2
    np.testing.assert_array_equal(logits, np.array([2.0, 1.5, -0.5, -1.0], dtype=np.float32))


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-7])
def test_next_to_no_temperature_is_greedy(temperature):
    assert set(draw(5, temperature=temperature)) == {0}


@pytest.mark.parametrize("penalty", [1e-6, 1e9])
def test_penalties_at_their_bounds_can_be_drawn_with(penalty):
    seen = np.arange(3)
    sampler = Sampler(SamplingParams(seed=1, temperature=1e-6, repetition_penalty=penalty), seen)
    assert sampler.sample(np.array([0, 30, -30, -np.inf, 1], np.float32)) == (1 if penalty < 1 else 4)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"max_new_tokens": 0},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 1e-45},
        {"repetition_penalty": 1e300},
        {"seed": -3},
        {"stop": ("",)},
    ],
    ids=str,
)
def test_settings_out_of_bounds_are_named(settings):
    with pytest.raises(LlavaError, match=next(iter(settings))):
        SamplingParams(**settings)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_numbers_that_overflowed_are_told(temperature, odd):
    sampler = Sampler(SamplingParams(temperature=temperature), np.array([1]))
    with pytest.raises(LlavaError, match="overflowed; compute in bfloat16 or float32"):
        sampler.sample(np.array([0.0, odd, 1.0], np.float32))
