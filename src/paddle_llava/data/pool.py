"""Calls made ahead in worker processes, their results in the order of the calls."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Any

from paddle_llava.errors import LlavaError

Run = Callable[[str, Iterable[tuple[Any, ...]], int], Iterator[Any]]

_target: Any = None
"""In a worker process: the object whose methods it calls."""


@contextmanager
def runner(target: Any, workers: int) -> Iterator[Run]:
    """Gives `run(method, tasks, ahead)`, an iterator of `target.method(*task)` for each of `tasks`, in order.

    With `workers` processes, up to `ahead` further calls are begun before a result is waited for; with none, each is
    made here when its result is asked for. `target` is pickled into each worker once. Its errors are raised here, and
    `LlavaError` when a worker dies. The workers end with the block, and also when this process is killed.
    """
    if not workers:
        yield lambda method, tasks, _: (getattr(target, method)(*task) for task in tasks)
        return
    # Not by fork: this process has threads, and perhaps a device.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start, (target,))

    def run(method: str, tasks: Iterable[tuple[Any, ...]], ahead: int) -> Iterator[Any]:
        begun: deque[Future[Any]] = deque()
        source, error = iter(tasks), None
        while error is None:
            try:
                begun.append(pool.submit(_call, method, next(source)))
            except (StopIteration, LlavaError) as found:  # raised when its turn comes, as without workers
                error = found
            while begun and (error or len(begun) > ahead):
                yield begun.popleft().result()
        if isinstance(error, LlavaError):
            raise error

    try:
        yield run
    except BrokenProcessPool:
        raise LlavaError(
            "a process that prepares data has died, most often because memory ran out; "
            "use fewer of them (dataloader_num_workers), or smaller batches"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(target: Any) -> None:
    global _target
    _target = target
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent ends no pool; its workers would wait for calls for ever."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _call(method: str, task: tuple[Any, ...]) -> Any:
    return getattr(_target, method)(*task)
