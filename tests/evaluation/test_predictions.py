"""Predictions on disk: runs that are stopped and go on, shards, and files of something else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paddle_llava import LlavaProcessor
from paddle_llava.engines.paddle import PaddleEngine
from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.answering import Answerer
from paddle_llava.evaluation.predictions import (
    PredictionLog,
    Run,
    merge_predictions,
    read_predictions,
    write_predictions,
)
from paddle_llava.evaluation.records import Prediction, Question
from paddle_llava.evaluation.run import ask, read_questions
from paddle_llava.evaluation.tasks import load_task
from paddle_llava.evaluation.tasks.files import Data


class Stopped(Exception):
    """As if the process were killed."""


class StoppingAnswerer:
    """Answers a batch or two, and then the process ends."""

    def __init__(self, answerer: Answerer, batches: int) -> None:
        self.answerer, self.batches = answerer, batches

    def answer(self, questions: list[Question]) -> Iterator[list[Prediction]]:
        for number, batch in enumerate(self.answerer.answer(questions)):
            if number == self.batches:
                raise Stopped
            yield batch


def test_a_stopped_run_goes_on_and_scores_the_same(
    parts: tuple[PaddleEngine, LlavaProcessor], questions: list[Question], run: Run, tmp_path: Path
) -> None:
    with PredictionLog(tmp_path / "whole.jsonl", run) as log:
        whole = ask(Answerer(*parts), questions, log)
    path = tmp_path / "stopped.jsonl"
    stopping: Any = StoppingAnswerer(Answerer(*parts, batch_size=5), 1)
    with pytest.raises(Stopped), PredictionLog(path, run) as log:
        ask(stopping, questions, log)
    with path.open("a") as file:
        file.write('{"id": "random/0", "prompt": "Is th')  # the line that was being written
    assert len(read_predictions_of(path)) == 5
    told: list[tuple[int, int]] = []
    answerer = Answerer(*parts, batch_size=5)
    with PredictionLog(path, run) as log:
        assert len(log.done) == 5
        again = ask(answerer, questions, log, lambda done, of: told.append((done, of)))
    assert told == [(5, 12), (10, 12), (12, 12)]
    assert again == whole
    assert load_task("pope").score(again) == load_task("pope").score(whole)
    assert read_predictions(path)[0] == run
    assert {it.id: it for it in read_predictions(path)[1]} == {it.id: it for it in whole}


def read_predictions_of(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines()[1:] if line.endswith("}")]


def test_failed_questions_are_asked_again(
    parts: tuple[PaddleEngine, LlavaProcessor], questions: list[Question], run: Run, pope_folder: Path, tmp_path: Path
) -> None:
    picture = pope_folder / "red.png"
    content = picture.read_bytes()
    picture.unlink()
    with PredictionLog(tmp_path / "p.jsonl", run) as log:
        assert sum(it.error is not None for it in ask(Answerer(*parts), questions, log)) == 4
    picture.write_bytes(content)
    with PredictionLog(tmp_path / "p.jsonl", run) as log:
        assert not any(it.error for it in ask(Answerer(*parts), questions, log))
    assert not any(it.error for it in read_predictions(tmp_path / "p.jsonl")[1])


def test_another_runs_file_is_not_written_over(run: Run, questions: list[Question], tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, run, [Prediction(questions[0], "Yes")])
    for other, told in (
        (replace(run, model="b"), "model 'llava-demo', not 'b'"),
        (replace(run, settings={"template": "llava_v0"}), "template 'vicuna_v1', not 'llava_v0'"),
        (replace(run, questions=3), "questions '12', not '3'"),
    ):
        with pytest.raises(LlavaError, match=rf"it holds a run with {told}"):
            PredictionLog(path, other)
    with pytest.raises(LlavaError, match="of the model as it was before its files changed"):
        PredictionLog(path, replace(run, checkpoint="another"))
    answerer: Any = StoppingAnswerer(None, 0)  # type: ignore[arg-type]
    for other in ({"prompt": "Is it another question?"}, {"images": ("elsewhere/red.png",)}):
        asked = [replace(questions[0], **other)]
        with PredictionLog(path, run) as log, pytest.raises(LlavaError, match="question adversarial/0 was another one"):
            ask(answerer, asked, log)


def test_predictions_come_back_as_they_were(tmp_path: Path) -> None:
    question = Question(
        "七/1",
        "Wo?\n\u2028",
        ("a.png", "b.png"),
        ("x", "half \ud800"),
        {"box": [1, 2.5], "ocr": False},
        9,
        (("a", "b"),),
        "s",
    )
    predictions = [Prediction(question, "线\u0085\n"), Prediction(Question("2", "bare"), "", "no picture")]
    run = Run("custom", "m", 2, {"data": ["a"], "limit": None}, (2, 3))
    write_predictions(tmp_path / "p.jsonl", run, predictions)
    assert read_predictions(tmp_path / "p.jsonl") == (run, predictions)


@pytest.mark.parametrize(
    "content", ["", "{}\n", "[1]\n", "not json\n", '{"run": {"task": "pope"}}\n', '{"run": 3}\n', "\n\n"]
)
def test_a_file_of_something_else_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text(content)
    with pytest.raises(LlavaError, match=r"predictions\.jsonl"):
        read_predictions(path)


@pytest.mark.parametrize("line", ['{"id": "1"}', '{"id": 1, "prompt": "x", "answer": "y"}', '{"more": 1}', "[]", "3"])
def test_a_bad_line_is_named(line: str, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, run, [])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(LlavaError, match="line 2"):
        read_predictions(path)


def test_shards_make_the_whole(
    parts: tuple[PaddleEngine, LlavaProcessor], pope_folder: Path, run: Run, tmp_path: Path
) -> None:
    data = Data((pope_folder,))

    def short(shard: tuple[int, int]) -> list[Question]:
        return [replace(it, max_new_tokens=4) for it in read_questions("pope", data, limit=11, shard=shard)]

    with PredictionLog(tmp_path / "whole.jsonl", run) as log:
        whole = ask(Answerer(*parts), short((1, 1)), log)
    paths = []
    for number in (1, 2, 3):
        questions = short((number, 3))
        paths.append(tmp_path / f"{number}.jsonl")
        with PredictionLog(paths[-1], replace(run, questions=len(questions), shard=(number, 3))) as log:
            ask(Answerer(*parts), questions, log)
    merged, predictions = merge_predictions(paths)
    assert merged == replace(run, questions=11)
    assert sorted(predictions, key=lambda it: it.id) == sorted(whole, key=lambda it: it.id)
    assert load_task("pope").score(predictions).figures == load_task("pope").score(whole).figures

    with pytest.raises(LlavaError, match="shard 2/3 is missing"):
        merge_predictions([paths[0], paths[2]])
    with pytest.raises(LlavaError, match=r"shard 1/3 is in .* already"):
        merge_predictions([paths[0], paths[0]])
    with pytest.raises(LlavaError, match="not a shard of the run in"):
        merge_predictions([paths[0], tmp_path / "whole.jsonl"])
    lines = paths[1].read_text().splitlines(keepends=True)
    paths[1].write_text("".join(lines[:-1]))
    with pytest.raises(LlavaError, match="3 of 4 questions are answered"):
        merge_predictions(paths)
