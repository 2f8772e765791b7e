"""How questions are put: for each sort of question the wordings trained on, and those kept for held-out scenes.

Placeholders: `{it}` the thing asked about ("the red bus"), `{other}` the one it is compared with, `{a}` a thing that
may not be there ("a red bus"), `{many}` things to count, `{measure}` their Chinese measure word, `{colour}`,
`{relation}` ("to the left of"), `{box}`. A held-out wording is new as a sentence, not in its words.
"""

from __future__ import annotations

from dataclasses import dataclass

from paddle_llava.demo.naming import Language
from paddle_llava.demo.phrases_en import HELDOUT as ENGLISH_HELDOUT
from paddle_llava.demo.phrases_en import TRAIN as ENGLISH_TRAIN
from paddle_llava.demo.phrases_zh import HELDOUT as CHINESE_HELDOUT
from paddle_llava.demo.phrases_zh import TRAIN as CHINESE_TRAIN


@dataclass(frozen=True)
class Phrasings:
    train: tuple[str, ...]
    heldout: tuple[str, ...]


PHRASES: dict[Language, dict[str, Phrasings]] = {
    "en": {sort: Phrasings(ENGLISH_TRAIN[sort], ENGLISH_HELDOUT[sort]) for sort in ENGLISH_TRAIN},
    "zh": {sort: Phrasings(CHINESE_TRAIN[sort], CHINESE_HELDOUT[sort]) for sort in CHINESE_TRAIN},
}

# The hint of LLaVA's own evaluation prompts, on a line of its own after the question.
SHORT_ANSWER: dict[Language, str] = {
    "en": "Answer the question using a single word or phrase.",
    "zh": "请用一个词或短语回答问题。",
}

ANSWERS: dict[Language, dict[str, str]] = {
    "en": {
        "yes": "yes",
        "no": "no",
        "left": "left",
        "right": "right",
        "above": "above",
        "below": "below",
        "front": "in front",
        "behind": "behind",
        "top left": "top left",
        "top": "top",
        "top right": "top right",
        "middle": "middle",
        "bottom left": "bottom left",
        "bottom": "bottom",
        "bottom right": "bottom right",
    },
    "zh": {
        "yes": "是",
        "no": "否",
        "left": "左边",
        "right": "右边",
        "above": "上方",
        "below": "下方",
        "front": "前面",
        "behind": "后面",
        "top left": "左上方",
        "top": "上方",
        "top right": "右上方",
        "middle": "中间",
        "bottom left": "左下方",
        "bottom": "下方",
        "bottom right": "右下方",
    },
}

RELATIONS: dict[Language, dict[str, str]] = {
    "en": {
        "left": "to the left of",
        "right": "to the right of",
        "above": "above",
        "below": "below",
        "front": "in front of",
        "behind": "behind",
    },
    "zh": {
        "left": "左边",
        "right": "右边",
        "above": "上方",
        "below": "下方",
        "front": "前面",
        "behind": "后面",
    },
}
