"""The tokenizer files of a checkpoint folder, read as untrusted data.

`read_tokenizer` accepts what LLaMA tokenizers are made of and nothing else: a byte-pair encoding whose text
is prefixed with "▁" and whose spaces become "▁". That keeps a strange file from giving plausible but wrong
ids, and a hostile one from bringing regular expressions, huge paddings or merges that turn a person's words
into special tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paddle_llava.errors import LlavaError
from paddle_llava.json_file import read_json
from paddle_llava.processing.sentencepiece_model import (
    DECODER,
    LEGACY_NORMALIZER,
    REPLACE_SPACES,
    UNDERSCORE,
    added_token,
    tokenizer_json_from_sentencepiece,
)

MAX_MODEL_BYTES = 16 << 20
MAX_TOKEN_ID = 1 << 24
SETTINGS = ("special_tokens_map.json", "tokenizer_config.json")
SENTENCEPIECE_MODELS = ("tokenizer.model", "sentencepiece.bpe.model")

# As `transformers` writes them for the settings `legacy` and `add_prefix_space` of a LLaMA tokenizer.
NORMALIZERS = (None, LEGACY_NORMALIZER, {"type": "Sequence", "normalizers": [REPLACE_SPACES]}, REPLACE_SPACES)
DECODERS = (DECODER, {"type": "Sequence", "decoders": DECODER["decoders"][:3]})


def read_tokenizer(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The checked contents of `tokenizer.json`, and the settings beside it.

    Without `tokenizer.json` the sentencepiece `tokenizer.model` is translated. The settings are
    `tokenizer_config.json` over `special_tokens_map.json`, with the tokens named by their text alone
    (`"bos_token": "<s>"`). Raises `LlavaError` for missing, damaged, oversized and foreign files.
    """
    config: dict[str, Any] = {}
    for name in SETTINGS:
        if (folder / name).is_file():
            config.update(_readable(read_json(folder / name), folder / name))
    for key, value in config.items():
        if key.endswith("_token") and isinstance(value, dict):
            config[key] = value.get("content")
    path = folder / "tokenizer.json"
    if path.is_file():
        unchecked = read_json(path)
        config.setdefault("add_bos_token", _begins_with_special(unchecked.get("post_processor")))
        raw = _checked(unchecked, str(path))
    else:
        raw = _from_sentencepiece(folder, legacy=config.get("legacy") is not False)
    known = {token["content"] for token in raw["added_tokens"]} | raw["model"]["vocab"].keys()
    for token in _listed_beside(folder, config):
        if token["content"] not in known:
            raw["added_tokens"].append(token)
            known.add(token["content"])
    raw["added_tokens"].sort(key=lambda token: token["id"])
    return raw, config


def _from_sentencepiece(folder: Path, *, legacy: bool) -> dict[str, Any]:
    path = next((folder / name for name in SENTENCEPIECE_MODELS if (folder / name).is_file()), None)
    if path is None:
        raise LlavaError(f"{folder}: neither tokenizer.json nor tokenizer.model; fetch the checkpoint again")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MODEL_BYTES + 1)
    except OSError as error:
        raise LlavaError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > MAX_MODEL_BYTES:
        raise LlavaError(f"{path}: larger than {MAX_MODEL_BYTES >> 20} MiB, which no LLaMA tokenizer is")
    return tokenizer_json_from_sentencepiece(data, legacy=legacy, where=str(path))


def _readable(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        json.dumps(settings, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise LlavaError(f"{path}: half a surrogate pair (\\ud800 or the like) is not text") from error
    return settings


def _begins_with_special(post_processor: Any) -> bool:
    single = post_processor.get("single") if isinstance(post_processor, dict) else None
    return isinstance(single, list) and bool(single) and isinstance(single[0], dict) and "SpecialToken" in single[0]


def _checked(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """The parts of a `tokenizer.json` that this package knows, each of a form that LLaMA tokenizers have."""
    normalizer, pre_tokenizer, decoder = (raw.get(key) for key in ("normalizer", "pre_tokenizer", "decoder"))
    known = {
        "normalizer": normalizer in NORMALIZERS,
        "pre_tokenizer": pre_tokenizer is None if normalizer else _is_metaspace(pre_tokenizer),
        "decoder": decoder in DECODERS,
    }
    for key, is_known in known.items():
        if not is_known:
            raise LlavaError(f"{where}: {key} is not that of a LLaMA tokenizer, the only kind supported")
    added_tokens = _added_tokens(raw.get("added_tokens"), where)
    special = {token["content"] for token in added_tokens if token["special"]}
    return {
        "version": "1.0",
        "added_tokens": added_tokens,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": _checked_model(raw.get("model"), special, where),
    }


def _is_metaspace(node: Any) -> bool:
    if not isinstance(node, dict) or node.get("type") != "Metaspace" or node.get("replacement") != UNDERSCORE:
        return False
    return node.get("prepend_scheme") in ("always", "first", "never") and isinstance(node.get("split"), bool)


def _checked_model(model: Any, special: set[str], where: str) -> dict[str, Any]:
    """The byte-pair encoding, without the merges that would let text become a special token."""
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise LlavaError(f"{where}: model is not a byte-pair encoding (BPE), the only kind that is supported")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(key):
            raise LlavaError(f"{where}: model.{key} is set, which LLaMA tokenizers do not use")
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise LlavaError(f"{where}: model.vocab or model.merges is missing; fetch the file again")
    ids = set(vocab.values()) if all(type(index) is int for index in vocab.values()) else set()
    if len(ids) != len(vocab) or not ids or min(ids) < 0 or max(ids) >= MAX_TOKEN_ID:
        raise LlavaError(f"{where}: model.vocab must give each piece an id of its own; fetch the file again")
    pairs = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        whole = isinstance(pair, list) and len(pair) == 2 and all(isinstance(side, str) for side in pair)
        if not (whole and pair[0] in vocab and pair[1] in vocab and pair[0] + pair[1] in vocab):
            raise LlavaError(f"{where}: model.merges has {str(merge)[:40]!r}, which joins no two pieces")
        if pair[0] + pair[1] not in special:
            pairs.append(pair)
    unknown = model.get("unk_token")
    if unknown is not None and not (isinstance(unknown, str) and unknown in vocab):
        raise LlavaError(f"{where}: model.unk_token {str(unknown)[:40]!r} is not in the vocabulary")
    return {
        "type": "BPE",
        "unk_token": unknown,
        "fuse_unk": bool(model.get("fuse_unk")),
        "byte_fallback": bool(model.get("byte_fallback")),
        "vocab": vocab,
        "merges": pairs,
    }


def _added_tokens(entries: Any, where: str) -> list[dict[str, Any]]:
    tokens = []
    for entry in entries if isinstance(entries, list) else [entries] if entries else []:
        content, index = (entry.get("content"), entry.get("id")) if isinstance(entry, dict) else (None, None)
        if not (isinstance(content, str) and content and type(index) is int and 0 <= index < MAX_TOKEN_ID):
            raise LlavaError(f"{where}: added_tokens has {str(entry)[:60]!r}, which is no token with an id")
        tokens.append(added_token(index, content, special=bool(entry.get("special"))))
    return sorted(tokens, key=lambda token: token["id"])


def _listed_beside(folder: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Tokens that only `added_tokens.json` or `tokenizer_config.json` adds to the vocabulary."""
    tokens = []
    path = folder / "added_tokens.json"
    if path.is_file():
        by_content = read_json(path)
        tokens += [{"content": content, "id": index, "special": True} for content, index in by_content.items()]
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise LlavaError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder must be an object")
    for index, token in decoder.items():
        entry = token if isinstance(token, dict) else {"content": token}
        tokens.append({**entry, "id": int(index) if index.isdecimal() and len(index) < 10 else index})
    return _added_tokens(tokens, str(folder / "tokenizer_config.json"))
