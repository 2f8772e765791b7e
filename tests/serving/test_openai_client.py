"""OpenAI's own client, unchanged, against a server."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from paddle_llava import ChatSession, LlavaForConditionalGeneration, LlavaProcessor, SamplingParams
from paddle_llava.processing.loading import load_image
from serving_process import Served, data_uri, noise, user

MODEL = "llava-test"


@pytest.fixture(scope="module")
def client(served: Served) -> OpenAI:
    return served.client()


def test_models(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == MODEL
    assert client.models.retrieve(MODEL) == model
    with pytest.raises(openai.NotFoundError, match="'gpt-4' does not exist; this server has 'llava-test'"):
        client.models.retrieve("gpt-4")


def test_an_answer_is_that_of_a_chat(client: OpenAI, demo_checkpoint: Path, photo: Path) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(demo_checkpoint)
    session = ChatSession(model, LlavaProcessor.from_pretrained(demo_checkpoint), params=SamplingParams(12))
    told = "".join(session.ask("What is in the picture?", load_image(photo)))
    messages = [user("What is in the picture?", data_uri(photo.read_bytes(), "jpeg"))]
    answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=12, temperature=0)
    assert answer.choices[0].message.content == told
    assert answer.choices[0].finish_reason == "length"
    assert session.stats is not None
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == session.stats.context_tokens
    assert answer.usage.completion_tokens == session.stats.generated_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_streaming_says_the_same(client: OpenAI) -> None:
    messages = [user("Describe it.", data_uri(noise(80, 100)))]
    options = {"model": MODEL, "messages": messages, "max_tokens": 20, "temperature": 0}
    whole = client.chat.completions.create(**options)
    stream = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    *chunks, last = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "length"]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 20
    assert last.usage.prompt_tokens_details.cached_tokens == last.usage.prompt_tokens - 1
    assert len({chunk.id for chunk in chunks}) == 1
    without = list(client.chat.completions.create(**options, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in without)


def test_the_next_turn_of_a_stateless_client_runs_only_its_new_tokens(served: Served, client: OpenAI) -> None:
    messages = [user("What is it?", data_uri(noise(200, 300, seed=7)))]
    encoded, known = served.metric("llava_pictures_encoded_total"), 0
    for _ in range(4):
        answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=3, temperature=0)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details.cached_tokens >= known
        known = answer.usage.prompt_tokens  # what was said may be tokenised otherwise than it was generated
        messages += [{"role": "assistant", "content": answer.choices[0].message.content}, user("And?")]
    assert known > 100
    assert served.metric("llava_pictures_encoded_total") == encoded + 1


def test_another_question_about_a_picture_does_not_encode_it_again(served: Served, client: OpenAI) -> None:
    picture = data_uri(noise(64, 64, seed=8))
    counted = []
    for question in ("What is it?", "Which colours are there?"):
        encoded = served.metric("llava_pictures_encoded_total")
        answer = client.chat.completions.create(model=MODEL, messages=[user(question, picture)], max_tokens=2)
        counted.append((served.metric("llava_pictures_encoded_total") - encoded, answer.usage.prompt_tokens_details))
    assert [count for count, _ in counted] == [1, 0]
    assert counted[1][1].cached_tokens > 64


def test_pictures_by_url_and_several(client: OpenAI) -> None:
    def ask(*parts: str) -> tuple[str | None, int]:
        answer = client.chat.completions.create(model=MODEL, messages=[user(*parts)], max_tokens=6, temperature=0)
        assert answer.usage is not None
        return answer.choices[0].message.content, answer.usage.prompt_tokens

    one, two = "http://pictures.test/picture", data_uri(noise(50, 40, seed=9))
    assert ask("Which?", one) == ask("Which?", data_uri(noise(90, 120, seed=5)))
    text, length = ask("Which?", one, two)
    assert length > ask("Which?", one)[1] + 60
    assert text == ask(one, two, "Which?")[0]
    assert ask("left:", one, "right:", two, "Which?")[1] != length


def test_stop_strings_end_an_answer_before_them(client: OpenAI) -> None:
    messages = [user("Go on.")]
    options = {"model": MODEL, "messages": messages, "max_tokens": 40, "temperature": 0}
    whole = client.chat.completions.create(**options).choices[0].message.content or ""
    stop = whole[len(whole) // 2 :][:3]
    for given in (stop, [stop, "never said"]):
        choice = client.chat.completions.create(**options, stop=given).choices[0]
        assert choice.finish_reason == "stop"
        assert choice.message.content == whole[: whole.index(stop)]
    pieces = client.chat.completions.create(**options, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == whole[: whole.index(stop)]


def test_an_answer_goes_back_as_it_came(client: OpenAI) -> None:
    """As OpenAI's own examples keep a conversation, and with the settings that ask for nothing."""
    messages: list[Any] = [user("Go on.")]
    options = {"model": MODEL, "max_tokens": 4, "top_p": 0, "stop": "", "tool_choice": "none"}
    messages += [client.chat.completions.create(**options, messages=messages).choices[0].message, user("And then?")]
    nothing = {"functions": None, "reasoning_effort": None, "audio": None}
    answer = client.chat.completions.create(**options, messages=messages, extra_body=nothing)
    assert answer.usage.completion_tokens == 4


def test_seeds(client: OpenAI) -> None:
    options = {"model": MODEL, "messages": [user("Go on.")], "max_tokens": 12, "temperature": 1.0, "top_p": 0.95}
    answers = [
        client.chat.completions.create(**options, seed=seed).choices[0].message.content for seed in (1, 1, 2, -1, -1)
    ]
    assert answers[0] == answers[1] != answers[2]
    assert answers[3] == answers[4] != answers[0]


def test_log_probabilities(client: OpenAI) -> None:
    options = {"model": MODEL, "messages": [user("Go on.")], "max_tokens": 5, "temperature": 0}
    answer = client.chat.completions.create(**options, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == 5
    for token in content:
        assert token.logprob <= 0
        assert token.logprob == token.top_logprobs[0].logprob  # greedy
        assert len(token.top_logprobs) == 3
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1
    words = [token.token for token in content if len(token.token) > 1]
    assert all(word in f" {answer.choices[0].message.content}" for word in words)
    chunks = client.chat.completions.create(**options, logprobs=True, stream=True)
    told = [x.logprob for c in chunks if c.choices[0].logprobs for x in c.choices[0].logprobs.content]
    assert told == [token.logprob for token in content]


def test_max_completion_tokens_and_the_end_of_the_context(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=[user("Go on.")], max_completion_tokens=3)
    assert answer.usage.completion_tokens == 3
    each = (answer_length(client, "lake " * 110) - answer_length(client, "lake " * 10)) / 100
    long = user("lake " * int(1950 / each))
    answer = client.chat.completions.create(model=MODEL, messages=[long], max_tokens=200, temperature=0)
    assert answer.usage.total_tokens == 2048
    assert answer.choices[0].finish_reason == "length"


def answer_length(client: OpenAI, text: str) -> int:
    """Tokens of a prompt with `text`."""
    return client.chat.completions.create(model=MODEL, messages=[user(text)], max_tokens=1).usage.prompt_tokens


def test_system_messages_replace_the_template_s_text(client: OpenAI) -> None:
    def tokens(*messages: dict) -> int:
        return client.chat.completions.create(model=MODEL, messages=list(messages), max_tokens=1).usage.prompt_tokens

    plain = tokens(user("Hi"))
    assert tokens({"role": "system", "content": "Be brief."}, user("Hi")) < plain
    assert tokens({"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}, user("Hi")) < plain


def test_errors_are_those_of_openai(client: OpenAI, served: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[])
    assert caught.value.param == "messages"
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=[user("Hi")])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.InternalServerError) as failed:
        client.chat.completions.create(model=MODEL, messages=[user("boom")], max_tokens=100, temperature=0)
    assert failed.value.status_code == 500
    with pytest.raises(openai.APIError, match="the model failed on this request"):
        list(
            client.chat.completions.create(
                model=MODEL, messages=[user("boom")], max_tokens=100, temperature=0, stream=True
            )
        )
    assert "secret words" not in served.said()


def test_nothing_of_a_request_is_logged(client: OpenAI, served: Served) -> None:
    secret = user("confidential words", "http://pictures.test/picture?confidential")
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=MODEL, messages=[secret], max_tokens=2)
    client.chat.completions.create(model=MODEL, messages=[user("confidential words")], max_tokens=2)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("confidential-model")
    log = served.said()
    assert "/v1/chat/completions" in log
    assert "confidential" not in log
