"""A rank's batches, made ahead by worker processes, in an order that does not depend on how many there are."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from itertools import count
from typing import NamedTuple

from paddle_llava.data.batches import BatchMaker, BatchSettings, WindowPlan
from paddle_llava.data.collate import Batch
from paddle_llava.data.mixture import Mixture
from paddle_llava.data.pool import runner
from paddle_llava.errors import LlavaError
from paddle_llava.processing.processor import LlavaProcessor

AHEAD_PER_WORKER = 2
"""Batches that may wait or be in work for each worker."""


class Position(NamedTuple):
    """The next batch, within its window and epoch, counted over all ranks. JSON keeps it as a list."""

    epoch: int = 0
    window: int = 0
    batch: int = 0


class _Share(NamedTuple):
    """A batch to make, its epoch, where to go on after it, why samples were refused since the one before, and whether
    it is the last of its epoch for its rank."""

    plan: WindowPlan
    number: int
    epoch: int
    after: Position
    skipped: list[str]
    ends_epoch: bool = False


class Batches:
    """The batches of one rank over `epochs` epochs (None: without end); each `iter` starts anew at `start`.

    Their order depends on mixture and settings alone: of every `world_size` in a row each rank takes one. All ranks
    get equally many; what is left at the end of an epoch, too few for all, is left out. A batch is what
    `BatchMaker.build` makes, with its `epoch`, whether it `ends_epoch`, and the `state` from which, given as `start`,
    exactly those batches follow that would have followed here, whatever the number of workers; of another `world_size`,
    too. On rank 0 `skipped` also names the samples that were refused while planning.

    `workers` processes work ahead (0: none do), on `ahead` batches, or a few for each of them if these are more. An
    iterator's `close`, or its end, ends them; so does the death of this process. Raises `LlavaError` for a bad sample,
    unless such are skipped; for a worker that died; and for an epoch without a batch for each rank.
    """

    def __init__(
        self,
        mixture: Mixture,
        processor: LlavaProcessor,
        settings: BatchSettings,
        *,
        epochs: int | None = 1,
        start: Iterable[int] = Position(),
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        ahead: int = 0,
    ) -> None:
        self.maker = BatchMaker(mixture, processor, settings)
        self.epochs = epochs
        self.start = Position(*start)
        self.rank = rank
        self.world_size = world_size
        self.workers = workers
        self.ahead = max(ahead, AHEAD_PER_WORKER * workers)

    def len_estimate(self) -> int:
        """How many batches an epoch has for this rank.

        Exact without packing, when no sample is skipped. With packing, the first window of the first epoch is planned,
        which takes about a second, and taken as the measure.
        """
        settings, samples = self.maker.settings, self.maker.mixture.epoch_samples
        if settings.packing:
            first = len(self.maker.plan(0, 0).batches)
            return round(first * max(1.0, samples / settings.window)) // self.world_size
        whole, rest = divmod(samples, settings.window)
        batches = whole * -(-settings.window // settings.batch_size) + -(-rest // settings.batch_size)
        return batches // self.world_size

    def __iter__(self) -> Generator[Batch, None, None]:
        shares: deque[_Share] = deque()
        with runner(self.maker, self.workers) as run:

            def tasks() -> Iterator[tuple[WindowPlan, int]]:
                for share in self._shares(run("plan", self._windows(), 1)):
                    shares.append(share)
                    yield share.plan, share.number

            for batch in run("build", tasks(), self.ahead):
                share = shares.popleft()
                skipped = [*share.skipped, *batch["skipped"]]
                place = {"epoch": share.epoch, "ends_epoch": share.ends_epoch, "state": share.after}
                yield batch | {"skipped": skipped, **place}

    def _windows(self) -> Iterator[tuple[int, int]]:
        """(epoch, window) from the start on."""
        if self.start.window >= self.maker.num_windows:
            raise LlavaError(f"there is no window {self.start.window} to go on from: is this the data of that run?")
        for epoch in count(self.start.epoch) if self.epochs is None else range(self.start.epoch, self.epochs):
            first = self.start.window if epoch == self.start.epoch else 0
            for window in range(first, self.maker.num_windows):
                yield epoch, window

    def _shares(self, plans: Iterator[WindowPlan]) -> Iterator[_Share]:
        """What this rank is to make. `plans` are those of `_windows`."""
        group: list[tuple[WindowPlan, int]] = []
        skipped: list[str] = []
        held: _Share | None = None  # until it is known whether the epoch ends with it
        has_any = self.start[1:] != (0, 0)
        for (epoch, window), plan in zip(self._windows(), plans, strict=True):
            first = self.start.batch if (epoch, window) == self.start[:2] else 0
            if self.rank == 0 and not first:
                skipped += plan.skipped
            for number in range(first, len(plan.batches)):
                group.append((plan, number))
                if len(group) == self.world_size:
                    if held:
                        yield held
                    held = _Share(*group[self.rank], epoch, self._after(epoch, window, number, plan), skipped)
                    group, skipped, has_any = [], [], True
            if window + 1 == self.maker.num_windows:
                if held:
                    yield held._replace(ends_epoch=True)
                    held = None
                if not has_any:
                    reason = f"; {skipped[0]}" if skipped else ""
                    raise LlavaError(f"the data has no batch for each of {self.world_size} processes{reason}")
                group, has_any = [], False

    def _after(self, epoch: int, window: int, number: int, plan: WindowPlan) -> Position:
        if number + 1 < len(plan.batches):
            return Position(epoch, window, number + 1)
        if window + 1 < self.maker.num_windows:
            return Position(epoch, window + 1)
        return Position(epoch + 1)
