"""Server-sent events, as OpenAI's clients read them."""

from __future__ import annotations

import json
from typing import Any

DONE = b"data: [DONE]\n\n"
STILL_HERE = b": still here\n\n"  # a comment, for proxies that would give up while a long prompt is run


def event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
