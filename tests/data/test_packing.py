from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_llava.data.packing import first_fit_decreasing, modality_batches, packed_batches, plain_batches

CAPACITY = 100
lengths = st.lists(st.integers(1, CAPACITY), max_size=60)


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


@given(lengths)
@settings(max_examples=200, deadline=None)
def test_no_sample_is_lost_or_split_and_no_row_too_long(some: list[int]) -> None:
    rows = first_fit_decreasing(some, CAPACITY)
    assert sorted(sample for row in rows for sample in row) == list(range(len(some)))
    sums = [sum(some[sample] for sample in row) for row in rows]
    assert all(total <= CAPACITY for total in sums)
    for first in range(len(rows)):  # nothing in a later row would have fitted into an earlier one
        for later in rows[first + 1 :]:
            assert all(sums[first] + some[sample] > CAPACITY for sample in later)


@given(some=lengths, batch_size=st.integers(1, 7))
@settings(max_examples=50, deadline=None)
def test_packed_batches_hold_each_row_once(some: list[int], batch_size: int) -> None:
    batches = packed_batches(some, CAPACITY, batch_size, generator())
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == sorted(first_fit_decreasing(some, CAPACITY))
    assert len(batches) == -(-len(rows) // batch_size)
    assert all(len(batch) <= batch_size for batch in batches)


@given(some=st.lists(st.tuples(st.integers(1, CAPACITY), st.booleans()), max_size=60), batch_size=st.integers(1, 7))
@settings(max_examples=100, deadline=None)
def test_modalities_keep_apart(some: list[tuple[int, bool]], batch_size: int) -> None:
    sizes, has_image = [length for length, _ in some], [image for _, image in some]
    batches = modality_batches(sizes, has_image, batch_size, generator())
    assert sorted(sample for batch in batches for (sample,) in batch) == list(range(len(some)))
    assert len(batches) == -(-len(some) // batch_size)
    mixed = [batch for batch in batches if len({has_image[sample] for (sample,) in batch}) == 2]
    assert len(mixed) <= 1
    for kind in (True, False):  # the batches of a kind are stretches of its lengths in order
        spans = [[sizes[s] for (s,) in batch] for batch in batches if {has_image[s] for (s,) in batch} == {kind}]
        spans.sort(key=lambda span: (-max(span), -min(span)))
        assert all(min(left) >= max(right) for left, right in pairwise(spans))


def test_plain_batches_keep_the_order() -> None:
    assert plain_batches(5, 2) == [((0,), (1,)), ((2,), (3,)), ((4,),)]


def llava_mix(rng: np.random.Generator, features: int, max_length: int, samples: int = 1024) -> list[int]:
    """Lengths like those of LLaVA's mix of 665K: short answers about pictures, dialogues about them, text alone."""
    kind = rng.choice(3, samples, p=[0.45, 0.45, 0.10])
    text = np.where(kind == 0, rng.lognormal(4.4, 0.5, samples), rng.lognormal(5.7, 0.7, samples))
    return np.minimum(text + np.where(kind < 2, features, 0) + 45, max_length).astype(int).tolist()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("features", "max_length"), [(576, 2048), (576, 4096), (0, 2048)])
def test_less_than_a_twentieth_is_padding(seed: int, features: int, max_length: int) -> None:
    some = llava_mix(np.random.default_rng(seed), features, max_length)
    for batch_size in (1, 4, 16):
        batches = packed_batches(some, max_length, batch_size, generator())
        rows = [[sum(some[sample] for sample in row) for row in batch] for batch in batches]
        padded = sum(len(batch) * max(batch) for batch in rows)
        assert 1 - sum(some) / padded < 0.05
    alone = sum(max(some[at : at + 16]) * len(some[at : at + 16]) for at in range(0, len(some), 16))
    assert 1 - sum(some) / alone > 0.2  # which is what packing is for
