"""Which samples share a sequence, and which sequences a batch. Everything here follows from lengths and a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Row = tuple[int, ...]
"""The samples of one sequence, as places in the list of lengths."""
Rows = tuple[Row, ...]
"""The sequences of one batch."""


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[Row]:
    """Every sample in exactly one row, no row longer than `capacity`: the longest first, each where it first fits.

    At most 11/9 of the fewest possible rows, and 6/9 of one (Dósa 2007); on lengths as LLaVA's mix has them, a few per
    cent of the tokens stay empty. No length may exceed `capacity`.
    """
    rows: list[list[int]] = []
    room = np.empty(len(lengths), np.int64)
    for sample in np.argsort(-np.asarray(lengths), kind="stable"):
        length = lengths[sample]
        fits = room[: len(rows)] >= length
        row = int(fits.argmax()) if fits.any() else len(rows)
        if row == len(rows):
            rows.append([])
            room[row] = capacity
        rows[row].append(int(sample))
        room[row] -= length
    return [tuple(row) for row in rows]


def packed_batches(lengths: Sequence[int], capacity: int, batch_size: int, random: np.random.Generator) -> list[Rows]:
    """Batches of packed rows, equally full ones together, in random order."""
    rows = first_fit_decreasing(lengths, capacity)
    rows.sort(key=lambda row: -sum(lengths[sample] for sample in row))
    return _shuffled([tuple(rows[at : at + batch_size]) for at in range(0, len(rows), batch_size)], random)


def modality_batches(
    lengths: Sequence[int], has_image: Sequence[bool], batch_size: int, random: np.random.Generator
) -> list[Rows]:
    """Batches of samples with pictures and batches of those without, similar lengths together, in random order.

    The shortest ones, too few for a batch of their kind, share one if they can: as few batches as there can be. Like
    `group_by_modality_length` of the original, which sorts within one batch of all devices.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    batches, left_over = [], []
    for kind in (True, False):
        samples = [int(sample) for sample in order if bool(has_image[sample]) == kind]
        whole = len(samples) // batch_size * batch_size
        batches += [samples[at : at + batch_size] for at in range(0, whole, batch_size)]
        left_over += [samples[whole:]]
    joined = left_over[0] + left_over[1]
    batches += [joined] if len(joined) <= batch_size else left_over
    return _shuffled([tuple((sample,) for sample in batch) for batch in batches if batch], random)


def plain_batches(num_samples: int, batch_size: int) -> list[Rows]:
    """Batches of single samples in the order they come."""
    rows = [(sample,) for sample in range(num_samples)]
    return [tuple(rows[at : at + batch_size]) for at in range(0, num_samples, batch_size)]


def _shuffled(batches: list[Rows], random: np.random.Generator) -> list[Rows]:
    return [batches[place] for place in random.permutation(len(batches))]
