"""Many questions to a model: in batches, each picture encoded once, and what fails alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import paddle
import pytest

from paddle_llava import LlavaForConditionalGeneration, LlavaProcessor
from paddle_llava.engines.paddle import PaddleEngine
from paddle_llava.evaluation import answering
from paddle_llava.evaluation.answering import Answerer
from paddle_llava.evaluation.records import Question
from paddle_llava.generation.sampling import SamplingParams
from paddle_llava.processing.images import ImageProcessor
from paddle_llava.processing.templates import TEMPLATES
from recording import RecordingEngine


def answers(answerer: Answerer, questions: list[Question]) -> dict[str, str]:
    said = [prediction for batch in answerer.answer(questions) for prediction in batch]
    assert not any(prediction.error for prediction in said)
    return {prediction.id: prediction.answer for prediction in said}


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


def test_nor_with_a_repetition_penalty(
    parts: tuple[PaddleEngine, LlavaProcessor], questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which padding has no part in, whatever token it is."""
    engine, processor = RecordingEngine(parts[0].network), parts[1]
    params = SamplingParams(repetition_penalty=1e9)
    alone = answers(Answerer(engine, processor, batch_size=1, params=params), questions)
    for likeliest in {said[0] for said in engine.greedy}:
        monkeypatch.setattr(LlavaProcessor, "padding_id", likeliest)
        assert answers(Answerer(engine, processor, params=params), questions) == alone


def test_answers_are_those_of_generate(parts: tuple[PaddleEngine, LlavaProcessor], questions: list[Question]) -> None:
    engine, processor = parts
    question = questions[7]
    text = f"{processor.template.system} USER: <image>\n{question.prompt} ASSISTANT:"
    inputs = processor(text, list(question.images))
    tokens = engine.network.generate(**inputs, max_new_tokens=questions[0].max_new_tokens).numpy()[0].tolist()
    end = processor.tokenizer.eos_token_id
    told = processor.tokenizer.decode(tokens[: tokens.index(end)] if end in tokens else tokens)
    assert answers(Answerer(engine, processor), questions)[question.id] == told.strip()


def test_each_picture_is_encoded_once(parts: tuple[PaddleEngine, LlavaProcessor], questions: list[Question]) -> None:
    answerer = Answerer(*parts, batch_size=2)
    half = [replace(question, max_new_tokens=1 + place % 2) for place, question in enumerate(questions)]
    answers(answerer, half)
    assert answerer.encoded_images == 4


def test_what_questions_begin_with_alike_is_run_once(
    parts: tuple[PaddleEngine, LlavaProcessor], questions: list[Question]
) -> None:
    engine, processor = RecordingEngine(parts[0].network), parts[1]
    answerer = Answerer(engine, processor)
    answers(answerer, questions)
    assert len(engine.prefilled) == 3  # the system's text, four pictures, twelve questions
    assert sum(engine.prefilled) == max(answerer._tokens(question).length for question in questions)


def test_nothing_is_shared_where_padding_leaves_no_room(
    parts: tuple[PaddleEngine, LlavaProcessor], questions: list[Question]
) -> None:
    engine, processor = RecordingEngine(parts[0].network), parts[1]
    told = [
        replace(questions[0], id=str(number), system=system, prompt=prompt)
        for number, (system, prompt) in enumerate([("a " * 40, "b"), ("a", "b " * 40)] * 2)
    ]
    alone = answers(Answerer(engine, processor, batch_size=1), told)
    longest = max(Answerer(engine, processor)._tokens(question).length for question in told)
    text = replace(processor.config.text, max_position_embeddings=longest + told[0].max_new_tokens)
    config = replace(processor.config, text=text)
    tight = LlavaProcessor(config, processor.image_processor, processor.tokenizer, processor.template)
    for own, runs in ((processor, 2), (tight, 1)):
        engine.prefilled.clear()
        assert answers(Answerer(engine, own), told) == alone
        assert len(engine.prefilled) == runs


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
        tokens = engine.network.generate(**inputs, max_new_tokens=questions[0].max_new_tokens).numpy()[0].tolist()
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
    assert room > short.max_new_tokens
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


def test_every_template_can_be_evaluated(parts: tuple[PaddleEngine, LlavaProcessor], questions: list[Question]) -> None:
    for template in TEMPLATES.values():
        assert len(answers(Answerer(*parts, template=template), questions[:2])) == 2
