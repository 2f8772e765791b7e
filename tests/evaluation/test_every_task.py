"""Each task as a user runs it: from the benchmark's files through a model to figures and a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmark_files import Write, good_files, read
from PIL import Image

from html_page import Page
from paddle_llava.cli import main
from paddle_llava.evaluation.metrics import captions
from paddle_llava.evaluation.predictions import read_predictions
from paddle_llava.evaluation.tasks import TASKS, load_task


@pytest.mark.parametrize("task", TASKS)
def test_from_files_to_figures(
    task: str,
    write: Write,
    tmp_path: Path,
    demo_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(captions, "java_tokenizer", lambda: None)  # METEOR takes its time
    files = good_files(task, write, tmp_path)
    questions = read(task, *files)
    for picture in {Path(picture) for question in questions for picture in question.images}:
        if tmp_path in picture.parents:  # the others come with the task
            picture.parent.mkdir(exist_ok=True)
            Image.new("RGB", (60, 40), "navy").save(picture, "PNG")
    folder = tmp_path / "out"
    asked = ["--model-path", str(demo_checkpoint), "--max-new-tokens", "3", "--output-dir", str(folder), "--json"]
    assert main(["eval", task, *(part for path in files for part in ("--data", str(path))), *asked]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["task"], result["failed"]["count"]) == (task, 0)
    headline = result["headline"]["name"]
    assert result["headline"]["value"] == result["figures"][headline]
    if result["figures"][headline] > 0:
        low, high = result["intervals"][headline]
        assert low <= result["figures"][headline] <= high
    run, predictions = read_predictions(folder / "predictions.jsonl")
    assert {it.id for it in predictions} == {question.id for question in questions}
    assert len(predictions) == len(questions) == run.questions
    # What was written suffices to score again, and says the same.
    scores = load_task(task).score(predictions)
    assert (scores.figures, scores.groups) == (result["figures"], result["groups"])
    for name, strata in scores.strata.items():
        sums = [[sum(column) for column in zip(*rows, strict=True)] for rows in strata]
        assert sum(above / below if below else 0.0 for above, below in sums) == pytest.approx(scores.figures[name])
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert len(page.of("article")) == len(scores.per_sample)
    assert len(page.of("img")) == sum(len(it.question.images) for it in predictions if it.id in scores.per_sample)
