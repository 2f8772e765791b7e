"""What a run computes, writes and refuses; steps are taken in this process on the demonstration's model."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from paddle_llava.checkpoints.safetensors_file import SafetensorsFile
from paddle_llava.errors import LlavaError
from paddle_llava.training import checkpoint, recipe, step
from training_runs import Runner, checkpoints, log, losses, weights, write_records

# With Adam's own epsilon a first step is the sign of the gradient, and rounding decides signs near zero.
SMOOTH = {"adam_epsilon": 1e-2, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("data"), 8)


@pytest.fixture
def run(tmp_path: Path, demo_checkpoint: Path, data: Path) -> Runner:
    return Runner(tmp_path, demo_checkpoint, data)


def tensors(folder: Path) -> dict[str, np.ndarray]:
    file = SafetensorsFile(folder / "model.safetensors")
    try:
        return {name: file.read(name) for name in file.names()}
    finally:
        file.close()


def farthest(one: Path, other: Path) -> float:
    """The greatest difference of a weight."""
    left, right = tensors(one), tensors(other)
    return max(float(np.abs(left[name] - right[name]).max()) for name in left)


def test_accumulating_is_one_large_batch(run: Runner) -> None:
    one = run("one", max_steps=1, per_device_train_batch_size=4, **SMOOTH)
    four = run("four", max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=4, **SMOOTH)
    assert losses(one) == pytest.approx(losses(four), abs=1e-5)
    assert farthest(one, four) < 1e-5
    assert farthest(one, run.checkpoint) > 1e-4  # it did learn
    assert log(one)[0]["targets"] == log(four)[0]["targets"]


def test_packing_changes_no_loss(run: Runner) -> None:
    apart = run("apart", max_steps=1, per_device_train_batch_size=8, **SMOOTH)
    packed = run("packed", max_steps=1, per_device_train_batch_size=8, mixtoken=True, max_length=400, **SMOOTH)
    assert losses(apart) == pytest.approx(losses(packed), abs=1e-5)
    assert farthest(apart, packed) < 1e-5
    assert log(packed)[0]["useful"] > log(apart)[0]["useful"]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"num_train_epochs": 1.0}, 2),  # 4 batches of 2, 3 at a time
        ({"num_train_epochs": 3}, 4),
        ({"num_train_epochs": 0.1}, 1),
        ({"num_train_epochs": 3, "max_steps": 1}, 1),
    ],
)
def test_steps_of_a_run(run: Runner, changes: dict[str, Any], steps: int) -> None:
    done = run("run", per_device_train_batch_size=2, gradient_accumulation_steps=3, **changes)
    assert [line["step"] for line in log(done)] == list(range(1, steps + 1))


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"save_strategy": "steps", "save_steps": 2}, [2, 4, 5]),
        ({"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}, [4, 5]),
        ({"save_strategy": "steps", "save_steps": 9}, [5]),
        ({"save_strategy": "epoch"}, [4, 5]),
        ({"save_strategy": "no"}, []),
    ],
)
def test_which_checkpoints_stay(run: Runner, changes: dict[str, Any], kept: list[int]) -> None:
    assert checkpoints(run("run", max_steps=5, per_device_train_batch_size=2, **changes)) == kept


@pytest.mark.parametrize(
    ("changes", "at"),
    [
        ({"evaluation_strategy": "steps", "eval_steps": 2}, [2, 4, 5]),
        ({"evaluation_strategy": "epoch"}, [4, 5]),
        ({"do_eval": True}, [5]),
        ({}, []),
    ],
)
def test_when_it_is_evaluated(run: Runner, changes: dict[str, Any], at: list[int]) -> None:
    done = run("run", max_steps=5, per_device_train_batch_size=2, **changes)
    assert [line["step"] for line in log(done) if "eval_loss" in line] == at


def test_evaluating_changes_nothing_that_is_learnt(run: Runner) -> None:
    lora = {"lora": True, "lora_rank": 4, "lora_dropout": 0.3, "max_steps": 2}
    often = run("often", evaluation_strategy="steps", eval_steps=1, **lora)
    assert weights(often) == weights(run("never", **lora))


def test_a_pattern_that_spares_nothing_is_said(run: Runner) -> None:
    run("run", freeze_exclude=["*.vision_tower.*"], do_train=False, do_eval=True)
    assert run.said[0].startswith("freeze_exclude: '*.vision_tower.*' has no effect")


def test_evaluation_alone(run: Runner) -> None:
    one = run("one", do_train=False, do_eval=True, per_device_eval_batch_size=1)
    three = run("three", do_train=False, do_eval=True, per_device_eval_batch_size=3)
    assert not (one / "model.safetensors").exists()
    (first,), (second,) = log(one), log(three)
    assert first["eval_loss"] == pytest.approx(second["eval_loss"], abs=1e-5)
    trained = run("trained", max_steps=1, per_device_train_batch_size=8)  # on just these samples
    assert losses(trained)[0] == pytest.approx(first["eval_loss"], abs=1e-5)
    before = log(trained)
    run("trained", do_train=False, do_eval=True)
    assert log(trained)[:-1] == before


def test_a_seed_of_many_digits(run: Runner) -> None:
    """Such as the time in milliseconds; those that Paddle takes as they are stay what they were."""
    lora = {"lora": True, "lora_rank": 4, "lora_dropout": 0.3, "max_steps": 2}
    assert len(losses(run("run", seed=1_718_200_000_000, **lora))) == 2
    assert step._step_seed(7, 2, 1) == (7 * 1_000_003 + 2) * 1_009 + 1


def test_nothing_to_do(run: Runner) -> None:
    with pytest.raises(LlavaError, match="do_train and do_eval"):
        run("run", do_train=False)


def test_the_best_model_is_put_back(run: Runner) -> None:
    """A rate that ruins the model: the best is the first."""
    ruinous = {"max_steps": 3, "learning_rate": 0.3, "per_device_train_batch_size": 2, "warmup_steps": 1}
    ruinous |= {"evaluation_strategy": "steps", "eval_steps": 1}
    best = run("best", load_best_model_at_end=True, **ruinous)
    found = [line["eval_loss"] for line in log(best) if "eval_loss" in line]
    assert found.index(min(found)) < 2, found
    again = run("again", do_train=False, do_eval=True, model_name_or_path=str(best))
    assert log(again)[0]["eval_loss"] == pytest.approx(min(found), abs=1e-5)
    assert weights(best) != weights(run("last", **ruinous))


def test_a_loss_that_is_no_number_is_not_the_best(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([float("nan"), 2.0, 3.0])
    monkeypatch.setattr(recipe, "evaluate", lambda *_: next(found))
    run("run", max_steps=3, evaluation_strategy="steps", eval_steps=1, load_best_model_at_end=True)
    assert run.heard("the best model, of step 2, is put back: eval loss 2.0000")


def test_the_best_of_what(run: Runner) -> None:
    with pytest.raises(LlavaError, match="evaluation_strategy"):
        run("run", load_best_model_at_end=True)


def test_a_finished_run_is_left_alone(run: Runner) -> None:
    steps = {"save_strategy": "steps", "save_steps": 2}
    first = run("run", max_steps=2, **steps)
    before = (first / "model.safetensors").stat()
    run("run", max_steps=2, **steps)
    assert run.heard("finished already, after 2 steps")
    assert (first / "model.safetensors").stat().st_mtime_ns == before.st_mtime_ns
    longer = weights(run("run", max_steps=4, **steps))
    assert run.heard("going on from")
    assert [line["step"] for line in log(first)] == [1, 2, 3, 4]
    assert longer == weights(run("straight", max_steps=4, **steps))
    run("run", max_steps=1, overwrite_output_dir=True, **steps)
    assert checkpoints(first) == [1]
    assert [line["step"] for line in log(first)] == [1]


def test_resuming_from_a_given_checkpoint(run: Runner) -> None:
    whole = run("whole", max_steps=4, save_strategy="steps", save_steps=1)
    again = run("again", max_steps=4, resume_from_checkpoint=str(whole / "checkpoint-2"))
    assert weights(again) == weights(whole)
    assert losses(again) == losses(whole)[2:]
    with pytest.raises(LlavaError, match="nowhere"):
        run("third", resume_from_checkpoint=str(run.folder / "nowhere"))
    with pytest.raises(LlavaError, match=r"seed = 42, now it is 1"):
        run("fourth", resume_from_checkpoint=str(whole / "checkpoint-2"), seed=1)


def test_a_checkpoint_that_another_run_went_on_from(run: Runner) -> None:
    """Its steps and those of the run that begins there would mix, whichever is newest then."""
    steps = {"save_strategy": "steps", "save_steps": 1}
    out = run("run", max_steps=2, **steps)
    first, second = (str(out / f"checkpoint-{step}") for step in (1, 2))
    said = "checkpoint-2 is later.*; leave resume_from_checkpoint out to go on"
    with pytest.raises(LlavaError, match=said):
        run("run", max_steps=2, resume_from_checkpoint=first, **steps)
    with pytest.raises(LlavaError, match="leave overwrite_output_dir and resume_from_checkpoint out to go on"):
        run("run", max_steps=2, resume_from_checkpoint=first, overwrite_output_dir=True, **steps)
    assert checkpoints(out) == [1, 2]
    assert (out / "training_result.json").exists()
    run("run", max_steps=3, resume_from_checkpoint=second, **steps)
    (out / "best").mkdir()
    (out / "checkpoint-3").rename(out / "best" / "checkpoint-3")
    with pytest.raises(LlavaError, match=r"best.checkpoint-3 is later"):
        run("run", max_steps=3, resume_from_checkpoint=second, **steps)


Spoil = Callable[[str, Callable[[paddle.Tensor], paddle.Tensor]], None]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spoil]:
    """`spoil(record, change)`: the loss of a batch with `record` goes through `change`."""
    right = step.Stepper._loss

    def spoil(record: str, change: Callable[[paddle.Tensor], paddle.Tensor]) -> None:
        def loss(stepper: Any, batch: Any) -> paddle.Tensor:
            names = [name for row in batch["records"] for name in row]
            value = right(stepper, batch)
            return change(value) if any(name.endswith(record) for name in names) else value

        monkeypatch.setattr(step.Stepper, "_loss", loss)

    return spoil  # type: ignore[return-value]


def infinite_slope(loss: paddle.Tensor) -> paddle.Tensor:
    """The same value, with a gradient that is no number."""
    return loss + paddle.sqrt(loss - loss)


@pytest.mark.parametrize("change", [lambda loss: loss * float("nan"), infinite_slope], ids=["loss", "gradient"])
def test_a_loss_that_is_no_number(run: Runner, spoil: Spoil, change: Any) -> None:
    spoil("record 3", change)
    with pytest.raises(LlavaError, match=r"step \d: the (loss|gradient) is not a number for .*train.json: record 3;"):
        run("error", max_steps=8)
    done = run("skip", max_steps=8, on_bad_sample="skip", save_strategy="steps")
    assert run.heard("skipped")
    assert run.heard("record 3: no finite loss")
    assert 0.0 not in losses(done)
    assert json.loads((done / "checkpoint-8" / "trainer_state.json").read_text())["skipped"] == 1
    assert all(np.isfinite(array).all() for array in tensors(done).values())


def test_a_skipped_batch_leaves_the_step_to_the_others(run: Runner, spoil: Spoil) -> None:
    """A step with a batch that is lost is the step of those that are left."""
    data = run.folder / "two.json"
    records = json.loads(run.data.read_text())[::4]
    data.write_text(json.dumps(records))
    one = run.folder / "one.json"
    one.write_text(json.dumps(records[:1]))
    left = run("left", data=one, max_steps=1, **SMOOTH)
    spoil("two.json: record 2", lambda loss: loss * float("inf"))
    both = run("both", data=data, max_steps=1, gradient_accumulation_steps=2, on_bad_sample="skip", **SMOOTH)
    assert losses(both) == pytest.approx(losses(left), abs=1e-5)
    assert farthest(both, left) < 1e-5


def test_a_model_that_has_diverged_is_not_trained_on(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor kept: what was learnt is no use any more."""
    right, calls = step.Stepper._loss, count(1)

    def ruin(stepper: Any, batch: Any) -> paddle.Tensor:
        head = stepper.model.lm_head.weight
        if next(calls) == 2:
            head.set_value(head * float("nan"))
        return right(stepper, batch)

    monkeypatch.setattr(step.Stepper, "_loss", ruin)
    with pytest.raises(LlavaError, match="diverged"):
        run("run", max_steps=2, on_bad_sample="skip")
    assert run.heard("stopped after step 1; nothing was saved yet")
    assert checkpoints(run.folder / "run" / "out") == []


def test_a_picture_that_cannot_be_read(run: Runner) -> None:
    data = write_records(run.folder, 8)
    (run.folder / "5.png").write_bytes(b"no picture")
    with pytest.raises(LlavaError, match="record 6"):
        run("error", data=data)
    done = run("skip", data=data, on_bad_sample="skip", save_strategy="steps")
    assert run.heard("skipped")
    assert run.heard("record 6")
    assert run.heard("1 records or batches could not be used")
    assert json.loads((done / "checkpoint-8" / "trainer_state.json").read_text())["skipped"] == 1


def test_an_evaluation_leaves_out_what_cannot_be_used(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says what: neither is a neighbour counted twice, nor is one loss that is no number all of it."""
    good = json.loads(write_records(run.folder, 3, pictures=False).read_text())
    fewer, more = run.folder / "fewer.json", run.folder / "more.json"
    fewer.write_text(json.dumps(good[:2]))
    more.write_text(json.dumps([good[0], {"conversations": [["Hello", " "]]}, good[2], good[1]]))
    alone = {"do_train": False, "do_eval": True}
    right = step._loss_of

    def spoiled(model: Any, batch: Any, *others: Any) -> float:
        lost = any("more.json: record 3" in name for row in batch["records"] for name in row)
        return float("nan") if lost else right(model, batch, *others)

    monkeypatch.setattr(step, "_loss_of", spoiled)
    expected = log(run("expected", data=fewer, **alone))[0]["eval_loss"]
    found = log(run("found", data=more, on_bad_sample="skip", **alone))[0]["eval_loss"]
    assert found == pytest.approx(expected, abs=1e-6)
    assert [line.partition("record")[2][:2] for line in run.said if line.startswith("skipped")] == [" 2", " 3"]
    more.write_text(json.dumps([good[0], good[1], good[2]]))
    with pytest.raises(LlavaError, match=r"record 3: no finite loss in an evaluation; on_bad_sample: skip"):
        run("error", data=more, **alone)


def test_a_sample_without_an_answer(run: Runner) -> None:
    data = run.folder / "train.json"
    data.write_text(json.dumps([{"conversations": [["Hello", "trees"]]}, {"conversations": [["Hello", " "]]}]))
    with pytest.raises(LlavaError, match=r"record 2.*no answer"):
        run("error", data=data, max_steps=2)


def test_a_full_disk_keeps_the_checkpoint_before(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = run("straight", max_steps=4)
    steps = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    right, written = checkpoint.write_safetensors, []

    def fill(path: Path, *arguments: Any) -> None:
        written.append(path)
        if len(written) == 4:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        right(path, *arguments)

    monkeypatch.setattr(checkpoint, "write_safetensors", fill)
    with pytest.raises(LlavaError, match="the disk is full"):
        run("run", **steps)
    assert checkpoints(run.folder / "run" / "out") == [2]
    assert weights(run("run", **steps)) == weights(straight)


def test_workers_change_nothing(run: Runner) -> None:
    none = run("none", max_steps=3, mixtoken=True)
    two = run("two", max_steps=3, mixtoken=True, dataloader_num_workers=2)
    assert losses(none) == losses(two)
    assert weights(none) == weights(two)


def test_recomputing_changes_no_loss(run: Runner) -> None:
    lora = {"lora": True, "lora_rank": 4, "lora_dropout": 0.3, "max_steps": 2}
    assert losses(run("stored", **lora)) == pytest.approx(losses(run("anew", recompute=True, **lora)), abs=1e-5)
