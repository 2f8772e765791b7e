"""A person at a terminal: a program on a pty, what it shows, and keys for it.

Run as a program it is a chat with a scripted model: `python terminal.py CHECKPOINT DELAY ANSWER...`
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

CTRL_C, CTRL_D, TAB, UP, LEFT, BACKSPACE = "\x03", "\x04", "\t", "\x1b[A", "\x1b[D", "\x7f"


def _take_terminal() -> None:
    """Ctrl-C is a signal for the program, even where these tests run in the background, which ignores it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A program whose stdin, stdout and stderr are one terminal; a context manager that ends it."""

    def __init__(self, *command: str | Path, **environment: str) -> None:
        self._screen, inside = pty.openpty()
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            preexec_fn=_take_terminal,
            env={**os.environ, "TERM": "dumb", "INPUTRC": os.devnull, "COLUMNS": "200", **environment},
        )
        os.close(inside)
        self.seen = ""
        self._looked = 0

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._screen)

    def type(self, keys: str) -> None:
        if CTRL_C in keys:
            # Between showing the prompt and waiting for keys, readline holds a signal back until the next key.
            time.sleep(0.5)
        os.write(self._screen, keys.encode())

    def wait_for(self, text: str, seconds: float = 20) -> None:
        """Until `text` is shown after what was waited for before."""
        end = time.monotonic() + seconds
        while (place := self.seen.find(text, self._looked)) < 0:
            assert time.monotonic() < end, f"{text!r} is not shown: {self.seen[self._looked :]!r}"
            assert self._read(0.2), f"{text!r} is not shown before the end: {self.seen[self._looked :]!r}"
        self._looked = place + len(text)

    def exit_code(self, seconds: float = 20) -> int:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._read(0.2):
            pass
        return self._process.wait(timeout=1)

    def _read(self, seconds: float) -> bool:
        """More of what is shown; False when the program has ended."""
        if select.select([self._screen], [], [], seconds)[0]:
            try:
                data = os.read(self._screen, 65536)
            except OSError:  # how Linux says that the other end is closed
                return False
            self.seen += data.decode(errors="replace")
            return bool(data)
        return True


if __name__ == "__main__":
    from paddle_llava.chat import Chat
    from scripted_engine import scripted_session

    session = scripted_session(Path(sys.argv[1]), sys.argv[3:], float(sys.argv[2]))
    sys.exit(Chat(session, with_roles=True).at_terminal())
