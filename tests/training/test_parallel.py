"""Two processes under Paddle's launcher, as a user starts them, against one with the doubled batch."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paddle
import psutil
import pytest

from paddle_llava.data.batches import BatchSettings
from paddle_llava.data.loader import Batches
from paddle_llava.data.mixture import Mixture
from paddle_llava.errors import LlavaError
from paddle_llava.llava import LlavaForConditionalGeneration
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.templates import TEMPLATES
from paddle_llava.training.checkpoint import TrainerState
from paddle_llava.training.config import TrainingConfig
from paddle_llava.training.group_sharding import LEVELS, GroupSharding
from paddle_llava.training.optimizer import build_optimizer, select_trainable
from paddle_llava.training.parallel import ShardedOptimizer, World
from paddle_llava.training.preparation import total_steps
from paddle_llava.training.start import _check_degree, check_sharding
from training_runs import Runner, checkpoints, log, losses, weights, write_records, write_settings

LLAVA = Path(sys.executable).with_name("llava")
LAUNCH = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo"]
# With Adam's own epsilon, rounding decides the sign of steps near zero.
STEPS: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "adam_epsilon": 1e-3, "seed": 3}
CONFIG: dict[str, Any] = {"model_name_or_path": "m", "dataset": {"train": [{"data_files": "t"}]}, "output_dir": "o"}
ONE, TWO = {"per_device_train_batch_size": 2}, {"per_device_train_batch_size": 1}


@contextmanager
def launched(settings: Path, *program: str) -> Iterator[subprocess.Popen[str]]:
    """Two processes that train, by `program` or `llava finetune`; all of them have ended after the block."""
    with (settings.parent / "said.txt").open("w") as said:
        process = subprocess.Popen(
            [*LAUNCH, *(program or (str(LLAVA), "finetune")), str(settings)],
            cwd=settings.parent,
            stdout=said,
            stderr=said,
            text=True,
            env={**os.environ, "PYTHONFAULTHANDLER": "1"},
            start_new_session=True,
        )
        try:
            yield process
        finally:
            for each in family(process):
                each.kill()
            process.kill()
            process.wait()


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def logs(settings: Path) -> list[str]:
    """What each of the two processes said."""
    return [(settings.parent / "log" / f"workerlog.{rank}").read_text() for rank in (0, 1)]


def all_said(*runs: Path) -> str:
    """The end of what launchers and processes said: one text, which pytest does not shorten."""
    paths = [file for run in runs for file in (run.parent / "said.txt", *sorted(run.parent.glob("log/workerlog.*")))]
    return "\n".join(f"--- {path}\n{path.read_text()[-4000:]}" for path in paths)


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> float:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() < begun + seconds
        time.sleep(0.02)
    return time.monotonic() - begun


@pytest.fixture
def run(tmp_path: Path, demo_checkpoint: Path) -> Runner:
    return Runner(tmp_path, demo_checkpoint, write_records(tmp_path, 8))


def settings(run: Runner, name: str, data: Path | None = None, **changes: Any) -> Path:
    return write_settings(run.folder / name, run.checkpoint, data or run.data, **{**STEPS, **TWO, **changes})


def test_two_processes_are_one_with_the_doubled_batch(run: Runner) -> None:
    """With the optimizer's state sharded and not, and on from each other's checkpoints."""
    batches = [_pictures(run, rank) for rank in (0, 1)]
    assert any(mine != others for mine, others in zip(*batches, strict=True)), "no step with pictures on one side only"
    one = run("one", **STEPS, **ONE)
    alone = run("alone", **STEPS | TWO | {"max_steps": 8})  # half the batch at each step
    sharded = settings(run, "sharded", sharding="stage1", sharding_parallel_degree=2, evaluation_strategy="epoch")
    epochs = {"max_steps": -1, "num_train_epochs": 1}
    resumed = settings(run, "resumed", resume_from_checkpoint=str(alone / "checkpoint-2"), **epochs)
    with ExitStack() as stack:
        processes = [stack.enter_context(launched(each)) for each in (sharded, resumed)]
        assert [process.wait(300) for process in processes] == [0, 0], all_said(sharded, resumed)
    out = sharded.parent / "out"
    assert losses(out) == pytest.approx(losses(one), abs=2e-6)
    assert [line["targets"] for line in log(out)[:-1]] == [line["targets"] for line in log(one)]
    assert [line["grad_norm"] for line in log(out)[:-1]] == pytest.approx([x["grad_norm"] for x in log(one)], rel=1e-5)
    trained = run("eval", model_name_or_path=str(one), do_train=False, do_eval=True)
    assert log(out)[-1]["eval_loss"] == pytest.approx(log(trained)[0]["eval_loss"], abs=1e-5)

    # On from each other's checkpoints, which count places over all processes: targets tell the batches apart.
    batch = [line["targets"] for line in log(alone)]
    again = run("again", **STEPS, **TWO, resume_from_checkpoint=str(out / "checkpoint-2"))
    assert [line["targets"] for line in log(again)] == [batch[4], batch[5]]
    left = [batch[2] + batch[3], batch[4] + batch[5], batch[6] + batch[7]]  # of the epoch, for two
    assert [line["targets"] for line in log(resumed.parent / "out")] == left
    assert "it was made by another number of processes" in logs(resumed)[0]
    assert (out / "report.html").exists()


@pytest.mark.parametrize("lora", [False, True])
def test_a_model_split_over_two_processes_learns_as_a_whole_one(lora: bool, run: Runner) -> None:
    """Tensor parallel: the same batch, the same losses; and its checkpoint is whole, so one process goes on from it."""
    one = run("one", **STEPS, **ONE, lora=lora, lora_dropout=0)
    divided = settings(run, "divided", **ONE, lora=lora, lora_dropout=0, recompute=lora, tensor_parallel_degree=2)
    with launched(divided) as process:
        assert process.wait(300) == 0, all_said(divided)
    out = divided.parent / "out"
    assert losses(out) == pytest.approx(losses(one), abs=5e-6)
    again = run("again", **STEPS, **ONE, lora=lora, lora_dropout=0, resume_from_checkpoint=str(out / "checkpoint-2"))
    assert losses(again) == pytest.approx(losses(one)[2:], abs=5e-6)


@pytest.mark.parametrize(
    ("batches_an_epoch", "replicas", "state", "steps"),
    [
        (100, 1, TrainerState(), 100),
        (100, 1, TrainerState(step=25, batches=25), 100),
        (50, 2, TrainerState(step=50, batches=50), 75),
        (100, 1, TrainerState(step=25, batches=50), 75),
        (50, 2, TrainerState(step=100, batches=100), 100),
        (50, 2, TrainerState(step=30), 50),
    ],
    ids=["anew", "on as before", "one, then two", "two, then one", "all by one", "not known"],
)
def test_an_epoch_is_an_epoch_whoever_began_it(
    batches_an_epoch: int, replicas: int, state: TrainerState, steps: int
) -> None:
    config = TrainingConfig.from_dict({**CONFIG, "num_train_epochs": 1})
    batches: Any = SimpleNamespace(len_estimate=lambda: batches_an_epoch, world_size=replicas)
    assert total_steps(config, batches, state) == steps


def test_processes_that_a_model_cannot_be_split_over() -> None:
    with pytest.raises(LlavaError, match="this run has 1 processes"):
        World.join(2)


def _pictures(run: Runner, rank: int) -> list[bool]:
    batches = Batches(
        Mixture.from_entries([{"data_files": str(run.data)}], TEMPLATES["vicuna_v1"]),
        LlavaProcessor.from_pretrained(run.checkpoint),
        BatchSettings(batch_size=1, max_length=512, seed=STEPS["seed"]),
        rank=rank,
        world_size=2,
    )
    return ["pixel_values" in batch for batch in batches]


def test_a_sharded_run_goes_on_bit_for_bit(run: Runner) -> None:
    """Stopped by SIGTERM to both, and by the death of the launcher; then on, with the state in other hands."""
    straight, stopped = (settings(run, name, max_steps=30, sharding=kind, save_steps=100) for name, kind in PAIR)
    with launched(straight) as process:
        with launched(stopped) as other:
            wait_for(lambda: len(losses_or_none(stopped)) >= 3)
            for each in workers(other):
                each.terminate()
            assert wait_for(lambda: other.poll() is not None) < 30
            assert other.wait() != 0
        assert all("llava: error: stopped by SIGTERM after step" in said for said in logs(stopped))
        (step,) = checkpoints(stopped.parent / "out")
        assert 3 <= step < 30
        assert process.wait(300) == 0, all_said(straight)
    with launched(stopped) as other:
        assert other.wait(120) == 0, all_said(stopped)
    assert weights(stopped.parent / "out") == weights(straight.parent / "out")


PAIR = (("straight", ""), ("stopped", "stage1"))


def losses_or_none(path: Path) -> list[float]:
    return losses(path.parent / "out") if (path.parent / "out" / "trainer_log.jsonl").exists() else []


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [each for each in family(process) if "finetune" in each.cmdline()]


def test_none_is_left_waiting(run: Runner) -> None:
    """A bad record of one process, a killed process, and a killed launcher: all end, and say why."""
    folder = run.folder / "bad"
    folder.mkdir()
    records = write_records(folder, 2, pictures=False)
    good = json.loads(records.read_text())
    records.write_text(json.dumps([good[0], {"conversations": []}] * 4))
    bad = settings(run, "bad", records)
    skipping = settings(run, "skipping", records, on_bad_sample="skip")
    endless = {"max_steps": 10_000, "save_strategy": "no"}
    killed, orphaned = (settings(run, name, **endless) for name in ("killed", "orphaned"))
    divided = settings(run, "divided", **endless, tensor_parallel_degree=2)
    with ExitStack() as stack:
        first, second, third = (stack.enter_context(launched(each)) for each in (bad, killed, orphaned))
        assert first.wait(60) != 0
        with launched(skipping) as fourth:
            assert fourth.wait(120) == 0, all_said(skipping)
        assert {f"record {number}" for number in (2, 4, 6, 8)} <= set(
            re.findall(r"skipped .*?(record \d)", logs(skipping)[0])
        )
        errors = [[line for line in said.splitlines() if "error" in line] for said in logs(bad)]
        assert errors[0] == errors[1]
        assert len(errors[0]) == 1
        assert errors[0][0].startswith("llava: error: ")
        assert "record" in errors[0][0]

        wait_for(lambda: len(losses_or_none(killed)) >= 1)
        one, other = workers(second)
        other.kill()
        assert wait_for(lambda: second.poll() is not None and not one.is_running()) < 30

        with launched(divided) as fifth:
            wait_for(lambda: len(losses_or_none(divided)) >= 1)
            one, other = workers(fifth)
            other.kill()
            assert wait_for(lambda: fifth.poll() is not None and not one.is_running()) < 30
        assert "llava: error: another process of this run has ended" in logs(divided)[0]

        wait_for(lambda: len(losses_or_none(orphaned)) >= 1)
        left = workers(third)
        os.kill(third.pid, signal.SIGKILL)
        third.wait()
        try:
            assert wait_for(lambda: not any(map(psutil.pid_exists, [each.pid for each in left]))) < 30
        finally:
            for each in left:
                if each.is_running():
                    each.kill()


def test_each_process_keeps_the_state_of_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "broadcast", lambda *_: None)
    parameters = {str(size): paddle.create_parameter([size], "float32") for size in (5, 4, 3, 2)}
    held = []
    for rank in (0, 1):
        optimizer = paddle.optimizer.AdamW(parameters=list(parameters.values()))
        for parameter in parameters.values():
            parameter.grad = paddle.ones_like(parameter)
        ShardedOptimizer(optimizer, parameters, World(rank, 2)).step()
        moments = optimizer._accumulators["moment1"]
        held.append({name for name, parameter in parameters.items() if parameter.name in moments})
    assert held == [{"5", "2"}, {"4", "3"}]


@pytest.mark.parametrize(
    ("changes", "device", "said"),
    [
        ({"sharding": "stage2"}, "cpu", "stage2 cannot run on a CPU"),
        ({"sharding": "stage3"}, "cpu", "stage3 cannot run on a CPU"),
        ({"sharding": "stage1", "fp16": True}, "gpu", "use bf16"),
        ({"sharding": "stage2", "load_best_model_at_end": True}, "gpu", "use stage1"),
        ({"sharding": "stage3", "evaluation_strategy": "epoch"}, "npu", "stage3 cannot evaluate"),
        ({"sharding": "stage3"}, "gpu", ""),
        ({"sharding": "stage2", "fp16": True, "evaluation_strategy": "steps"}, "npu", ""),
        ({"sharding": "stage1"}, "cpu", ""),
        ({"tensor_parallel_degree": 2}, "cpu", ""),
    ],
)
def test_what_sharding_cannot_be_is_refused(changes: dict[str, Any], device: str, said: str) -> None:
    config = TrainingConfig.from_dict({**CONFIG, **changes})
    with pytest.raises(LlavaError, match=said) if said else nullcontext():
        check_sharding(config, device, "float16" if config.fp16 and device != "cpu" else "float32")


def test_a_degree_must_be_that_of_the_run() -> None:
    _check_degree(TrainingConfig.from_dict({**CONFIG, "sharding": "stage1"}), World(0, 2))
    config = TrainingConfig.from_dict({**CONFIG, "sharding": "stage2", "sharding_parallel_degree": 4})
    with pytest.raises(LlavaError, match="this run has 2 replicas of the model; -1"):
        _check_degree(config, World(0, 2))
    halves = TrainingConfig.from_dict({**CONFIG, "sharding": "stage1", "sharding_parallel_degree": 2})
    _check_degree(halves, World(0, 4, tensor_parallel=2))


@pytest.mark.parametrize("stage", ["stage2", "stage3"])
def test_what_paddle_is_asked_to_share_out(stage: str, demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def fake(*arguments: Any, **settings: Any) -> tuple[Any, ...]:
        calls.append((arguments, settings))
        return arguments[0], arguments[1], arguments[3]

    monkeypatch.setattr("paddle.distributed.sharding.group_sharded_parallel", fake)
    model = LlavaForConditionalGeneration.from_pretrained(demo_checkpoint)
    config = TrainingConfig.from_dict({**CONFIG, "sharding": stage, "max_grad_norm": 0.5, "weight_decay": 0.1})
    select_trainable(model, model.config, config)
    optimizer, scaler = build_optimizer(model, config, 1), paddle.amp.GradScaler(enable=False)
    GroupSharding(config, model, optimizer, scaler, World(0, 2, in_step=True))
    [((layer, *rest), settings)] = calls
    assert layer.model is model
    assert rest == [optimizer, LEVELS[stage], scaler]
    whole = settings["exclude_layer"]
    assert id(model.vision_tower.layers[0].mlp.fc1) in whole
    assert id(model.language_model.layers[0].mlp.up_proj) not in whole
    assert optimizer._grad_clip.clip_norm == 0.5
    name = model.lm_head.weight.name
    assert optimizer._apply_decay_param_fun(f"slice@{name}")
    assert not optimizer._apply_decay_param_fun(model.language_model.norm.weight.name)


def test_stages_2_and_3_are_one_process_with_the_doubled_batch(run: Runner) -> None:
    """As Paddle has them, over a CPU that passes for another device; stage 3 goes on from a checkpoint of its own.

    The seed gives each step a picture on one side only. A bad record ends stage 3 after that, and what it learnt is
    kept.
    """
    changes = {"max_steps": 3, "seed": 6, "weight_decay": 0.1, "mm_projector_lr": 5e-4, "max_grad_norm": 0.5}
    program = str(Path(__file__).with_name("like_a_device.py"))
    records, late = json.loads(run.data.read_text()), run.data.with_name("late.json")
    mixture = Mixture.from_entries([{"data_files": str(run.data)}], TEMPLATES["vicuna_v1"])
    last = mixture.epoch_order(changes["seed"], 0)[-1]
    records[last] = {"conversations": []}
    late.write_text(json.dumps(records))
    two = settings(run, "stage2", **changes, sharding="stage2")
    three = settings(run, "stage3", late, **changes | {"max_steps": 4}, sharding="stage3")
    with launched(two, program) as first, launched(three, program) as second:
        assert first.wait(300) == 0, all_said(two)
        assert second.wait(300) != 0
    assert f"record {last + 1}: " in logs(three)[1]
    assert "stopped after step 3; run the same command again to go on after step 3" in logs(three)[0]
    assert checkpoints(three.parent / "out") == [2, 3]
    one = run("one", **{**STEPS, **ONE, **changes})
    for each in (two, three):
        assert losses(each.parent / "out") == pytest.approx(losses(one), abs=2e-6)

    resumed = settings(
        run, "resumed", **changes, sharding="stage3", resume_from_checkpoint=str(three.parent / "out" / "checkpoint-2")
    )
    with launched(resumed, program) as process:
        assert process.wait(300) == 0, all_said(resumed)
    assert losses(resumed.parent / "out") == pytest.approx(losses(one)[2:], abs=2e-6)
