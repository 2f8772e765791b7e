"""Trainings in processes of their own, side by side: what they tell comes through pipes and is shown by who waits."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from paddle_llava.console import progress_bars
from paddle_llava.demo.loop import Say
from paddle_llava.environment import threads_of_children
from paddle_llava.errors import LlavaError


class Telling:
    """A child's end of a pipe: what it says, and how far it is."""

    def __init__(self, name: str, pipe: Connection) -> None:
        self.name, self._pipe = name, pipe

    def say(self, line: str) -> None:
        self._pipe.send((self.name, line))

    def progress(self, done: int, in_all: int) -> None:
        self._pipe.send((self.name, done, in_all))


@contextmanager
def half_the_threads() -> Iterator[None]:
    """What is started within shares the processor's cores between two."""
    with threads_of_children(max(1, int(os.environ.get("OMP_NUM_THREADS", "1")) // 2)):
        yield


def follow(children: Sequence[BaseProcess], pipes: Sequence[Connection], say: Say) -> None:
    """Until all have ended; when one fails or this process is told to stop, the others are told so.

    `pipes` are what the `Telling`s' pipes lead to, of which this process must hold no end any more: a line goes to
    `say`, a bar for each is shown on a terminal. Raises `LlavaError` when one failed or was stopped.
    """

    def stop(*_: object) -> None:
        for child in children:
            child.terminate()

    before, failed, open_pipes = signal.signal(signal.SIGTERM, stop), None, list(pipes)
    try:
        with progress_bars() as bars:
            while (running := [child for child in children if child.is_alive()]) or open_pipes:
                ready = wait([*(child.sentinel for child in running), *open_pipes])
                for pipe in [pipe for pipe in open_pipes if pipe in ready]:
                    try:
                        name, *told = pipe.recv()
                    except EOFError:
                        open_pipes.remove(pipe)
                        continue
                    if len(told) == 1:
                        say(f"{name}: {told[0]}")
                    elif bars:
                        bars(name, *told)
                if not failed and (failed := next((child for child in children if child.exitcode), None)):
                    stop()
    finally:
        signal.signal(signal.SIGTERM, before)
    if failed:
        raise LlavaError(f"{failed.name} stopped before the end; run the command again")
