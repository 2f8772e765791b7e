"""What a run is asked from outside: SIGTERM to save and end, SIGINT (Ctrl-C) to end, which is never lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType


class StopRequested(Exception):
    """SIGTERM has come in the middle of what can be left."""


@contextmanager
def stop_requests(launched: bool = False) -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come meanwhile, instead of its ending the process in the middle of a step.

    With `launched`, the end of the launcher of several processes counts as one: it would leave them behind.
    """
    asked, parent = False, os.getppid()

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True

    if not _hears_signals():
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield lambda: asked or (launched and os.getppid() != parent)
    finally:
        signal.signal(signal.SIGTERM, before)


class Interruption:
    """SIGINT in the block, as one `KeyboardInterrupt`: at once, but where it is `held` only after that.

    Python's own handler raises wherever the program happens to be: between the files of a checkpoint, in a library that
    holds a lock, or where exceptions are dropped or turned into others (`__del__`, a call from C++). Here it is raised
    again until it has ended the block, and `say` is called whichever way it did. Those that follow the first, as when
    the key is pressed twice, are ignored until then. A handler of the caller's own stays.
    """

    def __init__(self, say: Callable[[], object]) -> None:
        self._say = say
        self._asked = self._listens = False
        self._holding = True

    def __enter__(self) -> Interruption:
        # Not where SIGINT is ignored, as by a shell's background jobs, nor where somebody else listens.
        self._listens = _hears_signals() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._listens:
            signal.signal(signal.SIGINT, self._hear)
        self._holding = False  # last: raised any earlier, it would not end the block but its beginning
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._holding = True
        raised = isinstance(error, KeyboardInterrupt)
        if raised or self._asked:
            self._say()
        if self._listens:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._asked and not raised:
            raise KeyboardInterrupt from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """For what is to be brought to its end; not to be nested."""
        self._holding = True
        self._raise_if_asked()  # what was lost on its way
        try:
            yield
        finally:
            self._holding = False
        self._raise_if_asked()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self._asked:
            self._asked = True
            if not self._holding:
                raise KeyboardInterrupt

    def _raise_if_asked(self) -> None:
        if self._asked:
            raise KeyboardInterrupt


def _hears_signals() -> bool:
    return threading.current_thread() is threading.main_thread()
