"""Small files of a checkpoint that other programs want: carried along as they are, never run or followed here.

`transformers` renders `chat_template.jinja` (earlier `chat_template.json`, or a key of `processor_config.json`), and
takes its defaults of generation from `generation_config.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paddle_llava.errors import LlavaError

CHAT_TEMPLATE = "chat_template.jinja"
COMPANIONS = (CHAT_TEMPLATE, "chat_template.json", "generation_config.json")
MAX_BYTES = 1 << 20


def read_companions(folder: Path, processor_settings: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of `folder` that are carried along, by name; a template among the settings gets a file of its own.

    Raises `LlavaError` for one that cannot be read, or is too large to be what its name says.
    """
    found = {name: _bytes_of(folder / name) for name in COMPANIONS if (folder / name).is_file()}
    template = processor_settings.get("chat_template")
    if isinstance(template, str):  # which in transformers goes before a file
        found.pop("chat_template.json", None)
        found[CHAT_TEMPLATE] = template.encode(errors="replace")
    return found


def _bytes_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise LlavaError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > MAX_BYTES:
        raise LlavaError(f"{path}: larger than {MAX_BYTES >> 20} MiB, which no such file is; remove it")
    return content
