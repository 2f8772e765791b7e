"""A sentencepiece `tokenizer.model` as the `tokenizer.json` that gives the same ids.

The original LLaVA checkpoints ship LLaMA's sentencepiece BPE model and no `tokenizer.json`. The file is a
protobuf message; the few fields that matter are read here directly, since sentencepiece's own interface does
not tell the kind of model or of normalisation, and another kind would silently give other ids.

Source: `sentencepiece_model.proto` and `bpe_model.cc` of sentencepiece.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from paddle_llava.errors import LlavaError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
BPE = 2
LONGEST_PIECE = 1000

UNDERSCORE = "▁"
REPLACE_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": UNDERSCORE}
LEGACY_NORMALIZER = {
    "type": "Sequence",
    "normalizers": [{"type": "Prepend", "prepend": UNDERSCORE}, REPLACE_SPACES],
}
FIRST_PRE_TOKENIZER = {
    "type": "Metaspace",
    "replacement": UNDERSCORE,
    "prepend_scheme": "first",
    "split": False,
}
DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": UNDERSCORE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}


def tokenizer_json_from_sentencepiece(data: bytes, *, legacy: bool, where: str) -> dict[str, Any]:
    """The contents of the `tokenizer.json` that encodes as the sentencepiece model `data` does.

    `legacy` (the key of that name in `tokenizer_config.json`) says whether every stretch of text between
    special tokens begins with "▁", or only the first. Raises `LlavaError` naming `where` for a damaged file
    and for any model but a byte-pair encoding with LLaMA's normalisation.
    """
    try:
        pieces, kind, prefixes, normalises = _parse(data)
    except (ValueError, IndexError, struct.error) as error:
        raise LlavaError(f"{where}: not a sentencepiece model, or a damaged one; fetch it again") from error
    if kind != BPE or normalises or not prefixes:
        raise LlavaError(f"{where}: not a LLaMA tokenizer (a sentencepiece BPE without text normalisation)")
    vocab = {piece: index for index, (piece, _, _) in enumerate(pieces)}
    types = {piece_type for _, _, piece_type in pieces}
    unknown = next((piece for piece, _, piece_type in pieces if piece_type == UNKNOWN), None)
    if len(vocab) != len(pieces) or unknown is None or not types <= {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE}:
        raise LlavaError(f"{where}: pieces that are twice there, unused or without an unknown one; fetch it again")
    special = {UNKNOWN: True, CONTROL: True, USER_DEFINED: False}
    return {
        "version": "1.0",
        "added_tokens": [
            added_token(index, piece, special=special[piece_type])
            for index, (piece, _, piece_type) in enumerate(pieces)
            if piece_type in special
        ],
        "normalizer": LEGACY_NORMALIZER if legacy else None,
        "pre_tokenizer": None if legacy else FIRST_PRE_TOKENIZER,
        "decoder": DECODER,
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": BYTE in types,
            "vocab": vocab,
            "merges": _merges({piece: score for piece, score, piece_type in pieces if piece_type == NORMAL}),
        },
    }


def added_token(index: int, content: str, *, special: bool) -> dict[str, Any]:
    """An entry of `added_tokens` in `tokenizer.json`."""
    exact = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": content, **exact, "special": special}


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, best score first.

    Only ordinary pieces take part, as in sentencepiece: no text can merge into `</s>` or `<0x0A>`.
    """
    merges: list[tuple[str, str]] = []
    for piece in sorted(scores, key=scores.__getitem__, reverse=True):
        splits = ((piece[:i], piece[i:]) for i in range(len(piece) - 1, 0, -1))
        merges.extend((left, right) for left, right in splits if left in scores and right in scores)
    return merges


def _parse(data: bytes) -> tuple[list[tuple[str, float, int]], int, bool, bool]:
    """Pieces as (text, score, type), the model's kind, whether "▁" is prepended, whether text is altered."""
    pieces, kind = [], 1
    dummy_prefix, drops_spaces, escapes, charsmap, suffix = True, True, True, b"", False
    for field, value in _fields(data):
        if field == 1:
            piece = dict(_fields(_message(value)))
            score = struct.unpack("<f", _message(piece[2]))[0] if 2 in piece else 0.0
            text = _message(piece.get(1, b""))
            if len(text) > LONGEST_PIECE:  # all ways to divide it are tried
                raise ValueError(f"a piece of {len(text)} bytes")
            pieces.append((text.decode(), score, piece.get(3, NORMAL)))
        elif field == 2:
            trainer = dict(_fields(_message(value)))
            kind, suffix = trainer.get(3, kind), bool(trainer.get(24, 0))
        elif field == 3:
            normalizer = dict(_fields(_message(value)))
            charsmap = _message(normalizer.get(2, b""))
            dummy_prefix, drops_spaces, escapes = (bool(normalizer.get(key, 1)) for key in (3, 4, 5))
    if not pieces:
        raise ValueError("no pieces")
    return pieces, kind, dummy_prefix and escapes and not suffix, bool(charsmap) or drops_spaces


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message: an int for a varint, bytes for everything else."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire = key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if wire == 2:
            size, position = _varint(data, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if position + size > len(data):
            raise ValueError("a field beyond the end")
        yield key >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a varint of more than ten bytes")


def _message(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("bytes expected")
    return value
