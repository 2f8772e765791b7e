"""What LLaVA 1.5 is asked, as its evaluation publishes it (LLaVA, docs/Evaluation.md and the question files beside it).

Scores do not reproduce with other words.
"""

from __future__ import annotations

from collections.abc import Sequence

LETTERS = "ABCDEFGH"

ONE_WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
CAPTION = "Provide a one-sentence caption for the provided image."
BOX = "Please provide the bounding box coordinate of the region this sentence describes: {}"


def short_answer(question: str) -> str:
    """For one word or phrase: VQAv2, GQA, TextVQA, POPE, MME."""
    return f"{question}\n{ONE_WORD}"


def multiple_choice(question: str, options: Sequence[str], context: str = "", instruction: str = LETTER) -> str:
    """For the letter of an option: ScienceQA, MMBench, SEED."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([*([context] if context else []), question, *lines, instruction])
