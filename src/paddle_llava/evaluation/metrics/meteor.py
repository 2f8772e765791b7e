"""METEOR (Denkowski and Lavie 2014): by its own Java program 1.5 alone, carried by the package `pycocoevalcap`."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.metrics.ptb import package_file

SECONDS = 1800


def meteor_jar() -> Path | None:
    """The program, when both it and `java` are installed."""
    return package_file("meteor/meteor-1.5.jar") if shutil.which("java") else None


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """METEOR of the corpus and of each caption, 0 to 1; all texts are words joined by spaces.

    Raises `LlavaError` when the program is missing or fails.
    """
    lines = []
    for candidate, truths in zip(candidates, references, strict=True):
        candidate = candidate.replace("|||", "").replace("  ", " ")
        lines.append(" ||| ".join(["SCORE", *truths, candidate]))
    counts = _run(lines, len(lines))
    *each, corpus = map(float, _run([" ||| ".join(["EVAL", *counts])], len(lines) + 1))
    return corpus, each


def _run(lines: Sequence[str], expected: int) -> list[str]:
    java, jar = shutil.which("java"), meteor_jar()
    if java is None or jar is None:
        raise LlavaError("METEOR is missing: it needs java and the package pycocoevalcap")
    command = [java, "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    text = "".join(line + "\n" for line in lines).encode("utf-8", "replace")
    try:
        run = subprocess.run(command, input=text, capture_output=True, timeout=SECONDS, cwd=jar.parent)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LlavaError(f"METEOR does not run ({error})") from None
    told = run.stdout.decode("utf-8", "replace").splitlines()
    if len(told) != expected:
        raise LlavaError(f"METEOR gave {len(told)} lines and not {expected}; uninstall pycocoevalcap to do without")
    return told
