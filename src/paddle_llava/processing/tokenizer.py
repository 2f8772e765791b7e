"""LLaMA's tokenizer: text to ids stretch by stretch, ids back to text as they come.

A person's words are never searched for special tokens: the encoders here know ordinary pieces only, and
`paddle_llava.processing.conversation` puts the special ids between the stretches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import tokenizers
from tokenizers import normalizers, pre_tokenizers

from paddle_llava.errors import LlavaError
from paddle_llava.json_file import write_json
from paddle_llava.processing.sentencepiece_model import LEGACY_NORMALIZER, UNDERSCORE, added_token
from paddle_llava.processing.tokenizer_files import read_tokenizer

IMAGE_TOKEN = "<image>"
PAD_TOKEN = "<pad>"
BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
CARRIED_SETTINGS = ("chat_template", "image_token", "model_max_length", "processor_class")

Follows = Literal["nothing", "special", "text"]


class Tokenizer:
    """A LLaMA tokenizer.

    `special_tokens` maps the text of each special token to its id. `adds_bos` says whether a prompt begins
    with `bos_token_id`. `pad_token_id` falls back to the unknown token, as in the original LLaVA, then to the
    end token. `image_token_id` is None for the vocabulary of an original checkpoint. `vocab_size` counts the
    added tokens too; the model's own may be larger (padded). `longest_piece` is the most letters that a token can
    stand for.
    """

    def __init__(self, raw: dict[str, Any], config: dict[str, Any], where: str) -> None:
        """From the contents of `tokenizer.json` and the settings beside it, as `read_tokenizer` gives them.

        Raises `LlavaError` naming `where` when the two do not make a tokenizer.
        """
        try:
            self._backend = tokenizers.Tokenizer.from_str(json.dumps(raw))
        except Exception as error:  # the library's own exceptions are plain `Exception`s
            raise LlavaError(f"{where}: not a tokenizer that can be used ({str(error)[:80]})") from error
        for token in raw["added_tokens"]:
            content, index = token["content"], token["id"]
            free = self._backend.token_to_id(content)
            if free != index:
                raise LlavaError(f"{where}: token {content!r} cannot have id {index}; the next free one is {free}")
        self._config = config
        self._where = where
        special = {token["content"]: token["id"] for token in raw["added_tokens"] if token["special"]}
        self.special_tokens: dict[str, int] = special
        self.special_ids = frozenset(self.special_tokens.values())

        unknown = self._named("unk_token", "<unk>")
        eos = self._named("eos_token", "</s>")
        if eos is None:
            wanted = str(config.get("eos_token") or "</s>")[:40]
            raise LlavaError(f"{where}: the vocabulary has no end token {wanted!r}")
        pad = self._named("pad_token", PAD_TOKEN)
        self.eos_token_id: int = eos
        self.bos_token_id: int | None = self._named("bos_token", "<s>")
        self.pad_token_id: int = pad if pad is not None else unknown if unknown is not None else eos
        self.image_token_id: int | None = self._backend.token_to_id(IMAGE_TOKEN)
        self.vocab_size: int = self._backend.get_vocab_size()
        self.adds_bos = self.bos_token_id is not None and config.get("add_bos_token") is not False

        # The encoders share the backend's vocabulary but none of its added tokens, so no text can match one.
        self._prefixing = tokenizers.Tokenizer(self._backend.model)
        self._prefixing.normalizer = self._backend.normalizer
        self._prefixing.pre_tokenizer = self._backend.pre_tokenizer
        self._bare = tokenizers.Tokenizer(self._backend.model)
        metaspace = self._backend.pre_tokenizer
        if metaspace is None:
            self._bare.normalizer = normalizers.Replace(" ", UNDERSCORE)
        else:
            self._bare.pre_tokenizer = pre_tokenizers.Metaspace(UNDERSCORE, "never", metaspace.split)
        self._only_first_prefixed = metaspace is not None and metaspace.prepend_scheme == "first"

        pieces = self._backend.get_vocab(with_added_tokens=False)
        self.num_pieces = len(pieces)
        """Of the vocabulary itself, without what was added to it."""
        self.byte_ids = frozenset(index for piece, index in pieces.items() if BYTE_PIECE.fullmatch(piece))
        self.longest_piece: int = max(map(len, pieces), default=1)
        words = (index for piece, index in pieces.items() if piece.isalnum() and piece not in special)
        anchor = next(words, None)
        if anchor is None:
            raise LlavaError(f"{where}: the vocabulary has no ordinary pieces; fetch the tokenizer again")
        self.anchor_id: int = anchor

    @classmethod
    def from_pretrained(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a checkpoint folder: `tokenizer.json`, else the sentencepiece `tokenizer.model`.

        Raises `LlavaError` for missing, damaged, oversized and foreign files.
        """
        folder = Path(folder)
        return cls(*read_tokenizer(folder), where=str(folder))

    def _named(self, key: str, default: str) -> int | None:
        name = self._config.get(key)
        index = self._backend.token_to_id(name if isinstance(name, str) else default)
        return index if isinstance(index, int) else None

    # --- text to ids

    def encode_segment(self, text: str, *, first: bool) -> list[int]:
        """The ids of a stretch of ordinary text: at the very start, or else right after a special token.

        Equal to what the whole prompt's tokenisation gives for this stretch. Special tokens spelled out in
        `text` stay text; no BOS or EOS is added. Raises `LlavaError` for half a surrogate pair.
        """
        return self.encode_stretch(text, follows="nothing" if first else "special")[0]

    def encode_stretch(self, text: str, *, follows: Follows) -> tuple[list[int], list[int]]:
        """Ids of ordinary text, and for each the index in `text` at which it starts.

        LLaMA puts the prefix "▁" before a stretch that `follows` nothing; before one that follows a special
        token in the `legacy` way only; and never within text.
        """
        bare = follows == "text" or (follows == "special" and self._only_first_prefixed)
        try:
            encoding = (self._bare if bare else self._prefixing).encode(text, add_special_tokens=False)
        except TypeError as error:
            raise LlavaError(f"half a surrogate pair is not text: {ascii(text)[:60]}") from error
        return encoding.ids, [start for start, _ in encoding.offsets]

    # --- ids to text

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`, without the space that LLaMA puts before the first word.

        Image placeholders (-200) and ids beyond the vocabulary have no text.
        """
        return self._backend.decode([i for i in ids if i >= 0], skip_special_tokens=skip_special_tokens)

    def has_text(self, token_id: int) -> bool:
        """False for special tokens, image placeholders and ids beyond the vocabulary."""
        known = token_id >= 0 and token_id not in self.special_ids
        return known and self._backend.id_to_token(token_id) is not None

    def piece(self, token_id: int) -> bytes:
        """The bytes that a token stands for within text: `▁` is a space, `<0x0A>` a line break."""
        piece = self._backend.id_to_token(token_id) or ""
        if token_id in self.byte_ids:
            return bytes([int(piece[3:5], 16)])
        return (piece if token_id in self.special_ids else piece.replace(UNDERSCORE, " ")).encode()

    def stream(self) -> TextStream:
        """A reader of one answer, token by token."""
        return TextStream(self)

    # --- files

    def with_image_token(self, image_token_id: int, pad_token_id: int) -> Tokenizer:
        """The tokenizer of the `-hf` twin of an original checkpoint: with `<image>` and `<pad>` at these ids.

        The twin encodes a prompt in one go, the original each stretch between pictures on its own. They agree
        after a picture only in the legacy way, which is what the published twins have; so has the result.
        Raises `LlavaError` when an id is not the next free one.
        """
        if self.image_token_id == image_token_id and self.pad_token_id == pad_token_id:
            return self
        raw = json.loads(self._backend.to_str())
        raw["normalizer"], raw["pre_tokenizer"] = LEGACY_NORMALIZER, None
        for index, content in sorted([(image_token_id, IMAGE_TOKEN), (pad_token_id, PAD_TOKEN)]):
            raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] != content]
            raw["added_tokens"].append(added_token(index, content, special=True))
        return Tokenizer(raw, {**self._config, "pad_token": PAD_TOKEN}, self._where)

    def save_pretrained(self, folder: Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`.

        `transformers` reads them, 4 and 5 alike, and encodes as this object does.
        """
        raw = json.loads(self._backend.to_str())
        ids = {
            "bos_token": self.bos_token_id,
            "eos_token": self.eos_token_id,
            "pad_token": self.pad_token_id,
            "unk_token": self._named("unk_token", "<unk>"),
        }
        named = {key: self._backend.id_to_token(index) for key, index in ids.items() if index is not None}
        if self.adds_bos:
            raw["post_processor"] = _bos_template(str(named["bos_token"]), self.bos_token_id)
        config = {
            **{key: self._config[key] for key in CARRIED_SETTINGS if key in self._config},
            **named,
            "tokenizer_class": "LlamaTokenizerFast",
            "add_bos_token": self.adds_bos,
            "add_eos_token": False,
            "added_tokens_decoder": {
                str(token["id"]): {key: value for key, value in token.items() if key != "id"}
                for token in raw["added_tokens"]
            },
            "clean_up_tokenization_spaces": False,
            "legacy": not self._only_first_prefixed,
            "padding_side": "left",
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "tokenizer.json", raw)
        write_json(folder / "tokenizer_config.json", config)
        write_json(folder / "special_tokens_map.json", named)


def _bos_template(bos: str, index: int | None) -> dict[str, Any]:
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    single = [first, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    special = {bos: {"id": bos, "ids": [index], "tokens": [bos]}}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


class TextStream:
    """The text of an answer as its tokens come: all that `push` and `finish` return makes `Tokenizer.decode`.

    Text is held back only while it could still change: within a run of byte tokens, whose bytes are read as
    UTF-8 together once the run has ended. The cost of a token does not grow with the answer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._held: list[int] = []
        self._started = False

    def push(self, token_id: int) -> str:
        """The text that is certain now: empty for tokens without text and while a run of bytes goes on."""
        if not self._tokenizer.has_text(token_id):
            return ""
        self._held.append(token_id)
        return "" if token_id in self._tokenizer.byte_ids else self.finish()

    def finish(self) -> str:
        """The text that was held back, for the end of the answer."""
        # Decoding strips the space before the first word, so later text is decoded behind a word and cut off.
        anchor = self._tokenizer.anchor_id
        text = self._tokenizer.decode([anchor, *self._held])[len(self._tokenizer.decode([anchor])) :]
        if text and not self._started:
            text = self._tokenizer.decode(self._held)
            self._started = True
        self._held.clear()
        return text
