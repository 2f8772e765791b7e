"""What a run asks, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.predictions import (
    Run,
)
from paddle_llava.evaluation.published import published_score
from paddle_llava.evaluation.records import Prediction, Question
from paddle_llava.evaluation.run import finish, read_questions
from paddle_llava.evaluation.tasks.files import Data


def test_limit_and_shard_choose_questions(pope_folder: Path) -> None:
    data = Data((pope_folder,))
    whole = [question.id for question in read_questions("pope", data)]
    assert [question.id for question in read_questions("pope", data, limit=5)] == whole[:5]
    assert [question.id for question in read_questions("pope", data, limit=5, shard=(2, 2))] == whole[1:5:2]
    with pytest.raises(LlavaError, match="fewer questions than shards"):
        read_questions("pope", data, limit=2, shard=(3, 3))


def test_a_wrong_image_folder_is_said_before_anything_is_asked(
    pope_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LlavaError, match=r"nowhere/red\.png: no such file .*--image-folder"):
        read_questions("pope", Data((pope_folder,), tmp_path / "nowhere"))
    (pope_folder / "red.png").unlink()
    assert len(read_questions("pope", Data((pope_folder,)))) == 12
    assert "1 of 4 pictures are missing" in capsys.readouterr().err


def test_data_is_asked_for() -> None:
    with pytest.raises(LlavaError, match=r"--data is missing: MMBench needs mmbench_dev_20230712\.tsv"):
        read_questions("mmbench", Data(()))


def test_results_hold_the_scores_and_what_they_depend_on(questions: list[Question], tmp_path: Path) -> None:
    run = Run("pope", "liuhaotian/llava-v1.5-7b", 12, {"template": "vicuna_v1"})
    predictions = [Prediction(question, question.references[0].capitalize()) for question in questions[:-1]]
    predictions.append(Prediction(questions[-1], "", "no such picture"))
    scores = finish(run, predictions, tmp_path)
    result = json.loads((tmp_path / "results.json").read_text())
    assert (result["task"], result["model"], result["questions"]) == ("pope", "liuhaotian/llava-v1.5-7b", 12)
    assert result["headline"] == {"name": "f1", "value": scores.figures["f1"]}
    assert result["figures"] == scores.figures
    assert result["figures"]["accuracy"] == pytest.approx((100 + 100 * 5 / 6) / 2)
    assert result["failed"] == {"count": 1, "first": [f"{questions[-1].id}: no such picture"]}
    assert result["published"]["value"] == 85.9
    assert result["run"]["settings"] == {"template": "vicuna_v1"}
    assert {"paddle_llava", "python", "numpy"} <= result["versions"].keys()
    assert np.mean(list(result["per_sample"].values())) == pytest.approx(11 / 12)
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("task", "model", "score"),
    [
        ("gqa", "llava-hf/llava-1.5-7b-hf", ("llava-1.5-7b", 62.0)),
        ("gqa", "/models/llava-v1.5-13b/", ("llava-1.5-13b", 63.3)),
        ("mme", "liuhaotian/llava-v1.6-mistral-7b", ("llava-1.6-mistral-7b", 1498.0)),
        ("seed", "liuhaotian/llava-v1.5-7b-lora", None),
        ("custom", "llava-hf/llava-1.5-7b-hf", None),
        ("gqa", "mine", None),
    ],
)
def test_published_scores_are_found_by_name(task: str, model: str, score: tuple[str, float] | None) -> None:
    assert published_score(task, model) == score
