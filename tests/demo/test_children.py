"""What a training in another process tells, and how it ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import pytest

from paddle_llava.demo.children import Telling, follow, half_the_threads
from paddle_llava.errors import LlavaError


def learn(telling: Telling) -> None:
    for step in range(1, 4):
        telling.progress(step, 3)
        telling.say(f"step {step}")


def fail(telling: Telling) -> None:
    telling.say("oh")
    raise SystemExit(3)


def sleep(telling: Telling) -> None:
    telling.say("asleep")
    time.sleep(60)


def started(*targets: Callable[[Telling], None]) -> tuple[list[BaseProcess], list[Connection]]:
    context, children, pipes = get_context("fork"), [], []
    for target in targets:
        pipe, its_pipe = context.Pipe(duplex=False)
        child = context.Process(target=target, args=(Telling(target.__name__, its_pipe),), name=target.__name__)
        child.start()
        its_pipe.close()
        children.append(child)
        pipes.append(pipe)
    return children, pipes


def test_all_that_is_said_is_heard() -> None:
    said: list[str] = []
    follow(*started(learn, learn), said.append)
    assert sorted(said) == sorted(["learn: step 1", "learn: step 2", "learn: step 3"] * 2)


def test_one_that_fails_stops_the_other() -> None:
    said: list[str] = []
    children, pipes = started(sleep, fail)
    begun = time.monotonic()
    with pytest.raises(LlavaError, match=r"^fail stopped before the end; run the command again$"):
        follow(children, pipes, said.append)
    assert "fail: oh" in said
    assert time.monotonic() - begun < 30
    assert children[0].exitcode == -signal.SIGTERM


def test_being_told_to_stop_is_passed_on() -> None:
    children, pipes = started(sleep)
    before = signal.getsignal(signal.SIGTERM)

    def say(line: str) -> None:
        assert line == "sleep: asleep"
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(LlavaError, match=r"^sleep stopped before the end"):
        follow(children, pipes, say)
    assert signal.getsignal(signal.SIGTERM) is before


def test_half_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads, half in (("8", "4"), ("1", "1")):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        with half_the_threads():
            assert os.environ["OMP_NUM_THREADS"] == half
        assert os.environ["OMP_NUM_THREADS"] == threads
