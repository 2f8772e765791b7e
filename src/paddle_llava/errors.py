"""The error a person sees: what is wrong, where, and what to do, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LlavaError(Exception):
    """Bad input or an unusable environment.

    The command line prints the message on one line and exits with code 2; Python callers catch it as
    an ordinary exception. Faults of this package itself are never raised as `LlavaError`.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest of `known`, or an empty string when nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""
