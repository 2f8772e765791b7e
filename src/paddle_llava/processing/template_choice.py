"""Which conversation template a checkpoint takes, and templates of one's own from a file."""

from __future__ import annotations

import os
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from paddle_llava.errors import LlavaError, did_you_mean
from paddle_llava.json_file import read_json
from paddle_llava.processing.templates import TEMPLATES, Template, named_template

DEFAULT = "vicuna_v1"
MAX_PART = 20_000
HINTS = {
    r"llama-2": "llava_llama_2",
    r"mistral": "mistral_instruct",
    r"\b34b\b": "chatml_direct",
    r"\bmpt": "mpt",
    r"\bv0(?![.\d])": "llava_v0",
}
JINJA = re.compile(r"\{[{%#]")
PADDLENLP_KEYS = {"system", "conversation", "query"}


def template_for(
    raw_config: dict[str, Any], conv_mode: str | None = None, folder_name: str | None = None
) -> tuple[Template, str | None]:
    """The template of a checkpoint, and a line to print when it had to be guessed.

    In this order: `conv_mode`, a template's name or a template file's path (with a `/`, or ending in
    `.json`); the name under the key `conv_mode` of `raw_config`, the checkpoint's `config.json` or
    `processor_config.json`; a guess from the name of the language model that `config.json` records, or else
    from the folder's; `vicuna_v1`, with which LLaVA 1.5 and 1.6 were trained. Raises `LlavaError` for an
    unknown name or a bad file.
    """
    if conv_mode is not None:
        is_file = conv_mode.endswith(".json") or "/" in conv_mode
        return (read_template(Path(conv_mode)) if is_file else named_template(conv_mode, "conv_mode")), None
    name, guessed = own_name(raw_config, folder_name)
    return named_template(DEFAULT if name is None else name, "conv_mode of the checkpoint's configuration"), guessed


def own_name(raw_config: dict[str, Any], folder_name: str | None = None) -> tuple[str | None, str | None]:
    """The name of a checkpoint's own template, recorded or guessed as `template_for` says, and the line to print when
    it was guessed; None for neither, where the default is taken."""
    recorded = raw_config.get("conv_mode")
    if isinstance(recorded, str):
        return recorded, None
    text_config = raw_config.get("text_config")
    base = text_config.get("_name_or_path") if isinstance(text_config, dict) else None
    for source, name in (("the configuration's language model", base), ("the folder's name", folder_name)):
        last = name.rstrip("/").rpartition("/")[2] if isinstance(name, str) else ""
        for pattern, template in HINTS.items():
            if re.search(pattern, last.lower()):
                notice = f"conversation template {template!r} guessed from {source} {last!r}"
                return template, f"{notice}; --conv-mode sets it"
    return None, None


def recorded_name(template: Template, own: str | None) -> str | None:
    """The `conv_mode` of a model that was trained in `template`, from one whose own template is called `own`.

    None is the default. Captions (`plain`) are no conversations and change nothing; a template of the user's own has no
    name that a `config.json` could hold.
    """
    if not template.keeps_question:
        return own
    if not is_built_in(template) or (template.name == DEFAULT and own is None):
        return None
    return template.name


def is_built_in(template: Template) -> bool:
    """Whether `template` is the one that is found by its name."""
    return TEMPLATES.get(template.name) == template


def read_template(path: Path) -> Template:
    """The template in a JSON file whose keys are the fields of `Template`; all but three may be left out:

        {"system": "Answer briefly.", "system_suffix": "\\n",
         "user_prefix": "Q: ", "user_suffix": "\\n", "assistant_prefix": "A:", "answer_prefix": " ",
         "answer_suffix": "</s>", "stop_strings": ["Q:"]}

    Or in PaddleNLP's form, where `{{user}}` and `{{bot}}` are places and no other Jinja is understood; `query` says
    where an answer begins, or else the first of `conversation`:

        {"system": "Answer briefly.\\n", "conversation": ["Q: {{user}}\\nA:", " {{bot}}</s>"],
         "query": "Q: {{query}}\\nA:"}

    Spaces before an answer are the answer's, for LLaMA has them in the piece of its first word: where they end what
    comes before, they are moved. Raises `LlavaError` naming the file and the key.
    """
    if not os.path.exists(path):
        raise LlavaError(f"{path}: no such template file; left out, the checkpoint's own template is taken")
    raw = read_json(path)
    values = _from_paddlenlp(raw, path) if "conversation" in raw else {"name": path.stem, **raw}
    known = {field.name: str(field.type) for field in fields(Template)}
    for key, value in values.items():
        if key not in known:
            raise LlavaError(f"{path}: unknown key {key[:40]!r}{did_you_mean(key, known)}")
        if not _is_kind(value, known[key]):
            wanted = "a list of short texts" if known[key].startswith("tuple") else known[key]
            raise LlavaError(f"{path}: {key} must be {wanted}, found {str(value)[:40]!r}")
    for key in ("user_prefix", "assistant_prefix", "answer_suffix"):
        if key not in values:
            raise LlavaError(f"{path}: the key {key} is missing")
    if not values["answer_suffix"]:
        raise LlavaError(f'{path}: answer_suffix is empty, so that nothing would end an answer; use "</s>"')
    parts: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    return _without_spaces_before_answer(Template(**parts))


def _without_spaces_before_answer(template: Template) -> Template:
    """The same text, but a prompt for generation that does not end in spaces."""
    before = template.user_suffix + template.assistant_prefix
    spaces = before[len(before.rstrip(" ")) :]
    assistant_prefix = template.assistant_prefix.rstrip(" ")
    return replace(
        template,
        user_suffix=template.user_suffix if assistant_prefix else template.user_suffix.rstrip(" "),
        assistant_prefix=assistant_prefix,
        answer_prefix=spaces + template.answer_prefix,
    )


def _is_kind(value: Any, kind: str) -> bool:
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "str":
        return isinstance(value, str) and len(value) <= MAX_PART
    texts = value if isinstance(value, list) else [None]
    short = all(isinstance(text, str) and 0 < len(text) <= 100 for text in texts)
    return short and (len(texts) == 2 if kind == "tuple[str, str]" else len(texts) <= 16)


def _from_paddlenlp(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """The fields of a `Template` from PaddleNLP's `chat_template.json`."""
    for key in raw:
        if key not in PADDLENLP_KEYS:
            raise LlavaError(f"{path}: unknown key {key[:40]!r}{did_you_mean(key, PADDLENLP_KEYS)}")
    turns, system = raw["conversation"], raw.get("system") or ""
    if not isinstance(turns, list) or len(turns) != 2:
        raise LlavaError(f"{path}: conversation must be two texts, with {{{{user}}}} and with {{{{bot}}}}")
    user_prefix, assistant_prefix = _around(turns[0], "user", path)
    answer_prefix, answer_suffix = _around(turns[1], "bot", path)
    query = raw.get("query")
    if query is not None:
        before, after = _around(query, "query", path)
        between, start = assistant_prefix + answer_prefix, after.rstrip(" ")
        begins = before == user_prefix and start.startswith(assistant_prefix.rstrip(" "))
        if not begins or not between.startswith(start):
            raise LlavaError(
                f"{path}: query must be conversation's first, with {{{{query}}}} for {{{{user}}}}, and at most what "
                "stands before {{bot}} after it"
            )
        assistant_prefix, answer_prefix = start, between[len(start) :]
    if not isinstance(system, str) or JINJA.search(system):
        raise LlavaError(f"{path}: system must be text without Jinja, which is not evaluated")
    return {
        "name": path.stem,
        "system": system.rstrip(),
        "system_suffix": system[len(system.rstrip()) :],
        "user_prefix": user_prefix,
        "assistant_prefix": assistant_prefix,
        "answer_prefix": answer_prefix,
        "answer_suffix": answer_suffix,
    }


def _around(text: Any, name: str, path: Path) -> tuple[str, str]:
    """What stands before and after the one place `{{name}}` of `text`."""
    parts = re.split(r"\{\{ ?" + name + r" ?\}\}", text) if isinstance(text, str) else []
    if len(parts) != 2 or any(JINJA.search(part) for part in parts):
        raise LlavaError(f"{path}: {str(text)[:40]!r} must have {{{{{name}}}}} once and no other Jinja")
    return parts[0], parts[1]
