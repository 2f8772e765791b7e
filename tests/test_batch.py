"""`llava chat --batch`: the forms of a record, answers as one at a time, order, resuming, and what goes wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paddle
import pytest

from paddle_llava.batch import Batch, open_batch, run_batch
from paddle_llava.chat import open_session
from paddle_llava.cli import main
from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.answering import Answerer
from paddle_llava.generation.sampling import SamplingParams
from paddle_llava.generation.session import ChatSession
from scripted_engine import scripted_session

Write = Callable[[list[Any]], Path]

PARAMS = SamplingParams(max_new_tokens=6)


@pytest.fixture(scope="module")
def session(demo_checkpoint: Path) -> ChatSession:
    return open_session(str(demo_checkpoint), PARAMS)


@pytest.fixture
def write(tmp_path: Path, photo: Path) -> Write:
    """Records as lines of a file that has `a.jpg` and `b.jpg` beside it."""
    shutil.copy(photo, tmp_path / "a.jpg")
    shutil.copy(photo.with_name("flower.jpg"), tmp_path / "b.jpg")

    def to_file(records: list[Any]) -> Path:
        path = tmp_path / "in.jsonl"
        path.write_text("".join(it if isinstance(it, str) else json.dumps(it) + "\n" for it in records))
        return path

    return to_file


def shown(url: str, text: str) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return {"role": "user", "content": content}


QUESTIONS = [
    {"image": "a.jpg", "prompt": "What is it?", "id": "first"},
    {"messages": [shown("b.jpg", "What is it?")]},
    {"messages": [shown("a.jpg", "One?"), {"role": "assistant", "content": "a lake"}, shown("b.jpg", "And this?")]},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]},
    {"conversations": [{"from": "human", "value": "<image>\nWhere?"}], "image": "a.jpg"},
    {"prompt": "Nothing to see here, and a question that is longer than the others"},
]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answered(session: ChatSession, source: Path, batch_size: int = 4) -> list[dict[str, Any]]:
    out = source.with_name(f"out-{batch_size}.jsonl")
    run_batch(open_batch(source, out, "demo", []), session, batch_size)
    return lines(out)


def test_answers_are_those_of_a_conversation(session: ChatSession, write: Write) -> None:
    source = write(QUESTIONS)
    told = answered(session, source)
    assert [line["record"] for line in told] == [1, 2, 3, 4, 5, 6]
    assert told[0]["id"] == "first"
    assert [line["prompt"] for line in told[:3]] == ["What is it?", "What is it?", "And this?"]
    assert told == answered(session, source, batch_size=1)
    session.reset()
    said = "".join(session.ask("What is it?", image=source.with_name("a.jpg"))).strip()
    assert told[0]["answer"] == said
    session.reset()
    assert told[5]["answer"] == "".join(session.ask(QUESTIONS[5]["prompt"])).strip()
    assert len({line["answer"] for line in told}) > 3


def test_answers_are_drawn_as_in_a_conversation(demo_checkpoint: Path, write: Write) -> None:
    params = SamplingParams(max_new_tokens=6, temperature=1.5, seed=3)
    drawing = open_session(str(demo_checkpoint), params)
    told = answered(drawing, write(QUESTIONS[:2]))
    drawing.reset()
    greedy = "".join(drawing.ask("What is it?", image=write(QUESTIONS).with_name("b.jpg"), temperature=0.0))
    drawing.reset()
    drawn = "".join(drawing.ask("What is it?", image=write(QUESTIONS).with_name("b.jpg")))
    assert told[1]["answer"] == drawn.strip() != greedy.strip()


def test_a_bad_record_costs_its_own_line_only(session: ChatSession, write: Write, capsys) -> None:
    bad = [
        "not json\n",
        {"image": "c.jpg", "prompt": "What?"},
        {"prompt": "w" * 9000},
        {"messages": []},
        {"image": "a.jpg"},
    ]
    turned = {"conversations": [["Q", "A"]]}
    source = write([QUESTIONS[0], *bad, "\n", turned, QUESTIONS[1]])
    out = source.with_name("out.jsonl")
    assert run_batch(open_batch(source, out, "demo", []), session, 4) == 2
    told = lines(out)
    assert [line["record"] for line in told] == [*range(1, 9)]
    assert [line["record"] for line in told if "answer" in line] == [1, 8]
    errors = [line["error"] for line in told[1:7]]
    for error, part in zip(errors, ("JSON", "no such file", "tokens", "messages", "--prompt", "user's"), strict=True):
        assert part in error
    assert "6 of them failed" in capsys.readouterr().err


def test_boxes_are_in_pixels_of_the_picture_shown_last(
    demo_checkpoint: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write([{"image": "a.jpg", "prompt": "Where?"}])
    scripted = scripted_session(demo_checkpoint, ["0.25, 0.25, 0.75, 0.50"])
    monkeypatch.setattr(scripted.engine, "encode_images", lambda *_: [paddle.zeros([64, 8])])
    (line,) = answered(scripted, source)
    assert line["boxes"] == [[160.0, 54.0, 480.0, 214.0]]  # 640x427: 106 pixels of padding above


def test_one_question_about_many_pictures(session: ChatSession, write: Write, capsys, demo_checkpoint: Path) -> None:
    source = write([{"image": "a.jpg"}, {"image": "b.jpg", "prompt": "Own?"}, {"image": "b.jpg"}])
    out = source.with_name("out.jsonl")
    flags = ["--batch", str(source), "--out", str(out), "--prompt", "What?", "--temperature", "0"]
    assert main(["chat", "--model-path", str(demo_checkpoint), *flags, "--max_new_tokens", "2"]) == 0
    assert [line["prompt"] for line in lines(out)] == ["What?", "Own?", "What?"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "3 records" in captured.err


class Watched(Answerer):
    """Notes what it is asked, and may be interrupted after the first batch."""

    asked: list[str]
    interrupted = False

    def answer(self, questions):
        self.asked = [question.id for question in questions]
        for number, predictions in enumerate(super().answer(questions)):
            if number and self.interrupted:
                raise KeyboardInterrupt
            yield predictions


def test_a_run_that_was_stopped_goes_on(session: ChatSession, write: Write) -> None:
    source = write(QUESTIONS)
    whole = answered(session, source)
    out = source.with_name("out.jsonl")
    answerer = Watched(session.engine, session.processor, batch_size=2, params=PARAMS)
    answerer.interrupted = True
    batch = Batch(source, out, "demo")
    with pytest.raises(KeyboardInterrupt):
        batch.answer(answerer)
    assert not out.exists()
    with batch.part.open("a") as file:
        file.write('{"record": 3, "ans')  # as a process that is killed leaves it
    batch = Batch(source, out, "demo")
    assert len(batch.lines) == 2
    answerer.interrupted = False
    progress: list[tuple[int, int]] = []
    batch.answer(answerer, lambda *told: progress.append(told))
    assert len(answerer.asked) == 4
    assert progress[-1] == (6, 6)
    assert lines(out) == whole
    assert not batch.part.exists()
    answerer.asked = []
    Batch(source, out, "demo").answer(answerer)
    assert answerer.asked == []
    assert lines(out) == whole


def test_what_failed_is_asked_again(session: ChatSession, write: Write) -> None:
    source = write([QUESTIONS[0], {"image": "c.jpg", "prompt": "What is it?"}])
    assert "error" in answered(session, source)[1]
    shutil.copy(source.with_name("b.jpg"), source.with_name("c.jpg"))
    _, second = answered(session, source)
    assert "error" not in second
    assert second["answer"] == answered(session, write(QUESTIONS[:2]), batch_size=2)[1]["answer"]


def test_answers_to_something_else_are_not_taken_up(session: ChatSession, write: Write) -> None:
    answered(session, write(QUESTIONS))
    source = write(QUESTIONS[1:])
    out = source.with_name("out-4.jsonl")
    with pytest.raises(LlavaError, match="record 1 was another one"):
        Batch(source, out, "demo")
    same_words = [QUESTIONS[0] | {"image": "b.jpg"}, *QUESTIONS[1:]]
    with pytest.raises(LlavaError, match="record 1 was another one"):
        Batch(write(same_words), out, "demo")
    source = write(QUESTIONS)
    with pytest.raises(LlavaError, match="holds answers of 'demo'"):
        Batch(source, out, "another")
    for text in ("mine\n", "[]\n", '{"record": "x"}\n'):
        out.write_text(text)
        with pytest.raises(LlavaError, match="not written by llava chat --batch"):
            Batch(source, out, "demo")
        assert out.read_text() == text


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--batch", "in.jsonl"], "--out OUT.jsonl go together"),
        (["--out", "out.jsonl"], "go together"),
        (["--batch", "nowhere.jsonl", "--out", "out.jsonl"], "nowhere.jsonl"),
        (["--batch", "in.jsonl", "--out", "nowhere/out.jsonl"], "folder that exists"),
        (["--batch", "in.jsonl", "--out", "."], "folder that exists"),
        (["--batch", "in.jsonl", "--out", "in.jsonl"], "not written by"),
        (["--batch", "in.jsonl", "--out", "out.jsonl", "--image-file", "a.jpg"], "--image-file"),
        (["--batch", "in.jsonl", "--out", "out.jsonl", "--json"], "--json"),
        (["--batch", "in.jsonl", "--out", "out.jsonl", "--prompt", "a", "--prompt", "b"], "one question at most"),
        (["--batch", "in.jsonl", "--out", "out.jsonl", "--batch-size", "0"], "--batch-size"),
    ],
)
def test_mistakes_in_the_flags(
    flags: list[str], told: str, write: Write, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    source = write(QUESTIONS)
    monkeypatch.chdir(source.parent)
    assert main(["chat", "--model-path", "nowhere", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert json.loads(source.read_text().splitlines()[0]) == QUESTIONS[0]
