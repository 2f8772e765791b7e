"""Ids and labels against what is known otherwise: the prompt as one string, and the answers as they were given."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_llava.data.encoding import IGNORED, EncodedSample, encode_sample
from paddle_llava.data.records import Sample
from paddle_llava.data.show import decoded_pieces
from paddle_llava.errors import LlavaError
from paddle_llava.processing.conversation import IMAGE, Message
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.template_choice import read_template
from paddle_llava.processing.templates import TEMPLATES

VICUNA = TEMPLATES["vicuna_v1"]
FEATURES = 64  # of a picture of v15
words = st.text(st.sampled_from("ab cé图\n<>/:"), min_size=1, max_size=12) | st.sampled_from(
    ["USER: hi", "</s>", "<image>", "ASSISTANT:", "A red bus on the street", "照片"]
)


def sample(*texts: str, images: tuple[int, ...] = (), sources: tuple[str, ...] = ()) -> Sample:
    """Questions and answers in turn, with `images[n]` pictures before the n-th question."""
    counts = [*images, *[0] * len(texts)]
    messages = tuple(
        Message("assistant", text) if n % 2 else Message("user", (*[IMAGE, "\n"] * counts[n // 2], text))
        for n, text in enumerate(texts)
    )
    return Sample(sources or ("x.png",) * sum(images), messages, 7, "train.json")


conversations = st.lists(st.tuples(words, words, st.integers(0, 2)), min_size=1, max_size=4).map(
    lambda turns: sample(
        *(text for question, answer, _ in turns for text in (question, answer)), images=tuple(n for _, _, n in turns)
    )
)


def learnt(encoded: EncodedSample, processor: LlavaProcessor) -> list[str]:
    """The text of each run of targets."""
    runs = groupby(encoded.labels.tolist(), key=lambda label: label != IGNORED)
    return [processor.tokenizer.decode(run, skip_special_tokens=False) for target, run in runs if target]


def test_is_the_prompt_with_its_answers(v15: LlavaProcessor) -> None:
    """Against the whole prompt, written out as the reference does and read by the processor as for a chat."""
    encoded = encode_sample(
        sample("What is it?", "A red bus.", "Which street?", "The lake's.", images=(1,)), v15, VICUNA, 2048
    )
    prompt = (
        f"{VICUNA.system} USER: <image>\nWhat is it? ASSISTANT: A red bus.</s>"
        "USER: Which street? ASSISTANT: The lake's.</s>"
    )
    expected = v15.prepare(prompt, [np.zeros((9, 9, 3), np.uint8)])["input_ids"][0]
    np.testing.assert_array_equal(encoded.input_ids, expected)
    assert encoded.input_ids.dtype == encoded.labels.dtype == np.int64
    assert learnt(encoded, v15) == ["A red bus.</s>", "The lake's.</s>"]
    assert (encoded.feature_counts, encoded.image_sizes) == ((FEATURES,), (None,))
    assert (encoded.full_length, encoded.truncated) == (len(expected), False)


@given(conversations)
@settings(max_examples=60, deadline=None)
def test_targets_are_the_answers_and_their_ends(v15: LlavaProcessor, some: Sample) -> None:
    encoded = encode_sample(some, v15, VICUNA, 10_000)
    answers = [str(message.text) for message in some.messages if message.role == "assistant"]
    # Decoding drops the space that the template puts before an answer, and nothing else of it.
    assert learnt(encoded, v15) == [f"{answer}</s>" for answer in answers]
    targets = encoded.labels != IGNORED
    np.testing.assert_array_equal(encoded.labels[targets], encoded.input_ids[targets])
    assert not targets[encoded.input_ids == v15.config.image_token_id].any()
    assert (encoded.input_ids == v15.config.image_token_id).sum() == FEATURES * len(some.images)
    assert encoded.num_targets == targets.sum()
    assert encoded.input_ids[-1] == v15.tokenizer.eos_token_id


@given(some=conversations, max_length=st.integers(1, 600), name=st.sampled_from(["vicuna_v1", "llava_v0", "mpt"]))
@settings(max_examples=150, deadline=None)
def test_a_truncated_sample_is_a_prefix_with_whole_pictures(
    v15: LlavaProcessor, some: Sample, max_length: int, name: str
) -> None:
    image_id = v15.config.image_token_id
    whole = encode_sample(some, v15, TEMPLATES[name], 10_000)
    last = max_length  # the end of the tokens that fit, without a picture that is not whole
    while last < len(whole) and last and whole.input_ids[last] == whole.input_ids[last - 1] == image_id:
        last -= 1
    if (whole.labels[1:last] == IGNORED).all():
        with pytest.raises(LlavaError, match=r"^train.json: record 7: of its .* raise max_length"):
            encode_sample(some, v15, TEMPLATES[name], max_length)
        return
    cut = encode_sample(some, v15, TEMPLATES[name], max_length)
    length = len(cut)
    assert 0 < length <= max_length
    np.testing.assert_array_equal(cut.input_ids, whole.input_ids[:length])
    np.testing.assert_array_equal(cut.labels, whole.labels[:length])
    assert cut.labels[-1] != IGNORED
    assert cut.truncated == (whole.full_length > max_length)
    assert cut.full_length == whole.full_length
    images = cut.input_ids == image_id
    assert images.sum() == sum(cut.feature_counts) == FEATURES * len(cut.images)
    assert (whole.labels[length:last] == IGNORED).all()  # nothing more could have been learnt


def test_cuts_within_an_answer_or_before_a_question(v15: LlavaProcessor) -> None:
    some = sample("a", "A red bus on the street", "b", "B", images=(1, 1))
    whole = encode_sample(some, v15, VICUNA, 10_000)
    first = int(np.flatnonzero(whole.input_ids == v15.tokenizer.eos_token_id)[0]) + 1
    second_picture = first + int(np.flatnonzero(whole.input_ids[first:] == v15.config.image_token_id)[0])
    for max_length, length, pictures in [
        (first - 2, first - 2, 1),  # within the answer
        (first, first, 1),
        (second_picture, first, 1),  # a question without its answer goes
        (second_picture + FEATURES - 1, first, 1),  # and so does one whose picture would not be whole
        (second_picture + FEATURES + 3, first, 1),
        (len(whole) - 1, len(whole) - 1, 2),
    ]:
        cut = encode_sample(some, v15, VICUNA, max_length)
        assert (len(cut), len(cut.images), cut.truncated) == (length, pictures, True)


def test_stage_one_learns_the_caption_alone(v15: LlavaProcessor) -> None:
    encoded = encode_sample(sample("Describe it.", "A red bus", images=(1,)), v15, TEMPLATES["plain"], 2048)
    ids = [v15.tokenizer.bos_token_id, *[v15.config.image_token_id] * FEATURES]
    assert encoded.input_ids[: len(ids)].tolist() == ids
    assert (encoded.labels[: len(ids)] == IGNORED).all()
    np.testing.assert_array_equal(encoded.labels[len(ids) :], encoded.input_ids[len(ids) :])
    assert v15.tokenizer.decode(encoded.input_ids[len(ids) :].tolist()) == "A red bus\n"


def test_an_original_checkpoint_marks_pictures_by_its_own_id(original: LlavaProcessor) -> None:
    encoded = encode_sample(sample("<image>", "A red bus", images=(2,)), original, VICUNA, 2048)
    assert (encoded.input_ids == -200).sum() == 2 * FEATURES
    assert learnt(encoded, original) == ["A red bus</s>"]


def test_features_follow_from_the_size(v16: LlavaProcessor, pictures: Path) -> None:
    names = ["wide.png", "tall.jpg", "large.jpg"]
    sources = tuple(str(pictures / name) for name in names)
    encoded = encode_sample(sample("a", "b", images=(3,), sources=sources), v16, VICUNA, 4096)
    assert encoded.image_sizes == ((60, 200), (150, 40), (300, 260))
    prepared = v16.prepare_images(list(sources))
    assert list(encoded.feature_counts) == v16.feature_counts(prepared["image_sizes"])
    assert len(set(encoded.feature_counts)) > 1


@pytest.mark.parametrize(
    "spelled",
    [
        {"user_prefix": "USER: ", "assistant_prefix": " ASSISTANT: ", "answer_suffix": "</s>"},
        {"user_prefix": "USER: ", "user_suffix": " ASSISTANT: ", "assistant_prefix": "", "answer_suffix": "</s>"},
        {"conversation": ["USER: {{user}} ASSISTANT: ", "{{bot}}</s>"]},
        {"conversation": ["USER: {{user}} ", "ASSISTANT: {{bot}}</s>"], "query": "USER: {{query}} ASSISTANT:"},
    ],
)
def test_the_first_word_is_learnt_wherever_a_template_has_its_space(tmp_path: Path, spelled: dict[str, Any]) -> None:
    """With LLaMA's pieces, which begin with the space before a word."""
    street = LlavaProcessor.from_pretrained("street")
    some = sample("Which colour is the car?", "Red.", "And the bus?", "Blue.")
    (tmp_path / "mine.json").write_text(json.dumps(spelled))
    encoded = encode_sample(some, street, read_template(tmp_path / "mine.json"), 512)
    expected = encode_sample(some, street, replace(VICUNA, system=""), 512)
    np.testing.assert_array_equal(encoded.input_ids, expected.input_ids)
    np.testing.assert_array_equal(encoded.labels, expected.labels)
    targets = [piece.text for piece in decoded_pieces(encoded, street) if piece.target]
    assert targets == [" Red.</s>", " Blue.</s>"]


def test_a_system_text_of_its_own(v15: LlavaProcessor) -> None:
    some = replace(sample("a", "b"), system="Be brief.")
    told = encode_sample(some, v15, VICUNA, 2048)
    expected = encode_sample(sample("a", "b"), v15, replace(VICUNA, system="Be brief."), 2048)
    np.testing.assert_array_equal(told.input_ids, expected.input_ids)
    shown = sample("a", "b", images=(1,))
    plain = [encode_sample(each, v15, TEMPLATES["plain"], 2048) for each in (shown, replace(shown, system="Be brief."))]
    np.testing.assert_array_equal(plain[0].input_ids, plain[1].input_ids)
    with pytest.raises(LlavaError, match="record 7: the template 'mistral_instruct' has no place for a system text"):
        encode_sample(some, v15, TEMPLATES["mistral_instruct"], 2048)


@pytest.mark.parametrize(
    ("some", "max_length", "reason"),
    [
        (sample("a", "b", images=(1,)), 64, r"tokens, 64 of them for pictures, the first 64 hold no answer"),
        (sample("a" * 50, "b"), 30, r"tokens the first 30 hold no answer to learn from; raise max_length"),
        (sample("a"), 2048, "there is no answer to learn from"),
        (sample("a", "\ud800"), 2048, "half a surrogate pair"),
        (Sample((), (Message("assistant", "a"),), 7, "train.json"), 2048, "message 1 is of role 'assistant'"),
    ],
)
def test_refusals_name_the_record(v15: LlavaProcessor, some: Sample, max_length: int, reason: str) -> None:
    with pytest.raises(LlavaError, match=rf"^train.json: record 7: .*{reason}"):
        encode_sample(some, v15, VICUNA, max_length)


def test_a_missing_picture_names_the_record(v16: LlavaProcessor) -> None:
    with pytest.raises(LlavaError, match=r"^train.json: record 7: 'x.png': no such file"):
        encode_sample(sample("a", "b", images=(1,)), v16, VICUNA, 2048)
