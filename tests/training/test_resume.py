"""A run that is stopped or killed at any moment goes on bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest

from paddle_llava import LlavaForConditionalGeneration
from paddle_llava.errors import LlavaError
from paddle_llava.training import recipe
from paddle_llava.training.config import TrainingConfig
from paddle_llava.training.log import TrainingLog
from paddle_llava.training.result import write_result
from paddle_llava.training.step import Stepper
from training_runs import Runner, checkpoints, log, losses, weights, write_records, write_settings

LLAVA = Path(sys.executable).with_name("llava")
STANDSTILL = Path(__file__).with_name("standstill.py")
KILLS = 10
FILES = 10
"""How many files a save of an adapter opens."""
SECONDS = 300
"""Until a run is thought to hang."""


@pytest.fixture
def run(tmp_path: Path, demo_checkpoint: Path) -> Runner:
    return Runner(tmp_path, demo_checkpoint, write_records(tmp_path, 8))


LORA = {"lora": True, "lora_rank": 4, "lora_dropout": 0.2, "gradient_accumulation_steps": 2, "mixtoken": True}


@pytest.mark.parametrize("kind", [{}, LORA], ids=["full", "lora"])
def test_sigterm_saves_and_the_next_run_goes_on(
    kind: dict[str, object], run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {"max_steps": 5, "max_length": 256, "save_strategy": "steps", "save_steps": 100, **kind}
    straight = run("straight", **steps)
    right = TrainingLog.step

    def stop_after_two(log: TrainingLog, step: int, *arguments: object) -> None:
        right(log, step, *arguments)  # type: ignore[arg-type]
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLog, "step", stop_after_two)
        with pytest.raises(LlavaError, match=r"stopped by SIGTERM after step 2; run the same command again to go on"):
            run("stopped", **steps)
    out = run.folder / "stopped" / "out"
    assert checkpoints(out) == [2]
    assert "stopped after step 2 of 5" in (out / "report.html").read_text()
    assert not (out / "training_result.json").exists()
    run("stopped", **steps)
    assert run.heard("going on from")
    assert losses(out) == losses(straight)
    assert weights(out) == weights(straight)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_sigterm_after_the_last_step_lets_the_report_be_written(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_and_stop(*arguments: Any) -> None:
        write_result(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(recipe, "write_result", write_and_stop)
    run("late", max_steps=1, max_length=256)
    out = run.folder / "late" / "out"
    assert (out / "training_result.json").exists()
    assert (out / "report.html").exists()


def test_sigterm_in_an_evaluation_is_heard_there(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run makes the evaluation anew, and then goes on."""
    steps = {"max_steps": 4, "max_length": 256, "evaluation_strategy": "steps", "eval_steps": 2}
    straight = run("straight", **steps)
    right, computed = LlavaForConditionalGeneration.loss, list[bool]()

    def stop_in_evaluation(model: LlavaForConditionalGeneration, *inputs: Any) -> Any:
        computed.append(model.training)
        if not model.training:
            os.kill(os.getpid(), signal.SIGTERM)
        return right(model, *inputs)

    with monkeypatch.context() as patch:
        patch.setattr(LlavaForConditionalGeneration, "loss", stop_in_evaluation)
        with pytest.raises(LlavaError, match="stopped by SIGTERM after step 2"):
            run("stopped", **steps)
    out = run.folder / "stopped" / "out"
    assert computed.count(False) == 1
    assert checkpoints(out) == [2]
    run("stopped", **steps)
    assert log(out)[-1] == log(straight)[-1]
    assert weights(out) == weights(straight)


def test_too_little_memory_for_a_step_is_told_and_takes_nothing_with_it(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, steps = LlavaForConditionalGeneration.loss, {"max_steps": 3, "max_length": 256}
    straight = run("straight", **steps)
    taken = list[int]()

    def too_much(model: LlavaForConditionalGeneration, *inputs: Any) -> Any:
        taken.append(1)
        if len(taken) == 2:
            raise MemoryError("(ResourceExhausted) Out of memory error on GPU 0.")  # as Paddle does
        return right(model, *inputs)

    with monkeypatch.context() as patch:
        patch.setattr(LlavaForConditionalGeneration, "loss", too_much)
        with pytest.raises(LlavaError, match=r"step 2: the memory is not enough for .*record \d.*; set recompute"):
            run("run", **steps)
    out = run.folder / "run" / "out"
    assert checkpoints(out) == [1]
    run("run", **steps)
    assert weights(out) == weights(straight)


def test_too_little_memory_for_an_evaluation(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    right, steps = LlavaForConditionalGeneration.loss, {"max_steps": 2, "max_length": 256, "do_eval": True}

    def too_much(model: LlavaForConditionalGeneration, *inputs: Any) -> Any:
        if not model.training:
            raise MemoryError("(ResourceExhausted) Out of memory error on GPU 0.")
        return right(model, *inputs)

    monkeypatch.setattr(LlavaForConditionalGeneration, "loss", too_much)
    with pytest.raises(LlavaError, match=r"evaluation: .*not enough for .*record 1; lower per_device_eval_batch_size"):
        run("run", **steps)
    assert checkpoints(run.folder / "run" / "out") == [2]


def test_too_little_memory_for_the_optimizer(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(stepper: Stepper, lost: float) -> float:
        raise MemoryError("(ResourceExhausted) Out of memory error on GPU 0.")

    monkeypatch.setattr(Stepper, "update", too_much)
    with pytest.raises(LlavaError, match="step 1: the memory is not enough for the optimizer's state; use lora"):
        run("run", max_steps=1, max_length=256)


def test_data_of_another_size_is_told(run: Runner) -> None:
    """Where it was mended or added to, the place in an epoch is that of another order."""
    steps = {"max_length": 256, "save_strategy": "steps", "save_steps": 1}
    run("run", max_steps=1, **steps)
    assert not run.heard("an epoch has")
    run("run", max_steps=2, **steps, data=write_records(run.folder, 7, name="fewer.json"))
    assert run.heard("an epoch has 7 samples now and had 8 before, so their order is another")


def test_an_adapter_goes_on_with_its_own_alpha(run: Runner) -> None:
    steps = {"max_length": 256, "save_strategy": "steps", "save_steps": 1, **LORA}
    run("run", max_steps=1, **steps, lora_alpha=8)
    with pytest.raises(LlavaError, match=r"made with lora_alpha = 8.*, now it is 800"):
        run("run", max_steps=2, **steps, lora_alpha=800)


def test_sigterm_before_anything_was_learnt(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "stop_requests", lambda launched: nullcontext(lambda: True))
    with pytest.raises(LlavaError, match="after step 0; nothing was saved yet"):
        run("run", max_steps=2, save_strategy="steps")
    assert checkpoints(run.folder / "run" / "out") == []


@pytest.mark.parametrize(
    ("changes", "begun", "said"),
    [
        ({}, 0, "run the same command again to go on after step 4"),
        ({"overwrite_output_dir": True}, 0, "run the same command again without overwrite_output_dir to go on"),
        ({"resume_from_checkpoint": "c"}, 2, "run the same command again without resume_from_checkpoint to go on"),
        ({"resume_from_checkpoint": "c"}, 4, "run the same command again to go on after step 4"),
    ],
)
def test_the_command_that_goes_on(changes: dict[str, object], begun: int, said: str) -> None:
    """A key that would start from elsewhere is to be left out, once this run has saved something."""
    known = {"model_name_or_path": "m", "dataset": {"train": [{"data_files": "t"}]}, "output_dir": "o"}
    assert recipe._way_on(TrainingConfig.from_dict({**known, **changes}), begun, 4).startswith(said)


@pytest.mark.parametrize("split", ["train", "eval"])
def test_a_bad_record_takes_with_it_nothing_that_was_learnt(split: str, run: Runner) -> None:
    """Once it is put right, the next run goes on where this one stopped, with the evaluation that was not made."""
    data = run.folder / "late.json"
    good = json.loads(run.data.read_text())
    files = {"train": [{"data_files": str(run.data)}], "eval": [{"data_files": str(run.data)}]}
    steps = {"max_steps": 8, "do_eval": True, "dataset": files | {split: [{"data_files": str(data)}]}}
    data.write_text(json.dumps(good))
    straight = run("straight", **steps)
    data.write_text(json.dumps([*good[:7], {"conversations": [["Hello", " "]]}]))
    with pytest.raises(LlavaError, match=r"late.json: record 8.*no answer"):
        run("run", **steps)
    out = run.folder / "run" / "out"
    (step,) = checkpoints(out)
    assert step == (8 if split == "eval" else len(losses(out)))
    assert run.heard(f"stopped after step {step}; run the same command again to go on after step {step}")
    data.write_text(json.dumps(good))
    run("run", **steps)
    assert losses(out) == losses(straight)
    assert log(out)[-1] == log(straight)[-1]
    assert weights(out) == weights(straight)


def test_killed_at_random_moments(tmp_path: Path, demo_checkpoint: Path) -> None:
    """SIGKILL ten times, at every other time in the middle of a save; the weights are those of an unbroken run.

    The run stands still in the save that is to be killed, and otherwise two saves after the kill is due: however late
    the kill comes, it finds what it is for, and the run not at its end.
    """
    settings = {"max_steps": 2 * KILLS + 5, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    settings |= {"lora": True, "lora_rank": 4, "lora_dropout": 0.2, "max_length": 128}
    data = write_records(tmp_path, 8)
    straight = write_settings(tmp_path / "straight", demo_checkpoint, data, **settings)
    killed = write_settings(tmp_path / "killed", demo_checkpoint, data, **settings)
    out = tmp_path / "killed" / "out"
    choose, in_a_save = random.Random(5), 0
    for number in range(KILLS):
        before = max(checkpoints(out), default=0)
        if number % 2:
            with _finetune(killed, standing_at=choose.randint(FILES + 1, 2 * FILES)) as process:
                _wait(lambda process=process: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, process)
        else:
            with _finetune(killed, standing_at=3 * FILES) as process:
                _wait(lambda before=before: max(checkpoints(out), default=0) > before, process)
                time.sleep(choose.uniform(0, 0.1))
        assert process.wait() == -signal.SIGKILL
        assert max(checkpoints(out)) > before
        in_a_save += any(out.glob(".checkpoint-*.tmp"))
    assert in_a_save >= KILLS // 2
    with _finetune(straight) as unbroken, _finetune(killed) as last:
        assert last.wait(SECONDS) == 0
        assert unbroken.wait(SECONDS) == 0
    assert losses(out) == losses(tmp_path / "straight" / "out")
    assert weights(out) == weights(tmp_path / "straight" / "out")
    assert len(checkpoints(out)) == 2
    assert not list(out.glob(".checkpoint-*"))


@contextmanager
def _finetune(settings: Path, standing_at: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A run that is killed at the end of the block, if it has not ended; see `standstill.py`."""
    command = [str(LLAVA), "finetune"] if standing_at is None else [sys.executable, str(STANDSTILL), str(standing_at)]
    process = subprocess.Popen([*command, str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _wait(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_copy_of_a_run_goes_on_like_it(run: Runner) -> None:
    steps = {"save_strategy": "steps", "save_steps": 1}
    whole = run("whole", max_steps=4, **steps)
    copy = run.folder / "copy" / "out"
    copy.mkdir(parents=True)
    shutil.copytree(whole / "checkpoint-3", copy / "checkpoint-3")
    run("copy", max_steps=4, **steps)
    assert weights(copy) == weights(whole)
