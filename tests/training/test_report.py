"""The page, the log, and what is said while a run goes."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from html_page import Page
from paddle_llava.errors import LlavaError
from paddle_llava.training import report
from paddle_llava.training.chart import HEIGHT, LEFT, MOST_POINTS, WIDTH, Series, line_chart, smoothed
from paddle_llava.training.checkpoint import TrainerState
from paddle_llava.training.config import TrainingConfig
from paddle_llava.training.log import TrainingLog, duration, tell
from paddle_llava.training.parallel import World
from paddle_llava.training.plan import Plan, make_plan
from paddle_llava.training.report import Prediction, render_report
from training_runs import Runner, log, losses, write_records

EVIL = "<script>alert(1)</script>\"'&"


@pytest.fixture
def run(tmp_path: Path, demo_checkpoint: Path) -> Runner:
    return Runner(tmp_path, demo_checkpoint, write_records(tmp_path, 8))


def test_the_page_of_a_run(run: Runner) -> None:
    done = run("run", max_steps=3, evaluation_strategy="steps", eval_steps=1, per_device_train_batch_size=2)
    text = (done / "report.html").read_text()
    page = Page(text)
    assert run.heard(f"report: {done / 'report.html'}")
    assert page.count("svg") == 5
    assert page.count("article") == 6
    assert page.count("img") == 4  # of eight records: they come first
    assert "finished" in text
    assert "prefers-color-scheme: dark" in text
    outside = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert all((value or "").startswith("data:image/jpeg;base64,") for value in outside)
    assert page.count("script") == 0
    assert "http" not in text
    assert all(line["peak_memory_gib"] > 0.01 for line in log(done) if "loss" in line)


def test_what_the_model_says_is_its_greedy_answer(run: Runner) -> None:
    """After enough steps on one sentence the model says it."""
    data = run.folder / "one.json"
    data.write_text(json.dumps([{"conversations": [["What is it?", "a red bus"]]}]))
    done = run("run", data=data, max_steps=40, logging_steps=10)
    text = (done / "report.html").read_text()
    assert text.count("a red bus") == 2  # the model's and the reference
    assert len(log(done)) == 4


def test_a_bad_record_is_not_shown(run: Runner) -> None:
    records = json.loads(run.data.read_text())
    data = run.data.with_name("bad.json")
    data.write_text(json.dumps([*records[:3], {"conversations": []}, records[2] | {"image": "nowhere.png"}]))
    done = run("run", data=data, max_steps=1, on_bad_sample="skip")
    assert Page((done / "report.html").read_text()).count("article") == 3


def test_a_sample_is_asked_with_its_system_text(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    data, asked = run.folder / "system.json", []
    turns = [("system", "Answer in French."), ("human", "What is it?"), ("gpt", "un bus")]
    data.write_text(json.dumps([{"conversations": [{"from": who, "value": text} for who, text in turns]}]))
    right = report.ChatSession.ask

    def ask(session: Any, *arguments: Any) -> Any:
        asked.append(session.template.system)
        return right(session, *arguments)

    monkeypatch.setattr(report.ChatSession, "ask", ask)
    run("run", data=data, max_steps=1)
    assert asked == ["Answer in French."]


def test_what_utf_8_cannot_hold(run: Runner) -> None:
    """Half a surrogate pair in a sample, and a folder with a name of other bytes."""
    data = run.folder / "half.json"
    data.write_text(
        json.dumps([{"conversations": [["What is it?", "a bus"]]}, {"conversations": [["What?", "\ud83d"]]}])
    )
    out = run.folder / "out\udcff"
    run("run", data=data, max_steps=1, on_bad_sample="skip", output_dir=str(out))
    text = (out / "report.html").read_text()
    assert "a bus" in text
    assert "out?" in text


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig.from_dict(
        {"model_name_or_path": "some/model", "dataset": {"train": [{"data_files": "t"}]}, "output_dir": "o", **changes}
    )


PLAN = Plan({"projector": (5, 10), "lm_head": (0, 0)}, 3, False, 1, 10, 4, 4)


def test_what_comes_from_outside_is_escaped() -> None:
    page = render_report(
        config(model_name_or_path=EVIL, output_dir=EVIL),
        PLAN,
        TrainerState(step=1),
        3,
        [],
        [Prediction(EVIL, EVIL, EVIL, EVIL, (b"jpeg",))],
    )
    assert Page(page).count("script") == 0
    assert "stopped after step 1 of 3" in page
    assert "nothing was recorded" in page


def test_steps_that_were_skipped_and_evaluations_that_are_no_number() -> None:
    steps = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}]
    evaluations = [{"step": 1, "eval_loss": math.nan}, {"step": 2, "eval_loss": 3.0}]
    page = render_report(config(), PLAN, TrainerState(step=2), 2, [*steps, *evaluations], [])
    assert "<dd>2.0000</dd><dt>loss at the end</dt>" in page
    assert "<dd>3.0000</dd><dt>best eval loss, step 2</dt>" in page
    nothing = render_report(config(), PLAN, TrainerState(step=2), 2, steps[1:] + evaluations[:1], [])
    assert "best eval loss" not in nothing
    assert "<dt>loss at the end" not in nothing


@given(st.lists(st.floats(), max_size=40))
def test_any_numbers_can_be_drawn(values: list[float]) -> None:
    values = [value for value in values if not abs(value) > 1e300]
    svg = line_chart("any", [Series("any", list(enumerate(values)), marks=True)])
    if any(map(math.isfinite, values)):
        page = Page(svg)
        assert page.count("circle") == sum(map(math.isfinite, values))
        places = [(float(a["cx"] or 0), float(a["cy"] or 0)) for name, a in page.tags if name == "circle"]
        assert all(LEFT - 1 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)


def test_a_long_run_makes_a_small_chart() -> None:
    svg = line_chart("loss", [Series("loss", [(float(n), 1 / n) for n in range(1, 100_000)])])
    (points,) = (a["points"] for name, a in Page(svg).tags if name == "polyline")
    assert len((points or "").split()) <= MOST_POINTS


def test_smoothing_begins_at_the_first_value() -> None:
    points = smoothed([(1, 8.0), (2, math.nan), (3, 4.0), (4, 4.0)])
    assert points[0] == (1, pytest.approx(8.0))
    assert [x for x, _ in points] == [1, 3, 4]
    assert 4 < points[-1][1] < 6


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (99, "99 s"), (600, "10 min"), (12_000, "3 h 20 min"), (200_000, "2 d 7 h")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


COUNTS = {"tokens": 20, "useful": 10, "targets": 5}


def test_plain_lines_in_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingLog(tmp_path, 30, 0, every=5, live=True) as training:
        for step in range(1, 31):
            training.step(step, 2.0 if step % 2 else 4.0, 1e-4, COUNTS)
    lines = capsys.readouterr().err.splitlines()
    steps = [line for line in lines if line.startswith("step")]
    assert [line.split()[1] for line in steps] == ["5/30", "10/30", "15/30", "20/30", "25/30", "30/30"]
    assert "loss 2.8000  lr 1.00e-04" in steps[0]
    assert "useful 50%" in steps[0]
    (estimate,) = (line for line in lines if "about" in line)
    assert "for the 20 steps that are left" in estimate


def test_a_skipped_step_has_no_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingLog(tmp_path, 4, 0, every=2, live=False) as training:
        for step, loss in enumerate([2.0, None, None, None], 1):
            training.step(step, loss, 1e-4, {**COUNTS, "grad_norm": 3.0 if loss else 0.0})
    assert losses(tmp_path) == [2.0, None]
    assert [line["grad_norm"] for line in log(tmp_path)] == [3.0, 0.0]  # nor a norm, of which there is a mean
    assert "loss none" in capsys.readouterr().err


def test_a_log_that_cannot_be_written_ends_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingLog(tmp_path, 2, 0, every=1, live=False) as training:
        (tmp_path / "trainer_log.jsonl").symlink_to("/dev/full")
        for step in (1, 2):
            training.step(step, 1.0, 1e-4, COUNTS)
    told = [line for line in capsys.readouterr().err.splitlines() if "cannot be written" in line]
    assert len(told) == 1
    assert "trainer_log.jsonl: cannot be written (No space left on device); the training goes on without" in told[0]


def test_the_last_step_is_always_logged(tmp_path: Path) -> None:
    with TrainingLog(tmp_path, 7, 0, every=5, live=False) as training:
        for step in range(1, 8):
            training.step(step, 1.0, 1e-4, COUNTS)
    assert [line["step"] for line in log(tmp_path)] == [5, 7]


def test_time_aside_is_not_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("paddle_llava.training.log.time.perf_counter", lambda: now[0])
    with TrainingLog(tmp_path, 2, 0, every=1, live=False) as training:
        for step in (1, 2):
            now[0] += 2
            training.step(step, 1.0, 1e-4, COUNTS)
            with training.aside():
                now[0] += 100
    assert [line["seconds"] for line in log(tmp_path)] == [2, 2]


def test_a_repeated_step_replaces_what_was_said_of_it(tmp_path: Path) -> None:
    with TrainingLog(tmp_path, 5, 0, every=1, live=False) as training:
        for step in (1, 2, 3):
            training.step(step, 1.0, 1e-4, COUNTS)
    with (tmp_path / "trainer_log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    with TrainingLog(tmp_path, 5, 2, every=1, live=False) as training:
        training.step(3, 9.0, 1e-4, COUNTS)
    assert [(line["step"], line["loss"]) for line in log(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 9.0)]


def test_a_block_keeps_its_columns_and_no_controls(capsys: pytest.CaptureFixture[str]) -> None:
    tell("a    1\nb\x1b[2J  22")
    tell("one  line")
    assert capsys.readouterr().err == "a    1\nb?[2J  22\nllava: note: one line\n"


def test_the_plan_is_aligned() -> None:
    lines = Plan(
        {"projector": (5_000_000, 10_000_000), "lm_head": (0, 20_000_000)}, 1200, True, 8, 4096, 2**30, 2**31
    ).lines()
    numbers = [line for line in lines[1:] if line.startswith("  ")]
    assert {len(line[:30].rstrip()) for line in numbers if "GiB" not in line[:30]} <= {30, 28}
    assert "5.00 M of 30.00 M parameters learn" in lines[0]
    assert "5.00 M learn" in lines[1]
    assert "frozen" in lines[2]
    assert "1,200   8 sequences each, at most 4,096 tokens; as many as the epochs have, about" in lines[3]


@pytest.mark.parametrize(
    ("sharding", "weights", "training"),
    [("", 80, 40 + 240), ("stage1", 80, 40 + 60), ("stage2", 80, 10 + 60), ("stage3", 20, 10 + 60)],
)
def test_memory_is_what_a_process_holds(sharding: str, weights: int, training: int) -> None:
    """Ten float32 parameters frozen, and twenty in 16 bits that learn, with masters, by four processes."""
    model = paddle.nn.Layer()
    model.vision_tower = paddle.nn.Linear(10, 1, bias_attr=False)
    model.projector = paddle.nn.Linear(20, 1, bias_attr=False).to(dtype="bfloat16")
    model.vision_tower.weight.stop_gradient = True
    plan = make_plan(model, config(sharding=sharding), 1, World(0, 4))
    assert (plan.weight_bytes, plan.training_bytes) == (weights, training)


@pytest.mark.parametrize("name", ["visualdl", "tensorboard"])
def test_trackers(name: str, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    library, writer = {"visualdl": ("visualdl", "LogWriter"), "tensorboard": ("tensorboardX", "SummaryWriter")}[name]
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(LlavaError, match=f"pip install {library}"):
        run("without", max_steps=1, report_to=[name])
    written: list[tuple[str, float, int]] = []
    fake = ModuleType(library)
    one = SimpleNamespace(add_scalar=lambda *args: written.append(args), close=lambda: written.append(("end", 0, 0)))
    setattr(fake, writer, lambda logdir: one)
    monkeypatch.setitem(sys.modules, library, fake)
    done = run("with", max_steps=2, report_to=[name, "none"])
    assert [(value, step) for key, value, step in written if key == "train/loss"] == [
        (line["loss"], line["step"]) for line in log(done)
    ]
    assert written[-1] == ("end", 0, 0)
