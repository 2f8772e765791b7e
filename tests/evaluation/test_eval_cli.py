"""`llava eval` as a user types it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paddle_llava.cli import main
from paddle_llava.evaluation.predictions import PredictionLog, read_predictions
from paddle_llava.evaluation.records import Prediction
from paddle_llava.evaluation.tasks import TASKS

LLAVA = [sys.executable, "-c", "import sys; from paddle_llava.cli import main; sys.exit(main())"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def command(checkpoint: Path, data: Path, *more: str) -> list[str]:
    return ["eval", "pope", "--model-path", str(checkpoint), "--data", str(data), "--max-new-tokens", "4", *more]


def test_from_files_to_figures(
    demo_checkpoint: Path, pope_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(demo_checkpoint, pope_folder)) == 0
    told = capsys.readouterr()
    folder = tmp_path / "eval" / "pope" / demo_checkpoint.name
    result = json.loads((folder / "results.json").read_text())
    assert told.out.startswith(f"POPE, {demo_checkpoint}: 12 questions\n")
    assert f"f1 {result['figures']['f1']:26.2f}"[-9:] in told.out
    assert (folder / "report.html").is_file()
    assert result["run"]["settings"]["template"] == "vicuna_v1"
    assert result["run"]["settings"]["dtype"] == "openvino f32"
    # Once more: nothing is left to ask, and the answer can be had in JSON.
    before = (folder / "predictions.jsonl").read_text()
    assert main(command(demo_checkpoint, pope_folder, "--json")) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["figures"] == result["figures"]
    assert "12 of 12 questions are answered already" in told.err
    assert (folder / "predictions.jsonl").read_text() == before
    # With other settings it would not be the same run.
    assert main(command(demo_checkpoint, pope_folder, "--limit", "3")) == 2
    assert "it holds a run with questions '12', not '3'" in capsys.readouterr().err


def test_answers_of_a_model_are_not_taken_for_those_of_its_next_training(
    demo_checkpoint: Path, pope_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(demo_checkpoint, model)
    assert main(command(model, pope_folder, "--limit", "1")) == 0
    shutil.copy(model / "model.safetensors", model / "new")
    os.replace(model / "new", model / "model.safetensors")
    assert main(command(model, pope_folder, "--limit", "1")) == 2
    assert "of the model as it was before its files changed" in capsys.readouterr().err


def test_shards_and_merge(
    demo_checkpoint: Path, pope_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    for shard in ("1/2", "2/2"):
        if shard == "2/2":
            assert main(["eval", "merge", str(folder)]) == 2
            assert "shard 2/2 is missing" in capsys.readouterr().err
        assert main(command(demo_checkpoint, pope_folder, "--output-dir", str(folder), "--shard", shard)) == 0
        assert not (folder / "results.json").exists()
    capsys.readouterr()
    assert main(["eval", "merge", str(folder)]) == 0
    assert "12 questions" in capsys.readouterr().out
    merged = json.loads((folder / "results.json").read_text())
    assert main(command(demo_checkpoint, pope_folder, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["figures"] == merged["figures"]
    assert len(read_predictions(folder / "predictions.jsonl")[1]) == 12


def test_compare(demo_checkpoint: Path, pope_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, tokens in (("a", "1"), ("b", "4")):
        assert main([*command(demo_checkpoint, pope_folder, "--output-dir", folder), "--max-new-tokens", tokens]) == 0
    capsys.readouterr()
    assert main(["eval", "compare", "a", "b/results.json", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["task"], result["questions"], result["reworded"] > 0) == ("pope", 12, True)


def test_a_bad_picture_is_told_and_nothing_is_lost(
    demo_checkpoint: Path, pope_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pope_folder / "red.png").write_bytes(b"no picture")
    assert main(command(demo_checkpoint, pope_folder, "--json")) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["failed"]["count"] == 4
    assert "4 of 12 questions failed and count as wrong" in told.err
    assert "red.png' is not a picture" in told.err


def test_killed_and_started_again(
    demo_checkpoint: Path, pope_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    slow = command(demo_checkpoint, pope_folder, "--output-dir", str(folder), "--batch-size", "1", "--json")
    slow[slow.index("--max-new-tokens") + 1] = "30"
    path = folder / "predictions.jsonl"
    with subprocess.Popen([*LLAVA, *slow], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 60
        while not (path.is_file() and path.read_bytes().count(b"\n") > 2):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    before = path.read_bytes()
    held = before[: before.rfind(b"\n") + 1]
    assert 2 < held.count(b"\n") < 13
    again = subprocess.run([*LLAVA, *slow], capture_output=True, text=True, check=True)
    answered = held.count(b"\n") - 1
    assert f"{answered} of 12 questions are answered already" in again.stderr
    assert path.read_bytes().startswith(held)
    again_in_one_go = [*slow[: slow.index("--output-dir")], *slow[slow.index("--json") :]]
    assert main(again_in_one_go) == 0
    whole = json.loads(capsys.readouterr().out)
    assert json.loads(again.stdout)["figures"] == whole["figures"]
    assert json.loads(again.stdout)["per_sample"] == whole["per_sample"]


def test_ctrl_c_says_how_to_go_on(
    demo_checkpoint: Path, pope_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(log: PredictionLog, predictions: list[Prediction]) -> None:
        write(log, predictions)
        raise KeyboardInterrupt

    write = PredictionLog.write
    monkeypatch.setattr(PredictionLog, "write", interrupted)
    assert main(command(demo_checkpoint, pope_folder, "--batch-size", "5")) == 130
    assert "5 of 12 answers are kept: the same command goes on from there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pop"], "did you mean 'pope'"),
        (["pope"], "--model-path is missing"),
        (["pope", "--model-path", "m"], "--data is missing: POPE needs coco_pope_random.json"),
        (["pope", "--model-path", "m", "--data", "nowhere"], "nowhere: cannot be read"),
        (["pope", "--model-path", "m", "--shard", "3/2"], "--shard 3/2: I/N is expected"),
        (["pope", "--model-path", "m", "--shard", "x"], "--shard x: I/N is expected"),
        (["pope", "--model-path", "m", "--batch-size", "0"], "batch-size"),
        (["street", "--model-path", "m", "--data", "many"], "a number of pictures"),
        (["merge", "."], "no predictions-1-of-N.jsonl"),
        (["merge", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *arguments]) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert told.err.count("\n") == 1
    assert not told.out


def test_a_bad_model_is_told_after_the_data_was_read(pope_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pope_folder / "config.json").write_text("{}")
    assert main(["eval", "gqa", "--model-path", str(pope_folder), "--data", str(pope_folder)]) == 2
    assert "no questions.json file is there" in capsys.readouterr().err


def test_help_lists_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in TASKS)
    assert main(["eval", "mmbench", "--help"]) == 0
    assert "mmbench_dev_20230712.tsv" in capsys.readouterr().out


def test_the_command_line_stays_light() -> None:
    code = "import sys, paddle_llava.cli; print([n for n in ('paddle', 'numpy', 'PIL', 'rich') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "title"), [("caption", "COCO captions"), ("vqa", "VQAv2"), ("grounding", "RefCOCO")])
def test_usual_tasks_have_short_names(name: str, title: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", name, "--model-path", "nowhere"]) == 2
    assert f"--data is missing: {title} needs" in capsys.readouterr().err
