"""Runs: batches, resuming, shards, pictures that fail, and what is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from paddle_llava import LlavaForConditionalGeneration, LlavaProcessor
from paddle_llava.demo.evaluate import ask_all, figures
from paddle_llava.engines.paddle import PaddleEngine
from paddle_llava.errors import LlavaError
from paddle_llava.evaluation import answering
from paddle_llava.evaluation.answering import Answerer
from paddle_llava.evaluation.predictions import (
    PredictionLog,
    Run,
    merge_predictions,
    read_predictions,
    write_predictions,
)
from paddle_llava.evaluation.published import published_score
from paddle_llava.evaluation.records import Prediction, Question
from paddle_llava.evaluation.run import ask, finish, read_questions
from paddle_llava.evaluation.tasks import load_task
from paddle_llava.evaluation.tasks.files import Data
from paddle_llava.processing.images import ImageProcessor
from paddle_llava.processing.templates import TEMPLATES

LONGEST = 6


@pytest.fixture(scope="module")
def parts(demo_checkpoint: Path) -> tuple[PaddleEngine, LlavaProcessor]:
    model = LlavaForConditionalGeneration.from_pretrained(demo_checkpoint)
    return PaddleEngine(model), LlavaProcessor.from_pretrained(demo_checkpoint)


@pytest.fixture
def questions(pope_folder: Path) -> list[Question]:
    found = read_questions("pope", Data((pope_folder,)))
    assert len(found) == 12
    return [replace(question, max_new_tokens=LONGEST) for question in found]


@pytest.fixture
def run() -> Run:
    return Run("pope", "llava-demo", 12, {"template": "vicuna_v1"})


def answers(answerer: Answerer, questions: list[Question]) -> dict[str, str]:
    said = [prediction for batch in answerer.answer(questions) for prediction in batch]
    assert not any(prediction.error for prediction in said)
    return {prediction.id: prediction.answer for prediction in said}


# --- batches ----------------------------------------------------------------------------------------


def test_answers_do_not_depend_on_the_batch(
    parts: tuple[PaddleEngine, LlavaProcessor], questions: list[Question]
) -> None:
    alone = answers(Answerer(*parts, batch_size=1), questions)
    assert len(set(alone.values())) > 4  # a random model, but not a deaf one
    assert answers(Answerer(*parts, batch_size=5), questions) == alone
    assert answers(Answerer(*parts, batch_size=16), list(reversed(questions))) == alone


def test_nor_where_pictures_have_different_numbers_of_features(
    parts: tuple[PaddleEngine, LlavaProcessor], questions: list[Question]
) -> None:
    _, processor = parts
    pinpoints = ((112, 224), (224, 112), (224, 224))
    config = replace(processor.config, image_aspect_ratio="anyres", image_grid_pinpoints=pinpoints)
    paddle.seed(0)
    model = LlavaForConditionalGeneration(config)
    model.eval()
    own = LlavaProcessor(config, ImageProcessor.from_config(config, None), processor.tokenizer, processor.template)
    answerer = Answerer(PaddleEngine(model), own, batch_size=5)
    assert len({answerer._features_more(question.images[0]) for question in questions[:4]}) > 1
    (Path(questions[0].images[0])).write_bytes(b"no picture")
    several, alone = (
        {
            it.id: (it.answer, bool(it.error))
            for batch in Answerer(PaddleEngine(model), own, batch_size=size).answer(questions)
            for it in batch
        }
        for size in (5, 1)
    )
    assert several == alone
    assert sum(failed for _, failed in several.values()) == 4


def test_answers_are_those_of_generate(parts: tuple[PaddleEngine, LlavaProcessor], questions: list[Question]) -> None:
    engine, processor = parts
    question = questions[7]
    text = f"{processor.template.system} USER: <image>\n{question.prompt} ASSISTANT:"
    inputs = processor(text, list(question.images))
    tokens = engine.network.generate(**inputs, max_new_tokens=LONGEST).numpy()[0].tolist()
    end = processor.tokenizer.eos_token_id
    told = processor.tokenizer.decode(tokens[: tokens.index(end)] if end in tokens else tokens)
    assert answers(Answerer(engine, processor), questions)[question.id] == told.strip()


def test_each_picture_is_encoded_once(parts: tuple[PaddleEngine, LlavaProcessor], questions: list[Question]) -> None:
    answerer = Answerer(*parts, batch_size=2)
    half = [replace(question, max_new_tokens=1 + place % 2) for place, question in enumerate(questions)]
    answers(answerer, half)
    assert answerer.encoded_images == 4


def test_features_that_do_not_fit_are_let_go(
    parts: tuple[PaddleEngine, LlavaProcessor], questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "HELD_FEATURES", 0)
    answerer = Answerer(*parts, batch_size=2)
    assert answers(answerer, questions) == answers(Answerer(*parts, batch_size=1), questions)
    assert not answerer._features


def test_history_and_system_are_part_of_the_prompt(
    parts: tuple[PaddleEngine, LlavaProcessor], questions: list[Question]
) -> None:
    plain = replace(questions[0], prompt="And now?")
    told = [
        plain,
        replace(plain, id="history", history=(("What is it?", "A bus."),)),
        replace(plain, id="system", system="Be brief."),
        replace(plain, id="text alone", images=()),
    ]
    several = answers(Answerer(*parts), told)
    assert several == answers(Answerer(*parts, batch_size=1), told)
    engine, processor = parts
    system = processor.template.system
    prompts = {
        "history": f"{system} USER: <image>\nWhat is it? ASSISTANT: A bus.</s>USER: And now? ASSISTANT:",
        "system": "Be brief. USER: <image>\nAnd now? ASSISTANT:",
        "text alone": f"{system} USER: And now? ASSISTANT:",
    }
    for name, prompt in prompts.items():
        inputs = processor(prompt, [] if name == "text alone" else list(plain.images))
        tokens = engine.network.generate(**inputs, max_new_tokens=LONGEST).numpy()[0].tolist()
        assert processor.tokenizer.decode([token for token in tokens if token != 2]).strip() == several[name]


def test_an_answer_ends_before_the_templates_stop_string(
    parts: tuple[PaddleEngine, LlavaProcessor], questions: list[Question]
) -> None:
    engine, processor = parts
    whole = answers(Answerer(engine, processor), questions)
    name, answer = next((name, answer) for name, answer in whole.items() if len(answer) > 3 and len(set(answer)) > 2)
    stop = answer[len(answer) // 2 :][:2]
    template = replace(processor.template, stop_strings=(stop,))
    assert answers(Answerer(engine, processor, template=template), questions)[name] == answer.split(stop)[0].strip()


def test_a_question_without_room_beside_others_is_asked_alone(
    parts: tuple[PaddleEngine, LlavaProcessor], questions: list[Question]
) -> None:
    answerer, word = Answerer(*parts), "a " * 100
    short = replace(questions[0], images=(), prompt="a")
    hundred = answerer._tokens(replace(short, prompt=word)).length - answerer._tokens(short).length
    long = replace(short, id="long", prompt=word * (1900 // hundred), max_new_tokens=5)
    room = 2048 - answerer._tokens(long).length
    assert room > LONGEST
    none = replace(short, id="too long", prompt=word * (3000 // hundred))
    batches = list(answerer.answer([*questions[:3], replace(long, max_new_tokens=room + 1), none, long]))
    assert [[it.id for it in batch] for batch in batches] == [
        ["too long"],
        ["long"],
        [question.id for question in sorted(questions[:3], key=lambda it: len(it.prompt), reverse=True)],
        ["long"],
    ]
    (failed,) = batches[0]
    assert failed.error is not None
    assert "the model holds 2048" in failed.error


def test_a_bad_picture_fails_its_questions_alone(
    parts: tuple[PaddleEngine, LlavaProcessor], questions: list[Question], pope_folder: Path
) -> None:
    well = answers(Answerer(*parts), questions)
    (pope_folder / "green.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (pope_folder / "blue.png").unlink()
    said = {it.id: it for batch in Answerer(*parts, batch_size=4).answer(questions) for it in batch}
    bad = {question.id for question in questions if question.images[0].endswith(("green.png", "blue.png"))}
    assert len(bad) == 6
    assert {name for name, it in said.items() if it.error} == bad
    assert all("green.png" in str(said[name].error) or "blue.png" in str(said[name].error) for name in bad)
    assert {name: it.answer for name, it in said.items() if not it.error} == {
        name: answer for name, answer in well.items() if name not in bad
    }


# --- the street set ---------------------------------------------------------------------------------


def test_the_street_figures_are_those_that_training_prints(
    parts: tuple[PaddleEngine, LlavaProcessor], tmp_path: Path
) -> None:
    engine, processor = parts
    table = figures(ask_all(engine.network, processor, 2))
    questions = read_questions("street", Data((Path("2"),)))
    said = [it for batch in Answerer(engine, processor).answer(questions) for it in batch]
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


# --- a run that is stopped, and shards ---------------------------------------------------------------


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
    asked = [replace(questions[0], prompt="Is it another question?")]
    answerer: Any = StoppingAnswerer(None, 0)  # type: ignore[arg-type]
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
        return [replace(it, max_new_tokens=LONGEST) for it in read_questions("pope", data, limit=11, shard=shard)]

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


# --- what is asked and what is written ---------------------------------------------------------------


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


def test_every_template_can_be_evaluated(parts: tuple[PaddleEngine, LlavaProcessor], questions: list[Question]) -> None:
    for template in TEMPLATES.values():
        assert len(answers(Answerer(*parts, template=template), questions[:2])) == 2
