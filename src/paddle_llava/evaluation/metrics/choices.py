"""Answers to multiple-choice questions: the letter that was chosen, and circular evaluation.

Each benchmark reads answers in its own way, and its figures depend on it: ScienceQA by `science_qa_choice` (LLaVA's
`eval_science_qa.py`), SEED by `seed_choice` (LLaVA's `convert_seed_for_submission.py`), MMBench by `parse_choice` (Liu
et al. 2023, without its last step, which asks ChatGPT).
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence

LETTERS = string.ascii_uppercase
_SIGNS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_SAID = re.compile(r"The answer is ([A-Z]).")


def parse_choice(text: str, options: Sequence[str]) -> str | None:
    """The letter of the only option that `text` names: by its letter as a word, or else by its text.

    `A` in more than three words is the article. None when no option is named, or several are.
    """
    words = text.translate(_SIGNS).split()
    named = [letter for letter in LETTERS[: len(options)] if letter in words]
    if len(named) == 1 and not (named == ["A"] and len(words) > 3):
        return named[0]
    told = [letter for letter, option in zip(LETTERS, options) if option.strip().lower() in text.lower()]  # noqa: B905
    return told[0] if len(told) == 1 else None


def science_qa_choice(text: str, options: int) -> str | None:
    """ScienceQA's rule: `B`, `B. because`, or once `The answer is B.`; None for all else and for more than E."""
    letters = LETTERS[: min(options, 5)]
    said = _SAID.findall(text)
    if text in tuple(LETTERS[:5]):
        letter = text
    elif text[:1] in tuple(LETTERS[:5]) and text[1:3] == ". ":
        letter = text[0]
    else:
        letter = said[0] if len(said) == 1 else ""
    return letter if letter and letter in letters else None


def seed_choice(text: str) -> str | None:
    """SEED's rule: the letter and nothing else."""
    return text if text in tuple("ABCD") else None


def rotations(options: Sequence[str], answer: str) -> list[tuple[list[str], str]]:
    """The rounds of circular evaluation: the options in every turned order, each with the letter that is then right."""
    place, count = LETTERS.index(answer), len(options)
    return [
        ([*options[turn:], *options[:turn]], LETTERS[(place - turn) % count])  # the first option goes to the end
        for turn in range(count)
    ]


def circular_accuracy(rounds: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    """Of each question's rounds, right or wrong, the first being the order as published: `circular`, the share of
    questions that are right in every round, and `vanilla`, of those right in the first. 0 to 1."""
    count = max(len(rounds), 1)
    return {
        "circular": sum(map(all, rounds.values())) / count,
        "vanilla": sum(each[0] for each in rounds.values()) / count,
    }
