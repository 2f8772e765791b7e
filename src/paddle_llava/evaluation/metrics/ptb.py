"""Captions as words, the way COCO's caption scores count them: by the Penn Treebank's rules, without punctuation.

The published figures come from Stanford's PTBTokenizer 3.4.1 (Java, carried by the package `pycocoevalcap`) with
`-preserveLines -lowerCase`. `words` follows its rules as far as captions need them; `java_words` runs the thing itself.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from paddle_llava.errors import LlavaError

SECONDS = 600
# Brackets in capitals, as pycocoevalcap has them: the lower-cased ones pass as words, in its scores as in these.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)

_ALIKE = str.maketrans({"’": "'", "‘": "'", "´": " ´ ", "“": '"', "”": '"', "…": "...", "–": "--", "—": "--"})
_NAMES = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "£": "#", "€": "$"}
_ABBREVIATIONS = (
    "mr|mrs|ms|dr|prof|st|ave|blvd|rd|mt|vs|etc|jr|sr|inc|ltd|co|corp|bros|rev|gov|gen|sen|rep|lt|sgt"
    "|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec"
)
_JOINED = re.compile(
    r"(?<=[a-z])(?=n't\b) | (?<=\w)(?='(?:s|m|d|ll|re|ve)\b) | (?<=\by')(?=all\b) | (?<='t)(?=is\b|was\b)"
    r"| (?<=\bcan)(?=not\b) | (?<=\b[gw][oa]n)(?=na\b) | (?<=\bgot)(?=ta\b) | (?<=\b[lg][ei]m)(?=me\b)",
    re.VERBOSE,
)
_TOKEN = re.compile(
    rf"""
    https?://\S+ | www\.\S+ | [\w.+-]+@[\w-]+(?:\.[\w-]+)+       # addresses
    | </?[a-z]\w*>                                               # tags
    | (?:[a-z]\.){{2,}}(?!\w) | (?:[a-z]\.)+[a-z](?!\w)          # u.s. and u.s
    | (?:{_ABBREVIATIONS})\.(?!\w) | (?:no|jan)\.(?=\s?\d)       # mr., no. 5
    | \d{{1,2}}:\d\d | -?\d+(?:[.,]\d+)+ | \d+\ \d+/\d+ | -\d+     # 10:30, 1,000, 22 3/4
    | n't\b | '(?:s|m|d|ll|re|ve|t)\b | '\d0s\b | y'(?=\sall\b)  # what was joined, '90s
    | (?:[dol]')?\w+(?:[-/.]\w+)*                                # black-and-white, o'clock
    | @\w+ | \.{{2,}} | -{{2,}} | [!?]+ | \*+ | \S
    """,
    re.VERBOSE,
)


def words(caption: str) -> list[str]:
    """The lower-cased words of a caption: `A man's bike isn't (here).` is `a man 's bike is n't -lrb- here -rrb-`.

    Equal to `java_words` on ordinary captions; rare abbreviations and signs such as ½ may differ.
    """
    text = " ".join(caption.lower().translate(_ALIKE).split())
    tokens = _TOKEN.findall(_JOINED.sub(" ", text))
    # A number and its fraction are joined by a no-break space, as Stanford does.
    return [_NAMES.get(token, token.replace(" ", "\xa0")) for token in tokens if not _is_dropped(token)]


def _is_dropped(token: str) -> bool:
    # Stanford's lexer knows no characters beyond the 16-bit plane, such as emoji.
    return token in PUNCTUATION or token == '"' or set(token) <= {"."} or set(token) <= {"-"} or token > "\uffff"


def java_tokenizer() -> tuple[str, Path] | None:
    """The `java` program and Stanford's jar, when both are installed."""
    java, jar = shutil.which("java"), package_file("tokenizer/stanford-corenlp-3.4.1.jar")
    return (java, jar) if java and jar else None


def package_file(name: str) -> Path | None:
    """A file of the package `pycocoevalcap`, without importing it; None where there is none."""
    spec = find_spec("pycocoevalcap")
    folders = spec.submodule_search_locations if spec else None
    return next((path for folder in folders or () if (path := Path(folder, name)).is_file()), None)


def java_words(captions: Sequence[str]) -> list[list[str]]:
    """The words of each caption by Stanford's own tokenizer. Raises `LlavaError` when it is missing or fails."""
    found = java_tokenizer()
    if found is None:
        raise LlavaError("Stanford's tokenizer is missing: it needs java and the package pycocoevalcap")
    java, jar = found
    lines = "".join(" ".join(caption.split()) + "\n" for caption in captions)
    main = "edu.stanford.nlp.process.PTBTokenizer"
    command = [java, "-Dfile.encoding=UTF-8", "-cp", str(jar), main, "-preserveLines", "-lowerCase"]
    try:
        run = subprocess.run(command, input=lines.encode("utf-8", "replace"), capture_output=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LlavaError(
            f"Stanford's tokenizer does not run ({error}); uninstall pycocoevalcap to do without"
        ) from None
    told = run.stdout.decode("utf-8", "replace").split("\n")[:-1]
    if run.returncode or len(told) != len(captions):
        raise LlavaError(
            f"Stanford's tokenizer gave {len(told)} lines for {len(captions)} captions (exit code {run.returncode}); "
            "uninstall pycocoevalcap to do without"
        )
    return [[word for word in line.split(" ") if word and word not in PUNCTUATION] for line in told]
