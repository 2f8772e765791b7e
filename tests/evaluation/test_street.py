"""The street set: the figures of `llava eval street` are those that training prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from paddle_llava import LlavaProcessor
from paddle_llava.demo.evaluate import ask_all, figures
from paddle_llava.engines.paddle import PaddleEngine
from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.answering import Answerer
from paddle_llava.evaluation.predictions import Run, read_predictions, write_predictions
from paddle_llava.evaluation.records import Prediction
from paddle_llava.evaluation.run import read_questions
from paddle_llava.evaluation.tasks import load_task
from paddle_llava.evaluation.tasks.files import Data


def test_the_street_figures_are_those_that_training_prints(
    parts: tuple[PaddleEngine, LlavaProcessor], tmp_path: Path
) -> None:
    engine, processor = parts
    answered = ask_all(engine.network, processor, 2)
    table = figures(answered)
    questions = read_questions("street", Data((Path("2"),)))
    said = [it for batch in Answerer(engine, processor).answer(questions) for it in batch]
    # A random model's figures are all alike; its answers are not, and are as long as they may be.
    assert sorted((it.picture, it.turn.question, it.answer) for it in answered) == sorted(
        (it.question.meta["picture"], it.question.prompt, it.answer) for it in said
    )
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, Run("street", "m", len(said)), said)
    scores = load_task("street").score(read_predictions(path)[1])
    assert scores.groups == table
    assert scores.figures["exact"] == table["vqa"]["exact"]
    # Right answers, to see that the figures can differ from a random model's.
    right = [Prediction(question, question.references[0]) for question in questions]
    assert load_task("street").score(right).figures["exact"] == 1.0


def test_the_street_takes_a_number_of_pictures() -> None:
    with pytest.raises(LlavaError, match="a number of pictures"):
        read_questions("street", Data((Path("pictures.json"),)))
