"""Converted weights that are kept from one start to the next, each under a name that its sources make."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple
from pathlib import Path

from paddle_llava.console import note, progress_bar
from paddle_llava.engines.openvino.export import adapter_of, export_checkpoint
from paddle_llava.engines.openvino.formats import Formats
from paddle_llava.errors import LlavaError
from paddle_llava.pretrained import Pretrained, state_of

VERSION = 2
"""Part of every name; counts up when the graphs or the rounding change."""


def cached_export(pretrained: Pretrained, formats: Formats, lora_path: str | None, name: str) -> Path:
    """The folder of graphs made of a checkpoint, and of an adapter, written at the first time, which is said aloud.

    Another process that wants the same waits for the first one. The adapter is read each time, for what is none has no
    part in the name, and would be the model without it. Raises `LlavaError`.
    """
    adapter = adapter_of(pretrained, lora_path)
    folder = cache_folder() / f"{re.sub('[^0-9A-Za-z._-]', '_', name)}-{_key(pretrained, formats, lora_path)}"
    if folder.is_dir():  # perhaps in a place where no lock can be written
        return folder
    with _locked(folder):
        if not folder.is_dir():
            note(f"making {formats.weights} weights for OpenVINO, this once; they are kept in {folder}")
            with progress_bar(f"converting {name}") as progress:
                export_checkpoint(pretrained, folder, formats, adapter, progress=progress)
    return folder


def cache_folder() -> Path:
    """`~/.cache/paddle-llava/openvino`, or below `XDG_CACHE_HOME`."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "paddle-llava" / "openvino"


def _key(pretrained: Pretrained, formats: Formats, lora_path: str | None) -> str:
    """Of what the folder is made of, tokenizer and preprocessor too."""
    sources = state_of(pretrained.files(lora_path))
    digest = hashlib.sha256(json.dumps([VERSION, astuple(formats), sources]).encode()).hexdigest()
    return f"{formats.weights}-{digest[:16]}"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    from huggingface_hub.utils import WeakFileLock

    with ExitStack() as held:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(WeakFileLock(folder.with_name(f".{folder.name}.lock")))
        except OSError as error:
            raise LlavaError(
                f"{folder.parent}: cannot be written ({error.strerror}); set XDG_CACHE_HOME to another place"
            ) from None
        yield
