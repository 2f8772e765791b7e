"""What the commands say besides their results, all on stderr: notes, errors of one line, progress."""

from __future__ import annotations

import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from typing import Any

from paddle_llava.errors import LlavaError

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but for tab and newline, by which text could take over a terminal."""
_NO_CCACHE = "No ccache found"


def note(message: str) -> None:
    """Something that a person should know."""
    _line("note", message)


def complain(message: str) -> None:
    """Something that went wrong."""
    _line("error", message)


def _line(kind: str, message: str) -> None:
    message = "".join(character if character.isprintable() else " " for character in message)
    print(f"llava: {kind}: {' '.join(message.split())}", file=sys.stderr, flush=True)


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Each `UserWarning` becomes a note; what is meant for developers is dropped."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning):
            note(str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def importing_paddle() -> Iterator[None]:
    """For the block in which Paddle is first imported: without two remarks of its that help nobody here.

    They are that there is no ccache (for compiling extensions), and that `OMP_NUM_THREADS` is not 1 (which is what
    makes it fast). Processes that are started afterwards do not say the first either. Everything else that is said is
    passed on. Raises `LlavaError` when Paddle cannot be imported.
    """
    heard = io.StringIO()
    os.environ.setdefault("PYTHONWARNINGS", f"ignore:{_NO_CCACHE}")
    try:
        with redirect_stderr(heard), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_NO_CCACHE)
            yield
    except ImportError as error:
        raise LlavaError(
            f"PaddlePaddle cannot be imported ({error}); install it with: pip install 'paddlepaddle>=3.3,<3.4'"
        ) from error
    finally:
        kept = [line for line in heard.getvalue().splitlines(keepends=True) if "OMP_NUM_THREADS" not in line]
        sys.stderr.write("".join(kept))


@contextmanager
def progress_bars(*labels: str) -> Iterator[Callable[[str, int, int], None] | None]:
    """Bars to tell `(label, done, in_all)`, with rate and time left, which leave no trace; None when stderr is no
    terminal. Those of `labels` are there before anything is told of them."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def begin(label: str) -> TaskID:
            tasks[label] = progress.add_task(label.replace("[", r"\["), total=None, rate="")
            return tasks[label]

        def show(label: str, done: int, in_all: int) -> None:
            task = tasks[label] if label in tasks else begin(label)
            progress.update(task, completed=done, total=in_all)
            speed = progress.tasks[task].speed
            progress.update(task, rate=_rate(speed) if speed else "")

        for label in labels:
            begin(label)
        yield show


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None] | None]:
    """One bar to tell `(done, in_all)`; None when stderr is no terminal."""
    with progress_bars(label) as show:
        yield partial(show, label) if show else None


def _rate(a_second: float) -> str:
    """`1.4/s`, `230/s`, `52M/s`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if a_second >= size:
            return f"{a_second / size:.3g}{unit}/s"
    return f"{a_second:.2g}/s" if a_second < 10 else f"{a_second:.0f}/s"


def tolerant_streams() -> None:
    """No byte on stdin and no character for stdout makes these streams raise."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if stream is not sys.stderr else "backslashreplace")
