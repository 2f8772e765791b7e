"""What the commands say besides their results, all on stderr: notes, errors of one line, progress."""

from __future__ import annotations

import io
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

from paddle_llava.errors import LlavaError

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but for tab and newline, by which text could take over a terminal."""


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
    makes it fast). Everything else that is said is passed on. Raises `LlavaError` when Paddle cannot be imported.
    """
    heard = io.StringIO()
    try:
        with redirect_stderr(heard), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No ccache found")
            yield
    except ImportError as error:
        raise LlavaError(
            f"PaddlePaddle cannot be imported ({error}); install it with: pip install 'paddlepaddle>=3.3,<3.4'"
        ) from error
    finally:
        kept = [line for line in heard.getvalue().splitlines(keepends=True) if "OMP_NUM_THREADS" not in line]
        sys.stderr.write("".join(kept))


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar to tell `(done, in_all)`, which leaves no trace; None when stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label.replace("[", r"\["), total=None)
        yield lambda done, in_all: progress.update(task, completed=done, total=in_all)


def tolerant_streams() -> None:
    """No byte on stdin and no character for stdout makes these streams raise."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if stream is not sys.stderr else "backslashreplace")
