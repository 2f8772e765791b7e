"""The batches of a mixture, window by window: which samples meet, and the arrays they become.

An epoch's order is cut into windows, and samples are sorted into batches within a window. So any batch can be made
from its epoch, window and number alone, by any process, which is what makes loading parallel, repeatable and
resumable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from paddle_llava.data.collate import Batch, PreparedSample, collate, prepare_sample
from paddle_llava.data.encoding import EncodedSample, encode_sample
from paddle_llava.data.mixture import Mixture
from paddle_llava.data.packing import Rows, modality_batches, packed_batches, plain_batches
from paddle_llava.data.records import FileChanged
from paddle_llava.errors import LlavaError
from paddle_llava.processing.processor import LlavaProcessor

T = TypeVar("T")
HEADER_READERS = 8


@dataclass(frozen=True)
class BatchSettings:
    """How samples become batches.

    `batch_size` counts sequences, each of at most `max_length` tokens. With `packing` (`mixtoken`) a sequence holds as
    many samples as fit; `group_by_modality_length` then has nothing to even out and is ignored. Samples are shuffled
    over the whole epoch unless `shuffle` is off, and sorted into sequences and batches within `window` of them.
    `on_bad_sample` says whether one that cannot be used raises, or is left out and reported. A batch of which none can
    be used is `replaced` by another of its window, so that every process of a training makes as many steps, or empty.
    """

    batch_size: int
    max_length: int
    seed: int = 0
    packing: bool = False
    group_by_modality_length: bool = False
    shuffle: bool = True
    on_bad_sample: Literal["error", "skip"] = "error"
    replaced: bool = True
    window: int = 1024


@dataclass(frozen=True)
class WindowPlan:
    """The batches of a window, their samples as places in the mixture, and why samples were left out."""

    batches: tuple[Rows, ...]
    skipped: tuple[str, ...] = ()


class BatchMaker:
    """Makes any batch of a mixture."""

    def __init__(self, mixture: Mixture, processor: LlavaProcessor, settings: BatchSettings) -> None:
        self.mixture = mixture
        self.processor = processor
        self.settings = settings
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    @property
    def num_windows(self) -> int:
        """Windows of an epoch."""
        return -(-self.mixture.epoch_samples // self.settings.window)

    def plan(self, epoch: int, window: int) -> WindowPlan:
        """What the batches of a window hold.

        For packing and grouping every sample is encoded to know its length. Raises `LlavaError` for one that cannot
        be, unless such are to be skipped. Then a window in which none can be used has no batches.
        """
        settings = self.settings
        places = self._epoch_order(epoch)[window * settings.window : (window + 1) * settings.window]
        if not settings.packing and not settings.group_by_modality_length:
            return self._plan_of(places, plain_batches(len(places), settings.batch_size), [])
        skipped: list[str] = []
        # Where lengths depend on the pictures' sizes, each sample waits for a disk or a server.
        with ThreadPoolExecutor(HEADER_READERS) as pool:
            wait_together = self.processor.config.image_grid_pinpoints is not None
            encoded = self._usable(self._encode, places, skipped, pool.map if wait_together else map)
        places = np.array([place for place, _ in encoded], np.int64)
        lengths = [len(sample) for _, sample in encoded]
        random = np.random.default_rng([settings.seed, epoch, window])
        if settings.packing:
            batches = packed_batches(lengths, settings.max_length, settings.batch_size, random)
        else:
            has_image = [bool(sample.images) for _, sample in encoded]
            batches = modality_batches(lengths, has_image, settings.batch_size, random)
        return self._plan_of(places, batches, skipped)

    def _plan_of(self, places: np.ndarray, batches: list[Rows], skipped: list[str]) -> WindowPlan:
        """`batches` of a window with their samples' places in the mixture.

        There are none when no sample can be used: every process of a training plans every window, so that all of them
        leave it out, and its last batches do not have to be replaced.
        """
        bad: list[str] = []
        skips = self.settings.on_bad_sample == "skip"
        if skips and not any(self._usable(self._prepare, [place], bad) for place in places):
            return WindowPlan((), (*skipped, *bad))
        placed = (tuple(tuple(int(places[sample]) for sample in row) for row in rows) for rows in batches)
        return WindowPlan(tuple(placed), tuple(skipped))

    def build(self, plan: WindowPlan, number: int) -> Batch:
        """Batch `number` of a window as `collate` makes it, and under `skipped` why samples of it were left out.

        If none of its samples can be used, the next batch that has any is made in its place, or if it is not to be
        `replaced`, one that has nothing else than that. Raises `LlavaError` when the window has none.
        """
        own: list[str] = []
        for offset in range(len(plan.batches)):
            skipped: list[str] = own if offset == 0 else []
            rows = plan.batches[(number + offset) % len(plan.batches)]
            prepared = [[sample for _, sample in self._usable(self._prepare, row, skipped)] for row in rows]
            if any(prepared):
                return collate([row for row in prepared if row], self.processor.padding_id) | {"skipped": own}
            if not self.settings.replaced:
                return {"num_targets": 0, "skipped": own}
        raise LlavaError(f"none of {len(plan.batches)} batches has a sample that can be used; {own[0]}")

    def _usable(
        self, make: Callable[[int], T], places: Iterable[int], skipped: list[str], run: Callable[..., Iterable] = map
    ) -> list[tuple[int, T]]:
        """Each place with what `make` makes of it; why it cannot is added to `skipped`, or raised."""

        def attempt(place: int) -> tuple[int, T] | LlavaError:
            try:
                return int(place), make(int(place))
            except FileChanged:
                raise
            except LlavaError as error:
                if self.settings.on_bad_sample == "error":
                    raise
                return error

        made = []
        for result in run(attempt, places):
            if isinstance(result, LlavaError):
                skipped.append(str(result))
            else:
                made.append(result)
        return made

    def _encode(self, place: int) -> EncodedSample:
        sample, template = self.mixture[place]
        return encode_sample(sample, self.processor, template, self.settings.max_length)

    def _prepare(self, place: int) -> PreparedSample:
        return prepare_sample(self._encode(place), self.processor)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            settings = self.settings
            self._order = epoch, self.mixture.epoch_order(settings.seed, epoch, shuffle=settings.shuffle)
        return self._order[1]
