from __future__ import annotations

import contextlib
import json
import random

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import CHINESE, ENGLISH, train, write_original

from paddle_llava.errors import LlavaError
from paddle_llava.processing.sentencepiece_model import tokenizer_json_from_sentencepiece
from paddle_llava.processing.tokenizer import Tokenizer

MODELS = {
    "english": train(),
    "chinese": train(CHINESE, vocab_size=420),
    "mixed": train(ENGLISH + CHINESE, vocab_size=600),
    "no bytes": train(vocab_size=200, byte_fallback=False),
    "whole digits": train(split_digits=False, split_by_unicode_script=False),
}
WORDS = [
    "the",
    "USER:",
    " ",
    "  ",
    "\n",
    "照片",
    "公交车",
    "鑫",
    "é",
    "😀",
    "\t",
    "▁",
    "\0",
    "12345",
    "</s>",
    "<s>",
]
WORDS += ["<0x0A>", "<image>", "<unk>", "picture", "--", "aaa", "'s", "\u200d", "\ufffd", "ASSISTANT:"]
# Free text, and text with the characters and words that matter.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.lists(
    st.sampled_from(WORDS), max_size=14
).map("".join)
many = settings(max_examples=300, deadline=None)


def from_model(model: bytes, *, legacy: bool = True, **config: object) -> Tokenizer:
    return Tokenizer(tokenizer_json_from_sentencepiece(model, legacy=legacy, where="test"), config, "test")


TOKENIZERS = {name: from_model(model) for name, model in MODELS.items()}
REFERENCES = {name: sentencepiece.SentencePieceProcessor(model_proto=model) for name, model in MODELS.items()}
MIXED = TOKENIZERS["mixed"]


def reference_ids(folder, prompt: str) -> list[int]:
    """The ids of a whole prompt, special tokens parsed, as the tokenizers library gives them."""
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(prompt).ids


# --- encoding


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_sentencepieces_own(name):
    @many
    @given(texts)
    def same(text):
        assert TOKENIZERS[name].encode_segment(text, first=True) == REFERENCES[name].encode(text)

    same()


@pytest.mark.parametrize("legacy", [True, False])
def test_a_stretch_is_encoded_as_within_its_prompt(tmp_path, legacy):
    tokenizer = from_model(MODELS["mixed"], legacy=legacy)
    tokenizer.save_pretrained(tmp_path)
    eos = tokenizer.eos_token_id
    ordinary = texts.filter(lambda text: not any(special in text for special in tokenizer.special_tokens))

    @many
    @given(ordinary, ordinary)
    def same(before, after):
        ids = [tokenizer.bos_token_id, *tokenizer.encode_segment(before, first=True), eos]
        ids += tokenizer.encode_segment(after, first=False)
        assert ids == reference_ids(tmp_path, f"{before}</s>{after}")

    same()


def test_the_two_ways_differ_where_they_should():
    legacy, first_only = (from_model(MODELS["english"], legacy=legacy) for legacy in (True, False))
    assert legacy.encode_segment("USER", first=True) == first_only.encode_segment("USER", first=True)
    assert legacy.encode_segment("USER", first=False) == legacy.encode_segment("USER", first=True)
    prefix = legacy.encode_segment("▁", first=True)[:1]
    assert first_only.encode_segment("\n", first=True)[1:] == first_only.encode_segment("\n", first=False)
    assert legacy.encode_stretch("\n", follows="text")[0] == first_only.encode_segment("\n", first=False)
    assert len(prefix) == 1


@many
@given(texts, st.sampled_from(["nothing", "special", "text"]))
def test_text_never_gives_special_ids(text, follows):
    ids, starts = MIXED.encode_stretch(text, follows=follows)
    assert not MIXED.special_ids & set(ids)
    assert len(starts) == len(ids)
    assert starts == sorted(starts)
    assert all(0 <= start < len(text) for start in starts)


@many
@given(texts)
def test_decode_gives_the_text_back(text):
    visible = text.replace("▁", " ")
    assert MIXED.decode(MIXED.encode_segment(text, first=True)) == visible


def test_added_tokens_never_match_text(tmp_path):
    raw = tokenizer_json_from_sentencepiece(MODELS["mixed"], legacy=True, where="test")
    size = len(raw["model"]["vocab"])
    for number, (content, special) in enumerate({"<image>": True, "<obj>": False, "street": False}.items()):
        entry = {"id": size + number, "content": content, "special": special, "normalized": False}
        raw["added_tokens"].append(entry | {"single_word": False, "lstrip": False, "rstrip": False})
    tokenizer = Tokenizer(raw, {}, "test")
    text = "a <image> in the street <obj></s>"
    assert tokenizer.encode_segment(text, first=True) == REFERENCES["mixed"].encode(text)
    assert tokenizer.image_token_id == size
    assert tokenizer.vocab_size == size + 3


def test_pieces_that_could_make_a_special_token_do_not():
    model = train(["x</s x</s", "y</ y</", "zs> zs>"], vocab_size=290, split_by_unicode_script=False)
    tokenizer = from_model(model)
    vocab = tokenizer_json_from_sentencepiece(model, legacy=True, where="test")["model"]["vocab"]
    assert {"</s", ">"} <= vocab.keys()
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert tokenizer.encode_segment("x</s>", first=True) == reference.encode("x</s>")
    assert tokenizer.eos_token_id not in tokenizer.encode_segment("</s>", first=False)


def test_merges_cannot_make_a_special_token(tmp_path):
    # As converters that derive merges from the whole vocabulary write them.
    tokenizer = from_model(MODELS["mixed"])
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    raw = json.loads(path.read_text())
    vocab, merges = raw["model"]["vocab"], raw["model"]["merges"]
    for piece in ("<s", "</"):
        if piece not in vocab:
            vocab[piece] = max(vocab.values()) + 1
    for piece in "<>/s":
        vocab.setdefault(piece, max(vocab.values()) + 1)
    raw["model"]["merges"] = [["<", "s"], ["<s", ">"], *merges]
    path.write_text(json.dumps(raw))
    assert 1 in tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("<", "s"), ("<s", ">")])).encode("<s>").ids
    assert 1 not in Tokenizer.from_pretrained(tmp_path).encode_segment("<s>", first=False)


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(LlavaError, match="surrogate"):
        MIXED.encode_segment("a\ud83d", first=True)


# --- decoding as tokens come

token_ids = st.lists(
    st.integers(0, MIXED.vocab_size + 5) | st.integers(3, 258) | st.sampled_from([0, 1, 2]), max_size=24
)


@many
@given(token_ids)
def test_a_streamed_answer_is_the_decoded_one(ids):
    stream = MIXED.stream()
    assert "".join([*(stream.push(token) for token in ids), stream.finish()]) == MIXED.decode(ids)


@many
@given(texts)
def test_streamed_pieces_are_whole_characters(text):
    stream = MIXED.stream()
    pieces = [stream.push(token) for token in MIXED.encode_segment(text, first=True)]
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text
    assert "".join(pieces) + stream.finish() == text.replace("▁", " ")


def test_a_stream_gives_words_at_once_and_holds_unfinished_characters():
    stream = MIXED.stream()
    pieces = [stream.push(token) for token in MIXED.encode_segment("the picture", first=True)]
    assert all(pieces)
    assert "".join(pieces) == "the picture"
    first, *rest = [3 + byte for byte in "鑫".encode()]
    assert stream.push(first) == ""
    assert [stream.push(token) for token in rest] == ["", ""]
    assert stream.push(MIXED.encode_segment("the", first=True)[0]).startswith("鑫")
    assert stream.push(MIXED.eos_token_id) == ""
    assert stream.finish() == ""


def test_decode_skips_specials_placeholders_and_padding_of_the_vocabulary():
    ids = MIXED.encode_segment("hello", first=True)
    assert MIXED.decode([1, -200, *ids, 2, MIXED.vocab_size + 7]) == "hello"
    assert MIXED.decode([*ids, 2], skip_special_tokens=False) == "hello</s>"


# --- facts and files


def test_facts_of_an_original_checkpoint(tmp_path):
    tokenizer = Tokenizer.from_pretrained(write_original(tmp_path, MODELS["english"]))
    pieces = REFERENCES["english"].get_piece_size()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert tokenizer.image_token_id is None
    assert tokenizer.vocab_size == pieces
    assert tokenizer.adds_bos
    assert tokenizer.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}


@pytest.mark.parametrize("name", ["tokenizer.model", "sentencepiece.bpe.model"])
def test_tokens_listed_beside_the_model_are_added(tmp_path, name):
    write_original(tmp_path, MODELS["english"]).joinpath("tokenizer.model").rename(tmp_path / name)
    size = REFERENCES["english"].get_piece_size()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<im_end>": size + 1, "<im_start>": size}))
    config = {
        "added_tokens_decoder": {
            str(size + 2): {"content": "<pad>", "special": True},
            "2": {"content": "</s>"},
        }
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<pad>"}))
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert tokenizer.pad_token_id == size + 2
    assert tokenizer.special_tokens["<im_end>"] == size + 1
    assert tokenizer.vocab_size == size + 3


@pytest.mark.parametrize(
    ("setting", "template", "expected"),
    [(None, True, True), (None, False, False), (False, True, False), (True, False, True)],
)
def test_whether_a_prompt_begins_with_bos(tmp_path, setting, template, expected):
    from_model(MODELS["english"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config.pop("add_bos_token")
    config |= {} if setting is None else {"add_bos_token": setting}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if not template:
        raw = json.loads((tmp_path / "tokenizer.json").read_text())
        (tmp_path / "tokenizer.json").write_text(json.dumps(raw | {"post_processor": None}))
    assert Tokenizer.from_pretrained(tmp_path).adds_bos is expected


@pytest.mark.parametrize("legacy", [True, False])
def test_saved_files_give_the_same_tokenizer(tmp_path, legacy):
    tokenizer = from_model(MODELS["mixed"], legacy=legacy, chat_template="{{ x }}", auto_map={"x": "y"})
    tokenizer.save_pretrained(tmp_path / "a")
    again = Tokenizer.from_pretrained(tmp_path / "a")
    again.save_pretrained(tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()
    for first in (True, False):
        assert again.encode_segment("a 鑫\n", first=first) == tokenizer.encode_segment("a 鑫\n", first=first)
    config = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())
    assert config["legacy"] is legacy
    assert config["chat_template"] == "{{ x }}"
    assert "auto_map" not in config


def test_the_hf_twin_of_an_original_has_an_image_token(tmp_path):
    original = from_model(MODELS["mixed"], legacy=False)
    size = original.vocab_size
    twin = original.with_image_token(size, size + 1)
    assert (twin.image_token_id, twin.pad_token_id, twin.vocab_size) == (size, size + 1, size + 2)
    assert twin.with_image_token(size, size + 1) is twin
    # After a picture as the original: its tokenisation starts anew there.
    assert twin.encode_segment("\nhi", first=False) == original.encode_segment("\nhi", first=True)
    twin.save_pretrained(tmp_path)
    prompt = reference_ids(tmp_path, "USER: <image>\nhi ASSISTANT:")
    assert prompt[prompt.index(size) + 1 :] == original.encode_segment("\nhi ASSISTANT:", first=True)
    with pytest.raises(LlavaError, match=f"<image>.*{size + 9}.*free one is {size}"):
        original.with_image_token(size + 9, size + 10)


# --- bad files


def _edited(**changes: object) -> bytes:
    raw = tokenizer_json_from_sentencepiece(MODELS["english"], legacy=True, where="test")
    for key, value in changes.items():
        *path, last = key.split("__")
        node = raw
        for step in path:
            node = node[step]
        node[last] = value
    return json.dumps(raw).encode()


BAD_FILES = {
    "nothing": ({}, "neither tokenizer.json nor tokenizer.model"),
    "not json": ({"tokenizer.json": b"{"}, "not valid JSON"),
    "a list": ({"tokenizer.json": b"[]"}, "object is expected"),
    "empty": ({"tokenizer.json": b"{}"}, "pre_tokenizer is not that of a LLaMA"),
    "deep": ({"tokenizer.json": b'{"a":' + b"[" * 200_000}, "not valid JSON"),
    "too large": ({"tokenizer.json": b"[" + b" " * (17 << 20)}, "larger than 16 MiB"),
    "byte level": ({"tokenizer.json": _edited(decoder={"type": "ByteLevel"})}, "decoder is not that"),
    "regular expression": (
        {"tokenizer.json": _edited(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+b"}})},
        "pre_tokenizer is not that",
    ),
    "metaspace without prefix": (
        {"tokenizer.json": _edited(normalizer=None, pre_tokenizer={"type": "Metaspace", "replacement": "_"})},
        "pre_tokenizer is not that",
    ),
    "long prefix": (
        {"tokenizer.json": _edited(normalizer={"type": "Prepend", "prepend": "x" * 10_000})},
        "normalizer is not that",
    ),
    "unigram": (
        {"tokenizer.json": _edited(model={"type": "Unigram", "vocab": []})},
        "not a byte-pair encoding",
    ),
    "no vocab": ({"tokenizer.json": _edited(model__vocab=None)}, "model.vocab or model.merges is missing"),
    "vocab of texts": ({"tokenizer.json": _edited(model__vocab={"a": "b"})}, "an id of its own"),
    "twice the same id": ({"tokenizer.json": _edited(model__vocab={"a": 1, "b": 1})}, "an id of its own"),
    "negative id": ({"tokenizer.json": _edited(model__vocab={"a": -1})}, "an id of its own"),
    "huge id": ({"tokenizer.json": _edited(model__vocab={"a": 1 << 40})}, "an id of its own"),
    "merge of unknown pieces": ({"tokenizer.json": _edited(model__merges=["a qqq"])}, "joins no two pieces"),
    "merge of three": ({"tokenizer.json": _edited(model__merges=["a b c"])}, "joins no two pieces"),
    "merge of numbers": ({"tokenizer.json": _edited(model__merges=[[1, 2]])}, "joins no two pieces"),
    "random merges": ({"tokenizer.json": _edited(model__dropout=0.5)}, "model.dropout is set"),
    "whole words": ({"tokenizer.json": _edited(model__ignore_merges=True)}, "model.ignore_merges is set"),
    "unknown unknown": ({"tokenizer.json": _edited(model__unk_token="<?>")}, "unk_token '<\\?>' is not in"),
    "unknown of no kind": ({"tokenizer.json": _edited(model__unk_token=[1])}, "unk_token '\\[1\\]' is not in"),
    "added token of no kind": ({"tokenizer.json": _edited(added_tokens=["<image>"])}, "no token with an id"),
    "added token without text": (
        {"tokenizer.json": _edited(added_tokens=[{"id": 3, "content": ""}])},
        "no token",
    ),
    "gap before an added token": (
        {"tokenizer.json": _edited(added_tokens=[{"id": 32000, "content": "<image>"}])},
        "'<image>' cannot have id 32000",
    ),
    "no end": (
        {"tokenizer.json": _edited(), "tokenizer_config.json": b'{"eos_token": "<|end|>"}'},
        "no end token '<|end|>'",
    ),
    "half a character": (
        {"tokenizer.json": _edited(), "tokenizer_config.json": b'{"eos_token": "\\ud83d"}'},
        "surrogate pair",
    ),
    "added tokens in a number": ({"tokenizer.json": _edited(added_tokens=3)}, "no token with an id"),
    "settings are a list": (
        {"tokenizer.json": _edited(), "tokenizer_config.json": b"[]"},
        "object is expected",
    ),
    "added tokens in the wrong form": (
        {"tokenizer.json": _edited(), "tokenizer_config.json": b'{"added_tokens_decoder": [1]}'},
        "added_tokens_decoder must be an object",
    ),
    "added token with a word for an id": (
        {"tokenizer.json": _edited(), "tokenizer_config.json": b'{"added_tokens_decoder": {"x": "<y>"}}'},
        "no token with an id",
    ),
    "empty model": ({"tokenizer.model": b""}, "not a sentencepiece model"),
    "a pointer": (
        {"tokenizer.model": b"version https://git-lfs.github.com/spec/v1\n"},
        "not a sentencepiece model",
    ),
    "cut off": ({"tokenizer.model": MODELS["english"][:4000]}, "not a sentencepiece model"),
    "large model": ({"tokenizer.model": b"\n" * ((16 << 20) + 1)}, "larger than 16 MiB"),
    "unigram model": (
        {"tokenizer.model": train(model_type="unigram", vocab_size=330)},
        "not a LLaMA tokenizer",
    ),
    "normalising model": (
        {"tokenizer.model": train(normalization_rule_name="nmt_nfkc")},
        "not a LLaMA tokenizer",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_one_line_errors(tmp_path, name):
    files, message = BAD_FILES[name]
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    with pytest.raises(LlavaError, match=message) as error:
        Tokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert len(str(error.value)) < 400


def test_damaged_models_never_raise_anything_else(tmp_path):
    random.seed(0)
    model = MODELS["english"]
    for _ in range(150):
        damaged = bytearray(model)
        for _ in range(random.randint(1, 6)):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        with contextlib.suppress(LlavaError):
            from_model(bytes(damaged)).encode_segment("a picture 鑫", first=True)


# --- the reference itself


@pytest.mark.parity
@pytest.mark.parametrize("legacy", [True, False])
def test_transformers_reads_what_we_save_and_gives_the_same_ids(tmp_path, legacy):
    from transformers import AutoTokenizer

    size = REFERENCES["mixed"].get_piece_size()
    raw = tokenizer_json_from_sentencepiece(MODELS["mixed"], legacy=legacy, where="test")
    for index, content in ((size, "<image>"), (size + 1, "<pad>")):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        raw["added_tokens"].append({"id": index, "content": content, "special": True} | flags)
    ours = Tokenizer(raw, {"pad_token": "<pad>"}, "test")
    ours.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, size + 1)
    assert len(theirs) == ours.vocab_size
    ordinary = texts.filter(lambda text: not any(special in text for special in ours.special_tokens))

    @settings(max_examples=300, deadline=None)
    @given(ordinary, ordinary, ordinary)
    def same(before, between, after):
        ids = [1, *ours.encode_segment(before, first=True), size]
        ids += [*ours.encode_segment(between, first=False), 2, *ours.encode_segment(after, first=False)]
        assert ids == theirs(f"{before}<image>{between}</s>{after}")["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)

    same()


@pytest.mark.parity
def test_the_original_way_is_that_of_transformers_llama_tokenizer(tmp_path):
    from transformers import LlamaTokenizer

    ours = Tokenizer.from_pretrained(write_original(tmp_path, MODELS["mixed"], legacy=False))
    theirs = LlamaTokenizer.from_pretrained(tmp_path)
    ordinary = texts.filter(lambda text: not any(special in text for special in ours.special_tokens))

    @settings(max_examples=300, deadline=None)
    @given(ordinary, ordinary)
    def same(before, after):
        ids = [*ours.encode_segment(before, first=True), 2, *ours.encode_segment(after, first=False)]
        assert ids == theirs(f"{before}</s>{after}", add_special_tokens=False)["input_ids"]

    same()
