from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import CHINESE, ENGLISH, train, write_original

from paddle_llava.config import ORIGINAL_IMAGE_TOKEN_ID
from paddle_llava.errors import LlavaError
from paddle_llava.processing.conversation import (
    IMAGE,
    Message,
    Segment,
    answer_end,
    encode,
    parse_prompt,
    prompt_string,
    render,
    stop_token_ids,
)
from paddle_llava.processing.sentencepiece_model import added_token, tokenizer_json_from_sentencepiece
from paddle_llava.processing.template_choice import read_template, recorded_name, template_for
from paddle_llava.processing.templates import ALIASES, TEMPLATES, named_template
from paddle_llava.processing.tokenizer import Tokenizer

ORIGINAL = json.loads((Path(__file__).parent / "fixtures_text" / "original_prompts.json").read_text("utf-8"))
PUBLISHED = Path(__file__).parents[1] / "published_configs"
MODEL = train(ENGLISH + CHINESE, vocab_size=600)
VICUNA = TEMPLATES["vicuna_v1"]
CHATML = ("<|im_start|>", "<|im_end|>")


# With pieces that span the end of one turn and the start of the next, such as "###H" and "><".
SPANNING = train(
    ["a###Human: hi###Assistant: ho###Human: hi", "ho<|im_end|><|im_start|>user"],
    vocab_size=340,
    split_by_unicode_script=False,
)


def build(*, legacy: bool = True, extra: tuple[str, ...] = ("<image>", "<pad>"), model: bytes = MODEL) -> Tokenizer:
    raw = tokenizer_json_from_sentencepiece(model, legacy=legacy, where="test")
    size = len(raw["model"]["vocab"])
    raw["added_tokens"] += [added_token(size + i, text, special=True) for i, text in enumerate(extra)]
    return Tokenizer(raw, {}, "test")


TWIN = build()
ORIGINAL_TOKENIZER = build(extra=(), legacy=False)
TOKENIZERS = {
    "twin": TWIN,
    "first only": build(legacy=False),
    "original": ORIGINAL_TOKENIZER,
    "chatml": build(extra=("<image>", "<pad>", *CHATML)),
    "spanning": build(model=SPANNING),
}

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["What is in the picture?", "A red bus", "照片", "\n", " two  spaces ", "###", "USER: x ASSISTANT: y", "1.5"]
)
questions = st.builds(Message, st.just("user"), words, st.integers(0, 2))
answers = st.builds(Message, st.just("assistant"), words)
conversations = st.lists(st.tuples(questions, answers), min_size=1, max_size=3).map(
    lambda turns: [message for turn in turns for message in turn]
)
some = settings(max_examples=50, deadline=None)


def chat(*turns: tuple[str, str | None], images: int = 0) -> list[Message]:
    """A conversation from (question, answer) pairs, the pictures before the first question."""
    messages = []
    for number, (question, answer) in enumerate(turns):
        messages.append(Message("user", question, 0 if number else images))
        messages += [] if answer is None else [Message("assistant", answer)]
    return messages


# --- rendering

CASES = {
    "question": chat(("What is this?", None), images=1),
    "answered": chat(("What is this?", "A red bus."), images=1),
    "second question": chat(("What is this?", "A red bus."), ("它在哪里?", None), images=1),
    "three turns": [
        *chat(("Hello!", "Hi there.")),
        Message("user", "Compare.", images=2),
        Message("assistant", "Two  lakes\n"),
        *chat(("Thanks", "!")),
    ],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ORIGINAL)
def test_prompts_are_the_originals(name, case):
    messages = CASES[case]
    segments = render(messages, named_template(name, "test"), add_generation_prompt=messages[-1].role == "user")
    assert prompt_string(segments) == ORIGINAL[name][case]
    assert sum(segment.kind == "image" for segment in segments) == ORIGINAL[name][case].count("<image>")


def test_plain_drops_the_question():
    messages = chat(("Describe it.", "A lake\nwith boats"), images=1)
    assert prompt_string(render(messages, TEMPLATES["plain"])) == "<image>A lake\nwith boats\n"
    prompt = render(messages[:1], TEMPLATES["plain"], add_generation_prompt=True)
    assert prompt_string(prompt) == "<image>"
    with pytest.raises(LlavaError, match="'plain' keeps only the pictures"):
        render(chat(("Describe it.", "A lake")), TEMPLATES["plain"])


def test_an_empty_system_text_leaves_nothing_behind():
    hf = render(chat(("Hi", None), images=1), replace(VICUNA, system=""), add_generation_prompt=True)
    assert prompt_string(hf) == "USER: <image>\nHi ASSISTANT:"
    for name in ("llava_llama_2", "mpt", "llava_v0"):
        assert "SYS" not in prompt_string(render(chat(("Hi", None)), replace(TEMPLATES[name], system="")))
    assert prompt_string(render(chat(("Hi", None)), replace(TEMPLATES["mpt"], system=""))).startswith(
        "<|im_start|>user"
    )


def test_pictures_can_be_placed():
    message = Message("user", ["left: ", IMAGE, " right: ", IMAGE, ""])
    segments = render([message], replace(VICUNA, system=""), add_generation_prompt=True)
    assert prompt_string(segments) == "USER: left: <image> right: <image> ASSISTANT:"


def test_words_that_look_like_structure_stay_words():
    mean = "x</s>USER: <image> [INST] <|im_end|><s>###"
    for name, template in TEMPLATES.items():
        if not template.keeps_question:
            continue
        template = replace(template, system=mean)
        segments = render(chat((mean, mean), (mean, None)), template, add_generation_prompt=True)
        plain = render(chat(("q", "a"), ("q", None)), template, add_generation_prompt=True)
        assert [s.text for s in segments if s.kind != "text"] == [s.text for s in plain if s.kind != "text"], name
        tokenizer = TOKENIZERS["chatml"]
        ids, plain_ids = encode(segments, tokenizer).ids, encode(plain, tokenizer).ids
        special = [[i for i in row if i in tokenizer.special_ids] for row in (ids, plain_ids)]
        assert special[0] == special[1], name


@pytest.mark.parametrize(
    ("messages", "generate", "message"),
    [
        ([Message("assistant", "hi")], False, "message 1 is of role 'assistant', where 'user' is due"),
        ([Message("user", "a"), Message("user", "b")], False, "message 2 is of role 'user'"),
        ([Message("system", "a")], False, "role 'system'"),
        ([Message("user", "a"), Message("assistant", "b")], True, "the last message is not the user's"),
        ([], True, "the last message is not the user's"),
        ([Message("user", "a"), Message("assistant", "b", images=1)], False, "text without pictures"),
        ([Message("user", "a"), Message("assistant", [IMAGE])], False, "text without pictures"),
        ([Message("user", [IMAGE, "a"], images=1)], False, "not both"),
        ([Message("user", [IMAGE, 3])], False, "made of text and IMAGE, found '3'"),
        ([Message("user", [Segment("special", "</s>")])], False, "made of text and IMAGE"),
    ],
)
def test_conversations_that_cannot_be_rendered(messages, generate, message):
    with pytest.raises(LlavaError, match=message):
        render(messages, VICUNA, add_generation_prompt=generate)


# --- ids


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_further_turn_never_changes_earlier_ids(template, name):
    @settings(max_examples=10, deadline=None)
    @given(conversations, questions)
    def stable(messages, question):
        if not template.keeps_question:
            messages = [replace(m, images=m.images or m.role == "user") for m in messages]
            question = replace(question, images=2)
        before = encode(render(messages, template), TOKENIZERS[name])
        longer = render([*messages, question], template, add_generation_prompt=True)
        after = encode(longer, TOKENIZERS[name])
        size = len(before.ids)
        assert after.ids[:size] == before.ids
        assert after.target_mask == before.target_mask + [False] * (len(after.ids) - size)
        # And the further turn alone, as a session encodes it.
        own = [segment for segment in longer if segment.turn == len(messages) // 2]
        last = [segment for segment in longer if segment.turn < len(messages) // 2][-1]
        assert encode(own, TOKENIZERS[name], after=last).ids == after.ids[size:]

    stable()


@pytest.mark.parametrize("template", ["vicuna_v1", "llava_llama_2", "mistral_instruct", "mpt"])
@pytest.mark.parametrize("legacy", [True, False])
def test_ids_are_those_of_the_whole_prompt_string(tmp_path, template, legacy):
    tokenizer = build(legacy=legacy, extra=("<image>", "<pad>", *CHATML))
    tokenizer.save_pretrained(tmp_path)
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))

    @some
    @given(conversations, questions)
    def same(messages, question):
        segments = render([*messages, question], TEMPLATES[template], add_generation_prompt=True)
        words = [segment.text for segment in segments if segment.kind == "text"]
        if any(special in text for text in words for special in tokenizer.special_tokens):
            return
        encoded = encode(segments, tokenizer)
        assert encoded.ids == reference.encode(prompt_string(segments)).ids
        assert encode(parse_prompt(prompt_string(segments), tokenizer), tokenizer).ids == encoded.ids
        assert [
            i for i, token in enumerate(encoded.ids) if token == tokenizer.image_token_id
        ] == encoded.image_positions

    same()


def test_templates_that_end_turns_with_text_give_the_whole_strings_ids_too(tmp_path):
    TWIN.save_pretrained(tmp_path)
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    segments = render(chat(("Describe it.", "A bus"), ("Where?", "Here")), TEMPLATES["llava_v0"])
    assert encode(segments, TWIN).ids == reference.encode(prompt_string(segments)).ids


def test_the_originals_prompt_starts_anew_after_a_picture():
    # tokenizer_image_token: each stretch between pictures through the tokenizer, its BOS dropped.
    segments = render(chat(("What?", "A bus"), ("Where?", None), images=1), VICUNA, add_generation_prompt=True)
    before, _, rest = prompt_string(segments).partition("<image>")
    answer, _, last = rest.partition("</s>")
    tokenizer = ORIGINAL_TOKENIZER
    assert encode(segments, tokenizer).ids == [
        1,
        *tokenizer.encode_segment(before, first=True),
        ORIGINAL_IMAGE_TOKEN_ID,
        *tokenizer.encode_segment(answer, first=True),
        2,
        *tokenizer.encode_segment(last, first=False),
    ]
    assert encode(segments, tokenizer).image_positions == [1 + len(tokenizer.encode_segment(before, first=True))]


@pytest.mark.parametrize("template", [t for t in TEMPLATES.values() if t.name != "plain"], ids=lambda t: t.name)
def test_a_prompt_for_generation_begins_the_answered_one(template):
    @some
    @given(questions, st.from_regex(r"\A[A-Za-z照][^\n]{0,20}\Z"))
    def begins(question, answer):
        prompt = encode(render([question], template, add_generation_prompt=True), TWIN)
        whole = encode(render([question, Message("assistant", answer)], template), TWIN)
        size = len(prompt.ids)
        assert whole.ids[:size] == prompt.ids
        assert whole.target_mask == [False] * size + [True] * (len(whole.ids) - size)

    begins()


def test_a_piece_that_spans_the_start_of_an_answer_is_no_target():
    # LLaMA's vocabulary has no piece across a space; one that was trained without that rule may.
    free = {"split_by_whitespace": False, "split_by_unicode_script": False}
    model = train(["ASSISTANT: The", "lake"], vocab_size=320, **free)
    tokenizer = Tokenizer(tokenizer_json_from_sentencepiece(model, legacy=True, where="test"), {}, "test")
    prompt = encode(render(chat(("q", None)), VICUNA, add_generation_prompt=True), tokenizer)
    ids, mask, _ = encode(render(chat(("q", "The lake")), VICUNA), tokenizer)
    assert ids[: len(prompt.ids)] != prompt.ids
    context, targets = ids[: mask.index(True)], ids[mask.index(True) :]
    assert tokenizer.decode(context).endswith("ASSISTANT: The")
    assert tokenizer.decode(targets) == "lake"
    assert all(mask[len(context) :])


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("vicuna_v1", "A red bus</s>Yes</s>"),
        ("llava_v0", "A red bus###Yes###"),
        ("llava_llama_2", "A red bus </s>Yes </s>"),
        ("mpt", "A red bus<|im_end|>Yes<|im_end|>"),
        ("plain", "A red bus\nYes\n"),
    ],
)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_targets_are_the_answers_and_what_closes_them(template, expected, name):
    tokenizer = TOKENIZERS[name]
    messages = chat(("What is this?", "A red bus"), ("Is it?", "Yes"), images=1)
    messages[2] = replace(messages[2], images=1)
    ids, mask, positions = encode(render(messages, TEMPLATES[template]), tokenizer)
    assert len(ids) == len(mask)
    assert not any(mask[position] for position in positions)
    targets = [token for token, target in zip(ids, mask, strict=True) if target]
    text = tokenizer.decode(targets, skip_special_tokens=False)
    assert re.sub(r"(</s>|###|\n) ", r"\1", text) == expected  # the legacy way has a space after special tokens


def test_bos_is_never_doubled_and_never_in_the_middle():
    template = replace(VICUNA, system_prefix="<s>")
    assert encode(render(chat(("q", None)), template), TWIN).ids.count(1) == 1
    assert encode(parse_prompt("<s>USER: q", TWIN), TWIN).ids.count(1) == 1
    assert encode([], TWIN).ids == [1]
    assert encode([], TWIN, after=IMAGE).ids == []
    without = build()
    without.adds_bos = False
    assert encode(render(chat(("q", None)), VICUNA), without).ids.count(1) == 0


def test_a_marker_is_one_id_where_the_vocabulary_has_it():
    segments = render(chat(("q", "a")), TEMPLATES["mpt"])
    one = TOKENIZERS["chatml"].special_tokens["<|im_end|>"]
    assert encode(segments, TOKENIZERS["chatml"]).ids.count(one) == 3
    assert TWIN.decode(encode(segments, TWIN).ids).count("<|im_end|>") == 3
    assert stop_token_ids(TEMPLATES["mpt"], TOKENIZERS["chatml"]) == {2, one}
    assert stop_token_ids(TEMPLATES["mpt"], TWIN) == {2}
    assert stop_token_ids(VICUNA, TWIN) == {2}


def test_stop_strings():
    stops = {name: template.stop_strings for name, template in TEMPLATES.items() if template.stop_strings}
    chatml = dict.fromkeys(("mpt", "chatml_direct"), ("<|im_end|>",))
    assert stops == {"llava_v0": ("###",), "plain": ("\n",), **chatml}


def test_an_answer_that_was_cut_can_be_closed():
    assert prompt_string(answer_end(TEMPLATES["llava_llama_2"], 3)) == " </s>"
    assert all(segment.target and segment.turn == 3 for segment in answer_end(VICUNA, 3))


def test_parse_prompt_knows_the_vocabularys_special_tokens():
    segments = parse_prompt("<s>USER: <image>\nhi</s><|im_end|>", TWIN)
    assert [(s.kind, s.text) for s in segments] == [
        ("special", "<s>"),
        ("text", "USER: "),
        ("image", "<image>"),
        ("text", "\nhi"),
        ("special", "</s>"),
        ("text", "<|im_end|>"),
    ]
    assert parse_prompt("<image>", ORIGINAL_TOKENIZER) == [IMAGE]


# --- choosing a template


@pytest.mark.parametrize("path", sorted(PUBLISHED.glob("*.json")), ids=lambda path: path.stem)
def test_published_checkpoints_take_vicuna_without_guessing(path):
    raw = json.loads(path.read_text())
    assert template_for(raw, folder_name=path.stem.partition("--")[2]) == (VICUNA, None)


@pytest.mark.parametrize(
    ("raw", "conv_mode", "folder", "expected", "notice"),
    [
        ({}, None, None, "vicuna_v1", None),
        ({}, "llava_v1", "llava-v1.6-mistral-7b", "llava_v1", None),
        ({}, "v1", None, "vicuna_v1", None),
        ({"conv_mode": "mpt"}, None, "llava-v1.6-mistral-7b", "mpt", None),
        ({"conv_mode": "mpt"}, "plain", None, "plain", None),
        ({}, None, "llava-v1.6-mistral-7b", "mistral_instruct", "the folder's name 'llava-v1.6-mistral-7b'"),
        ({}, None, "/data/mistral/llava-v1.6-34b/", "chatml_direct", "the folder's name 'llava-v1.6-34b'"),
        ({}, None, "llava-llama-2-13b-chat", "llava_llama_2", "the folder's name"),
        ({}, None, "LLaVA-7B-v0", "llava_v0", "the folder's name"),
        ({}, None, "my-attempt-v0.3", "vicuna_v1", None),
        ({}, None, "34bd9f2c6ce1de1d8d8d4d5b3d6a1a2b3c4d5e6f", "vicuna_v1", None),  # a commit, as caches call folders
        (
            {"text_config": {"_name_or_path": "meta-llama/Llama-2-7b-chat-hf"}},
            None,
            "run7",
            "llava_llama_2",
            "the configuration's language model 'Llama-2-7b-chat-hf'",
        ),
        ({"text_config": None, "conv_mode": 3}, None, None, "vicuna_v1", None),
    ],
)
def test_choosing(raw, conv_mode, folder, expected, notice):
    template, said = template_for(raw, conv_mode, folder)
    assert template.name == expected
    if notice is None:
        assert said is None
    else:
        assert notice in said
        assert "--conv-mode" in said
        assert "\n" not in said


@pytest.mark.parametrize(
    ("told_in", "own", "expected"),
    [
        (VICUNA, None, None),
        (VICUNA, "vicuna_v1", "vicuna_v1"),
        (VICUNA, "mpt", "vicuna_v1"),
        (TEMPLATES["mpt"], None, "mpt"),
        (TEMPLATES["plain"], None, None),
        (TEMPLATES["plain"], "mpt", "mpt"),
        (replace(VICUNA, name="mine"), "mpt", None),
        (replace(VICUNA, name="mpt"), "mpt", None),  # of a file that happens to be called so
    ],
)
def test_what_is_recorded_after_a_training(told_in, own, expected):
    assert recorded_name(told_in, own) == expected


def test_every_alias_names_a_template():
    assert {named_template(alias, "x").name for alias in ALIASES} <= set(TEMPLATES)


@pytest.mark.parametrize(
    ("raw", "conv_mode", "message"),
    [
        ({}, "vicuna_v2", "conv_mode: no conversation template is called 'vicuna_v2' .did you mean 'vicuna_v1'"),
        ({}, "qqq", "known: vicuna_v1, llava_v1"),
        ({}, "", "no conversation template is called ''"),
        ({"conv_mode": "lava_v1"}, None, "configuration: no conversation template .* mean 'llava_v1'"),
        ({}, "missing.json", "missing.json: no such template file; left out, the checkpoint's own"),
        ({}, "a/" * 3000, "no such template file"),
        ({}, "/", "cannot be read"),
        ({}, "\0.json", "json"),
    ],
)
def test_unknown_names(raw, conv_mode, message):
    with pytest.raises(LlavaError, match=message):
        template_for(raw, conv_mode)


# --- template files

OWN = {"user_prefix": "Q: ", "user_suffix": "\n", "assistant_prefix": "A:", "answer_suffix": "</s>"}
PADDLENLP = {
    "system": "A chat.\n\n",
    "conversation": ["USER: {{user}} ASSISTANT:", " {{ bot }}</s>"],
    "query": "USER: {{query}} ASSISTANT:",
}


def written(tmp_path: Path, value: object) -> Path:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(value) if not isinstance(value, str) else value)
    return path


def test_a_template_of_ones_own(tmp_path):
    own = OWN | {"system": "Be brief.", "stop_strings": ["Q:"], "markers": ["<|end|>"], "roles": ["Q", "A"]}
    template, notice = template_for({}, str(written(tmp_path, own)))
    assert notice is None
    assert (template.name, template.stop_strings, template.roles) == ("mine", ("Q:",), ("Q", "A"))
    assert prompt_string(render(chat(("why?", "so")), template)) == "Be brief.Q: why?\nA:so</s>"


def test_paddlenlps_form(tmp_path):
    template = read_template(written(tmp_path, PADDLENLP))
    messages = chat(("why?", "so"), ("and {{bot}}?", None))
    segments = render(messages, template, add_generation_prompt=True)
    assert prompt_string(segments) == ("A chat.\n\nUSER: why? ASSISTANT: so</s>USER: and {{bot}}? ASSISTANT:")
    assert [s.text for s in segments if s.kind == "special"] == ["</s>"]
    assert template.system == "A chat."


@pytest.mark.parametrize(
    "value",
    [
        {"user_prefix": "Q: ", "assistant_prefix": " A:  ", "answer_suffix": "</s>"},
        {"user_prefix": "Q: ", "user_suffix": " A: ", "assistant_prefix": " ", "answer_suffix": "</s>"},
        {"user_prefix": "Q: ", "user_suffix": " A:  ", "assistant_prefix": "", "answer_suffix": "</s>"},
        {"conversation": ["Q: {{user}} A: ", " {{bot}}</s>"]},
        {"conversation": ["Q: {{user}} A: ", " {{bot}}</s>"], "query": "Q: {{query}} A:"},
        {"conversation": ["Q: {{user}} ", "A:  {{bot}}</s>"], "query": "Q: {{query}} A:  "},
    ],
)
def test_spaces_before_an_answer_are_the_answers(tmp_path, value):
    template = read_template(written(tmp_path, value))
    assert prompt_string(render(chat(("why?", "so")), template)) == "Q: why? A:  so</s>"
    prompt = render(chat(("why?", None)), template, add_generation_prompt=True)
    assert prompt_string(prompt) == "Q: why? A:"
    assert template.answer_prefix == "  "


def test_a_byte_order_mark_is_left_aside(tmp_path):
    path = written(tmp_path, PADDLENLP)
    expected = read_template(path)
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert read_template(path) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "object is expected"),
        (OWN | {"usr_prefix": "x"}, "unknown key 'usr_prefix' .did you mean 'user_prefix'"),
        ({"user_prefix": "Q", "answer_suffix": "</s>"}, "the key assistant_prefix is missing"),
        (OWN | {"system": 3}, "system must be str, found '3'"),
        (OWN | {"system": "x" * 30_000}, "system must be str"),
        (OWN | {"system_in_question": "yes"}, "system_in_question must be bool"),
        (OWN | {"stop_strings": "###"}, "stop_strings must be a list of short texts"),
        (OWN | {"markers": [""]}, "markers must be a list"),
        (OWN | {"markers": ["x"] * 20}, "markers must be a list"),
        (OWN | {"roles": ["one"]}, "roles must be a list"),
        (OWN | {"answer_suffix": ""}, "answer_suffix is empty"),
        (PADDLENLP | {"sytem": ""}, "unknown key 'sytem' .did you mean 'system'"),
        (PADDLENLP | {"conversation": ["{{user}}"]}, "must be two texts"),
        (PADDLENLP | {"conversation": [1, 2]}, "must have {{user}} once"),
        (PADDLENLP | {"conversation": ["{{user}}{{user}}", "{{bot}}"]}, "must have {{user}} once"),
        (PADDLENLP | {"conversation": ["{% if x %}{{user}}", "{{bot}}"]}, "no other Jinja"),
        (PADDLENLP | {"conversation": ["{{user}}", "{{bot}}"]}, "query must be conversation's first"),
        (PADDLENLP | {"query": "USER: {{query}}"}, "query must be conversation's first"),
        (PADDLENLP | {"query": "USER: {{query}} ASSISTANT: Well,"}, "query must be conversation's first"),
        (PADDLENLP | {"system": "{{ cycler.__init__ }}"}, "system must be text without Jinja"),
        (PADDLENLP | {"system": [1]}, "system must be text"),
        ({"conversation": ["{{user}}", "{{bot}}"]}, "answer_suffix is empty"),
    ],
)
def test_bad_template_files(tmp_path, value, message):
    path = written(tmp_path, value)
    with pytest.raises(LlavaError, match=message) as error:
        read_template(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


# --- the reference itself


@pytest.mark.parity
@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("template", ["vicuna_v1", "llava_llama_2", "mistral_instruct", "mpt"])
def test_ids_are_those_of_transformers(tmp_path, template, legacy):
    from transformers import AutoTokenizer

    tokenizer = build(legacy=legacy, extra=("<image>", "<pad>", *CHATML))
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llava_next"}')
    reference = AutoTokenizer.from_pretrained(tmp_path)

    @settings(max_examples=100, deadline=None)
    @given(conversations)
    def same(messages):
        segments = render(messages, TEMPLATES[template])
        words = [segment.text for segment in segments if segment.kind == "text"]
        if not any(special in text for text in words for special in tokenizer.special_tokens):
            assert encode(segments, tokenizer).ids == reference(prompt_string(segments))["input_ids"]

    same()


@pytest.mark.parity
def test_a_converted_original_gives_its_ids_after_pictures(tmp_path):
    from transformers import AutoTokenizer

    original = Tokenizer.from_pretrained(write_original(tmp_path / "original", MODEL, legacy=False))
    size = original.vocab_size
    twin = original.with_image_token(size, size + 1)
    twin.save_pretrained(tmp_path / "twin")
    (tmp_path / "twin" / "config.json").write_text('{"model_type": "llava"}')
    segments = render(chat(("What?", "A red bus"), images=2), VICUNA)
    ids = [size if i == ORIGINAL_IMAGE_TOKEN_ID else i for i in encode(segments, original).ids]
    assert ids == encode(segments, twin).ids
    reference = AutoTokenizer.from_pretrained(tmp_path / "twin")
    assert ids == reference(prompt_string(segments))["input_ids"]
