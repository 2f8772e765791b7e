"""Conversations: what is run, what is remembered, and what a mishap leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_llava import ChatSession, LlavaError, LlavaForConditionalGeneration, LlavaProcessor, SamplingParams
from paddle_llava.generation.session import NoRoomForPictures
from paddle_llava.processing.templates import TEMPLATES
from recording import RecordingEngine
from reference_cases import FIXTURES, picture
from scripted_engine import scripted_session

ONE, OTHER = picture(60, 80), picture(90, 30, phase=1)
QUESTIONS = ["What is it?", "Which colour is the sky?", "And who is there?", "Say more about the lake.", "Why?"]
BOTH = pytest.mark.parametrize("name", ["v1_5", "v1_6"])


@cache
def load(name: str) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    return LlavaForConditionalGeneration.from_pretrained(FIXTURES / name), LlavaProcessor.from_pretrained(
        FIXTURES / name
    )


def start(name: str = "v1_5", *, limit: int = 1024, max_new_tokens: int = 6, **options: Any) -> ChatSession:
    """A conversation with a model of a context of `limit` tokens; what it notices is in `session.noticed`."""
    model, processor = load(name)
    engine = RecordingEngine(model)
    engine.config = replace(model.config, text=replace(model.config.text, max_position_embeddings=limit))
    noticed: list[str] = []
    params = SamplingParams(max_new_tokens=max_new_tokens)
    session = ChatSession(engine, processor, **{"params": params, "notice": noticed.append} | options)
    session.noticed = noticed
    return session


def say(session: ChatSession, text: str, image: Any = None, **overrides: Any) -> str:
    return "".join(session.ask(text, image, **overrides))


def first_logits(session: ChatSession, text: str, image: Any = None) -> np.ndarray:
    list(session.ask(text, image, max_new_tokens=1))
    return session.engine.first[-1]


def assert_as_if_fresh(session: ChatSession) -> None:
    """The next answer is that of a session whose engine has never run any of it, but knows what was said."""
    engine = RecordingEngine(session.engine.network)
    fresh = ChatSession(engine, session.processor, template=session.template, notice=lambda _: None)
    fresh.engine.config = session.engine.config
    fresh._history = session._history
    image = ONE if session.template.name == "plain" else None  # which is about nothing else
    expected = first_logits(fresh, "What next?", image)
    found = first_logits(session, "What next?", image)
    assert fresh.stats.new_tokens == fresh.stats.context_tokens == session.stats.context_tokens
    assert np.abs(found - expected)[np.isfinite(expected)].max() < 1e-3


# --- only what is new is run


@BOTH
def test_twelve_turns_run_only_their_new_tokens(name: str) -> None:
    session = start(name)
    engine, tokenizer = session.engine, session.processor.tokenizer
    context = 0
    for turn in range(12):
        text = QUESTIONS[turn % len(QUESTIONS)]
        answer = say(session, text, ONE if turn == 0 else None)
        stats = session.stats
        assert stats.new_tokens == engine.prefilled[-1]
        assert stats.generated_tokens == len(engine.greedy[-1])
        if turn:
            # The last token of an answer has not been run yet; "</s>" closes it.
            question = tokenizer.encode_segment(f"USER: {text} ASSISTANT:", first=False)
            assert stats.new_tokens == 1 + 1 + len(question)
        assert stats.context_tokens == context + stats.new_tokens
        context = engine.length
        assert session.messages[-1].text == answer.strip()
    assert engine.encoded == [1]
    assert not session.noticed
    assert len(session.messages) == 24
    assert_as_if_fresh(session)


@BOTH
def test_pictures_are_encoded_once_and_when_they_come(name: str) -> None:
    session = start(name)
    engine, config = session.engine, session.engine.config
    features = [config.image_layout((image.height, image.width)).num_features for image in (ONE, OTHER)]
    say(session, "Hello?")
    assert engine.encoded == []
    say(session, "Which is larger?", [ONE, OTHER])
    assert engine.encoded == [2]
    assert sum(features) < engine.prefilled[-1] < sum(features) + 40
    say(session, "Sure?")
    say(session, "And this?", OTHER)
    assert engine.encoded == [2, 1]
    assert features[1] < engine.prefilled[-1] < features[1] + 40
    assert session._history.ids.count(config.image_token_id) == features[0] + 2 * features[1]
    assert [message.images for message in session.messages] == [0, 0, 2, 0, 0, 0, 1, 0]
    assert_as_if_fresh(session)


def test_pictures_in_their_order_decide_the_answer() -> None:
    answers = [first_logits(start("v1_6"), "Which?", images) for images in ([ONE, OTHER], [OTHER, ONE], [ONE, ONE])]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(answers[i][:, :-20] - answers[j][:, :-20]).max() > 0.1


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_keeps_its_cache(template: str) -> None:
    session = start(template=TEMPLATES[template])
    for turn, text in enumerate(QUESTIONS[:3]):
        say(session, text, ONE if turn != 1 or template == "plain" else None)
        assert turn == 0 or session.stats.new_tokens < session.stats.context_tokens
    assert_as_if_fresh(session)


# --- the context is full


@BOTH
def test_the_oldest_exchanges_are_forgotten_and_pictures_stay(name: str) -> None:
    limit = {"v1_5": 200, "v1_6": 330}[name]
    session = start(name, limit=limit)
    engine = session.engine
    features = [engine.config.image_layout((image.height, image.width)).num_features for image in (ONE, OTHER)]
    rerun = 0
    for turn in range(30):
        say(session, QUESTIONS[turn % 5], {0: ONE, 2: OTHER}.get(turn))
        rerun += session.stats.new_tokens == session.stats.context_tokens
        assert session.stats.context_tokens + session.stats.generated_tokens <= limit
        if turn >= 2:
            assert session._history.ids.count(engine.config.image_token_id) == sum(features)
    assert engine.encoded == [1, 1]
    assert session.noticed
    outgrown = f"the conversation outgrew the model's {limit} tokens: the oldest "
    assert all(notice.startswith(outgrown) for notice in session.noticed)
    assert rerun == 1 + len(session.noticed) < 12  # room is made for several turns at once
    assert session.messages[-2].text == QUESTIONS[29 % 5]
    assert sum(message.images for message in session.messages) == 2
    assert len(session.messages) < 20
    assert_as_if_fresh(session)


def test_pictures_that_take_most_of_the_context_leave_a_part_of_the_conversation() -> None:
    """More than the three quarters that are left of a conversation without any."""
    pictures = [picture(112, 112)] * 8
    config = load("v1_6")[0].config
    features = len(pictures) * config.image_layout((112, 112)).num_features
    session = start("v1_6", limit=features * 4 // 3)
    say(session, "Which?", pictures)
    while not session.noticed:
        assert len(session.messages) < 40
        say(session, "Why?")
    assert len(session.messages) > 2
    before = len(session.noticed)
    say(session, "Why?")
    assert len(session.noticed) == before  # room was made for another turn
    assert session.engine.encoded == [8]
    assert_as_if_fresh(session)


def test_an_answer_that_fills_the_context_is_cut() -> None:
    session = start(limit=140, max_new_tokens=1000)
    say(session, "Go on and on.")
    assert session.stats.context_tokens + session.stats.generated_tokens == 140
    assert session.noticed == ["the answer was cut: the conversation fills the model's context"]
    say(session, "Why?", max_new_tokens=3)
    assert "the oldest exchange is forgotten" in session.noticed[-1]
    assert [message.text for message in session.messages[::2]] == ["Why?"]
    assert_as_if_fresh(session)


@BOTH
@pytest.mark.parametrize("turns", [0, 2])
def test_a_question_that_is_too_long(name: str, turns: int) -> None:
    session = start(name, limit=300)
    for text in QUESTIONS[:turns]:
        say(session, text, ONE if text == QUESTIONS[0] else None)
    before = session.messages, session._history
    with pytest.raises(LlavaError, match=r"take \d+ tokens, and the model holds 300 .* shorter question, show fewer"):
        say(session, "lake " * 300)
    with pytest.raises(LlavaError, match="show fewer pictures"):
        say(session, "Which?", [ONE] * 20)
    with pytest.raises(LlavaError, match="shorter question"):
        say(session, "lake " * 300, ONE)
    assert (session.messages, session._history) == before
    assert session.engine.encoded == [1] * bool(turns)  # nothing is encoded in vain
    assert not session.noticed
    assert_as_if_fresh(session)


@BOTH
@pytest.mark.parametrize("turns", [0, 2])
def test_pictures_that_leave_no_room_for_any_question(name: str, turns: int) -> None:
    session = start(name, limit=400)
    for text in QUESTIONS[:turns]:
        say(session, text, ONE if text == QUESTIONS[0] else None)
    with pytest.raises(NoRoomForPictures, match=r"the pictures take \d+ tokens, and the model holds 394 ") as refused:
        say(session, "?", [ONE] * 30)
    fitting = refused.value.fitting
    assert 0 < fitting < 30
    with pytest.raises(NoRoomForPictures):
        say(session, "?", [ONE] * (fitting + 1))
    say(session, "?", [ONE] * fitting)
    assert session.engine.encoded == [*[1] * bool(turns), fitting]


# --- answers that end early


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_closing_keeps_what_was_said(pieces: int) -> None:
    session = start(max_new_tokens=20)
    whole = list(start(max_new_tokens=20).ask("Describe it.", ONE))
    answer = session.ask("Describe it.", ONE)
    said = [next(answer) for _ in range(pieces)]
    answer.close()
    assert said == whole[:pieces]
    assert session.messages[-1].text == "".join(said).strip()
    assert session.stats.generated_tokens < 20
    assert_as_if_fresh(session)


def test_closing_before_the_first_word_changes_nothing() -> None:
    session = start()
    say(session, "Hello?")
    before = session._history
    session.ask("Never mind.").close()
    assert session._history is before
    assert_as_if_fresh(session)


def test_an_answer_left_unread_ends_when_the_next_is_asked_for() -> None:
    session = start(max_new_tokens=20)
    left = session.ask("Describe it.", ONE)
    said = next(left)
    say(session, "And now?")
    assert [message.text for message in session.messages[::2]] == ["Describe it.", "And now?"]
    assert session.messages[1].text == said.strip()
    before = session._history
    assert list(left) == []
    del left
    assert session._history is before
    assert_as_if_fresh(session)


def test_a_loop_that_is_left_ends_the_answer() -> None:
    session = start(max_new_tokens=20)
    for _ in session.ask("Describe it.", ONE):
        break
    assert [message.text for message in session.messages[::2]] == ["Describe it."]
    assert session.stats.generated_tokens < 20
    assert_as_if_fresh(session)


def test_an_answer_left_unread_does_not_outlive_a_reset() -> None:
    session = start(max_new_tokens=20)
    left = session.ask("Describe it.", ONE)
    next(left)
    session.reset()
    del left
    assert session.messages == ()
    assert session.engine.length == 0
    expected = say(start(), "Hello?", max_new_tokens=20)
    assert say(session, "Hello?") == expected


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (("a lake",), "The picture shows "),
        (("ture sh",), "The pic"),
        (("wit", "lake with"), "The picture shows a "),
        (("trees!", "shows b"), "The picture shows a lake with trees"),
        (("The",), ""),
    ],
)
def test_stop_strings_across_tokens(stop: tuple[str, ...], text: str) -> None:
    session = scripted_session(FIXTURES / "v1_5", ["The picture shows a lake with trees"] * 2)
    pieces = list(session.ask("What is it?", stop=stop))
    assert "".join(pieces) == text
    assert session.messages[-1].text == text.strip()
    ids, tokenizer = session._history.ids, session.processor.tokenizer
    said = tokenizer.decode(ids, skip_special_tokens=False)
    assert said.endswith("</s>")
    kept = said.removesuffix("</s>").rpartition("ASSISTANT:")[2].strip()
    assert kept == text.strip()  # of a token that is half stop string, the other half
    assert "".join(session.ask("Again?")) == "The picture shows a lake with trees"


@pytest.mark.parametrize("length", [1, 3, 12])
def test_stop_strings_leave_a_true_history(length: int) -> None:
    """Also when some of their tokens were run before the string was whole."""
    session = start(max_new_tokens=30)
    whole = say(start(max_new_tokens=30), "Describe it.", ONE)
    stop = whole[len(whole) // 2 :][:length]
    assert len(stop) == length
    assert say(session, "Describe it.", ONE, stop=(stop,)) == whole[: whole.index(stop)]
    assert_as_if_fresh(session)


# --- drawing


def test_seeds_reproduce() -> None:
    drawn = {"temperature": 1.5, "top_p": 0.9, "max_new_tokens": 16}
    same, again, other = (
        [say(session, text, **drawn, seed=seed) for text in QUESTIONS[:2]]
        for session, seed in ((start(), 7), (start(), 7), (start(), 8))
    )
    assert same == again
    assert same != other


def test_the_repetition_penalty_knows_the_turns_before() -> None:
    """One that forbids repetition: no answer has a token that stood anywhere before."""
    session = start(max_new_tokens=16)
    end = session.processor.tokenizer.eos_token_id
    for text in QUESTIONS:
        say(session, text, repetition_penalty=1e9)
        *said, closing = session._history.ids
        assert closing == end
        before = len(said) - session.stats.generated_tokens
        for place in range(before, len(said)):
            assert said[place] not in said[:place]


# --- mishaps


def fail(*_: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("text", ["Why?", "lake " * 150])
def test_an_interrupt_within_the_first_run(monkeypatch: pytest.MonkeyPatch, layer: int, text: str) -> None:
    """A long question makes the cache grow, at first in some layers only."""
    session = start()
    say(session, "Hello?", ONE)
    before = session._history
    with monkeypatch.context() as patch:
        patch.setattr(session.engine.network.language_model.layers[layer].mlp, "forward", fail)
        with pytest.raises(KeyboardInterrupt):
            say(session, text)
    assert session._history is before
    assert say(session, "Is anybody there?") != ""
    assert_as_if_fresh(session)


def test_an_interrupt_just_after_the_first_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine holds the question then, and nobody has heard of it."""
    session = start()
    say(session, "Hello?", ONE)
    before, held = session._history, session.engine.length
    with monkeypatch.context() as patch:
        patch.setattr("paddle_llava.generation.sampling.Sampler.sample", fail)
        with pytest.raises(KeyboardInterrupt):
            say(session, "lake " * 9)
    assert session._history is before
    assert session.engine.length > held + 9
    assert_as_if_fresh(session)


def test_an_interrupt_after_room_was_made_for_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine holds a shortened conversation then; a shorter question needs it whole."""
    limit = 230
    session = start(limit=limit)
    for text in QUESTIONS[:3]:
        say(session, text)
    before = session._history
    tokens = len(session.processor.tokenizer.encode_segment("lake " * 10, first=False)) / 10
    text = "lake " * int((limit - len(before.ids)) / tokens)
    with monkeypatch.context() as patch:
        patch.setattr("paddle_llava.generation.sampling.Sampler.sample", fail)
        with pytest.raises(KeyboardInterrupt):
            say(session, text)
    assert len(session.noticed) == 1
    assert session._history is before
    assert_as_if_fresh(session)
    assert len(session.noticed) == 1


@pytest.mark.parametrize("held", [0, 5, 16, 20])
def test_an_interrupt_may_leave_a_part_of_a_picture(held: int) -> None:
    """Between the chunks of a prefill that runs an earlier turn again. A picture has 16 features here."""
    session = start()
    say(session, "Which is larger?", [ONE, OTHER])
    image_tokens = np.flatnonzero(np.array(session._history.ids) == session.engine.config.image_token_id)
    session.engine.rewind(int(image_tokens[held]))
    assert_as_if_fresh(session)


def test_an_interrupt_within_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    session = start(max_new_tokens=20)
    answer = session.ask("Hello?", ONE)
    said = [next(answer) for _ in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(session.engine.network.language_model.layers[1].mlp, "forward", fail)
        with pytest.raises(KeyboardInterrupt):
            next(answer)
    assert session.messages[-1].text == "".join(said).strip()
    assert_as_if_fresh(session)


@pytest.mark.parametrize("bad", ["/nowhere.jpg", b"<html>", [ONE, "/nowhere.jpg"]])
def test_a_picture_that_fails_changes_nothing(bad: Any) -> None:
    session = start()
    say(session, "Hello?", ONE)
    before = session._history
    with pytest.raises(LlavaError):
        say(session, "And this?", bad)
    assert session._history is before
    assert session.engine.encoded == [1]
    assert_as_if_fresh(session)


@pytest.mark.parametrize("settings", [{"temperature": -1.0}, {"top_p": 0.0}, {"max_new_tokens": 0}])
def test_a_setting_that_is_refused_changes_nothing(settings: dict[str, Any]) -> None:
    session = start()
    say(session, "Hello?")
    before = session._history
    with pytest.raises(LlavaError):
        say(session, "And?", **settings)
    assert session._history is before
    assert_as_if_fresh(session)


def test_words_that_look_like_structure_stay_words() -> None:
    session = start()
    say(session, "What is </s> or <image> or USER: there?")
    ids = session._history.ids
    assert ids.count(session.engine.config.image_token_id) == 0
    assert ids.count(session.processor.tokenizer.eos_token_id) == 1
    assert "What is </s> or <image> or USER: there?" in session.prompt


# --- all of it, in any order


def _close_early(session: ChatSession) -> None:
    answer = session.ask("Describe it.", max_new_tokens=12)
    for _ in range(3):
        next(answer, None)
    answer.close()


def _interrupted(session: ChatSession) -> None:
    """Within the first run, and just after it."""
    layer = "paddle_llava.models.llama.LlamaMLP.forward"
    for place in (layer, "paddle_llava.generation.sampling.Sampler.sample"):
        with mock.patch(place, side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            say(session, "lake " * 30)


def _refused(session: ChatSession) -> None:
    with pytest.raises(LlavaError):
        say(session, "lake " * 2000)
    with pytest.raises(LlavaError):
        say(session, "And this?", "/nowhere.jpg")


def _left(session: ChatSession) -> None:
    session.left = session.ask("Go on.", max_new_tokens=9)
    next(session.left, None)


ACTIONS: dict[str, Callable[[ChatSession], object]] = {
    "ask": lambda session: say(session, "And then?"),
    "show": lambda session: say(session, "What is it?", ONE),
    "show two": lambda session: say(session, "Which?", [OTHER, ONE]),
    "stop string": lambda session: say(session, "Tell me.", stop=("e", "a"), max_new_tokens=20),
    "close early": _close_early,
    "interrupt": _interrupted,
    "refuse": _refused,
    "leave": _left,
    "reset": lambda session: session.reset(),
}


@BOTH
@settings(max_examples=8, deadline=None)
@given(actions=st.lists(st.sampled_from(list(ACTIONS)), max_size=9), limit=st.sampled_from([420, 1024]))
def test_whatever_happened_the_next_answer_is_as_if_fresh(name: str, actions: list[str], limit: int) -> None:
    session = start(name, limit=limit)
    last = [lambda session: say(session, "Well?"), assert_as_if_fresh]  # asking ends an answer that was left unread
    for action in [*map(ACTIONS.get, actions), *last]:
        with suppress_full_context():
            action(session)


@contextmanager
def suppress_full_context() -> Iterator[None]:
    """Pictures are never forgotten, so that many of them may fill the context."""
    try:
        yield
    except LlavaError as error:
        if "show fewer pictures" not in str(error):
            raise
