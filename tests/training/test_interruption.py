"""SIGINT at any moment ends a run with the same words; what it interrupts goes on bit for bit."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import paddle
import pytest

from paddle_llava.errors import LlavaError
from paddle_llava.training import checkpoint, recipe, step
from paddle_llava.training.interruption import Interruption, stop_requests
from paddle_llava.training.log import TrainingLog
from training_runs import Runner, checkpoints, losses, weights, write_records


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def _pythons_own_handler() -> Iterator[None]:
    """Also where the tests run in the background, which ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    after = signal.signal(signal.SIGINT, before)
    assert after is signal.default_int_handler


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def interruption(said: list[str]) -> Interruption:
    return Interruption(lambda: said.append("interrupted"))


def test_at_once(interruption: Interruption, said: list[str]) -> None:
    def work() -> None:
        with interruption:
            interrupt()
            said.append("not at once")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert said == ["interrupted"]


def test_what_is_held_comes_to_its_end(interruption: Interruption, said: list[str]) -> None:
    def work() -> None:
        with interruption:
            with interruption.held():
                interrupt()
                interrupt()
                said.append("saved")
            said.append("not after that")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert said == ["saved", "interrupted"]


def test_nobody_interrupts(interruption: Interruption, said: list[str]) -> None:
    with interruption, interruption.held():
        said.append("saved")
    with pytest.raises(LlavaError), interruption:
        raise LlavaError("something else")
    assert said == ["saved"]


def test_one_that_is_dropped_on_its_way_comes_again(interruption: Interruption, said: list[str]) -> None:
    def work() -> None:
        with interruption:
            with suppress(KeyboardInterrupt):
                interrupt()
            said.append("dropped")
            with interruption.held():
                said.append("not begun")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert said == ["dropped", "interrupted"]


def test_one_that_is_dropped_at_the_end(interruption: Interruption, said: list[str]) -> None:
    def work() -> None:
        with interruption, suppress(KeyboardInterrupt):
            interrupt()

    with pytest.raises(KeyboardInterrupt):
        work()
    assert said == ["interrupted"]


def test_one_that_is_taken_for_an_error(interruption: Interruption, said: list[str]) -> None:
    def work() -> None:
        with interruption:
            try:
                interrupt()
            except KeyboardInterrupt:
                raise RuntimeError("in the library") from None

    with pytest.raises(KeyboardInterrupt):
        work()
    assert said == ["interrupted"]


def test_a_second_one_meanwhile(interruption: Interruption, said: list[str]) -> None:
    """Neither what is put in order nor what is said is cut short."""
    interruption._say = lambda: (interrupt(), said.append("interrupted"))

    def work() -> None:
        with interruption:
            try:
                interrupt()
            finally:
                interrupt()
                said.append("in order")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert said == ["in order", "interrupted"]


def test_handlers_of_others_stay(interruption: Interruption, said: list[str]) -> None:
    heard = []
    for handler in (signal.SIG_IGN, lambda *_: heard.append("theirs")):
        signal.signal(signal.SIGINT, handler)
        with interruption, interruption.held():
            interrupt()
        assert signal.getsignal(signal.SIGINT) is handler
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert heard == ["theirs"]
    assert not said


def test_another_thread_hears_nothing(interruption: Interruption) -> None:
    heard: list[object] = []

    def work() -> None:
        with interruption, interruption.held(), stop_requests() as stop_requested:
            heard.append(stop_requested())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [False]


# --- a run


@pytest.fixture
def run(tmp_path: Path, demo_checkpoint: Path) -> Runner:
    return Runner(tmp_path, demo_checkpoint, write_records(tmp_path, 4))


# Where and in which of its calls the key is pressed; then what is said, and the checkpoints that are left.
AGAIN = "run the same command again"
MOMENTS: dict[str, tuple[object, str, int, str, list[int]]] = {
    "before a step": (step.Stepper, "_loss", 1, f"after step 0; nothing was saved yet; {AGAIN}", []),
    "in a step": (step, "_norm", 4, f"after step 3; {AGAIN} to go on after step 2", [2]),
    "between steps": (TrainingLog, "step", 3, f"after step 3; {AGAIN} to go on after step 2", [2]),
    "in an evaluation": (recipe, "evaluate", 1, f"after step 2; nothing was saved yet; {AGAIN}", []),
    "in a save": (checkpoint, "write_json", 1, f"after step 2; {AGAIN} to go on after step 2", [2]),
    "late in a save": (checkpoint, "_take_name", 2, f"after step 4; {AGAIN} to go on after step 4", [2, 4]),
    "in the result": (recipe, "write_result", 1, f"after step 4; {AGAIN} to go on after step 4", [2, 4]),
    "in the report": (recipe, "write_report", 1, f"after step 4; {AGAIN} to go on after step 4", [2, 4]),
}
STEPS: dict[str, Any] = {
    "max_steps": 4,
    "max_length": 256,
    "per_device_train_batch_size": 1,
    "save_strategy": "steps",
    "save_steps": 2,
    "evaluation_strategy": "steps",
    "eval_steps": 2,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_at_every_moment_of_a_run(moment: str, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pressed twice, as people do."""
    owner, name, number, said, left = MOMENTS[moment]
    right, calls = getattr(owner, name), 0

    def pressed(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            try:
                interrupt()
            finally:
                interrupt()
        return right(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, pressed)
        with pytest.raises(KeyboardInterrupt):
            run("run", **STEPS)
    out = run.folder / "run" / "out"
    assert run.said[-1] == f"interrupted {said}"
    assert checkpoints(out) == left
    assert not list(out.glob(".checkpoint-*"))


def test_in_a_call_from_outside_of_python(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """From which Paddle lets no `KeyboardInterrupt` through."""
    right = step.Stepper._loss

    def loss(stepper: Any, batch: Any) -> paddle.Tensor:
        value = right(stepper, batch)
        value.register_hook(lambda gradient: interrupt())
        return value

    with monkeypatch.context() as patch:
        patch.setattr(step.Stepper, "_loss", loss)
        with pytest.raises(KeyboardInterrupt):
            run("run", **STEPS)
    assert run.heard("interrupted after step 0")


def test_what_was_interrupted_goes_on_bit_for_bit(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = run("straight", **STEPS)
    right = TrainingLog.step

    def pressed(log: TrainingLog, number: int, *arguments: Any) -> None:
        right(log, number, *arguments)
        if number == 3:
            interrupt()

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLog, "step", pressed)
        with pytest.raises(KeyboardInterrupt):
            run("run", **STEPS)
    again = run("run", **STEPS)
    assert run.heard("going on from")
    assert losses(again) == losses(straight)
    assert weights(again) == weights(straight)
