"""The words that scenes, questions and answers are made of: few, so that a small tokenizer can know each whole."""

from __future__ import annotations

import re
from collections.abc import Iterator

from paddle_llava.demo.backdrop import PLACES, TIMES
from paddle_llava.demo.descriptions import AT_PLACE
from paddle_llava.demo.kinds import KINDS
from paddle_llava.demo.naming import (
    SUPERLATIVES,
    colour_word,
    kind_word,
    measure,
    number_words,
    place_word,
    plural,
    time_word,
)
from paddle_llava.demo.pen import COLOURS
from paddle_llava.demo.phrases import ANSWERS, PHRASES, RELATIONS, SHORT_ANSWER

COORDINATES = tuple(f"{value / 100:.2f}" for value in range(101))
_PUNCTUATION = (".", ",", ":", "?", "。", "，", "、", "：", "？")
# Of the descriptions alone; the questions' words are read off their wordings.
_ENGLISH = (
    "The picture shows From left to right there is are In the sky by on in and A An Two Three Four Five Six Seven Eight"
)
# Chinese has no spaces: the words of the questions and descriptions, as they are to be cut.
_CHINESE = """
这 这张 照片 图片 图中 展示了 描述 请 一下 里 里有 什么 你 在 看到 看到了 能看到 说说 说出 简单 内容 的 是 东西 物体
哪个 哪里 哪 有 一个 它 它的 名称 颜色 看一下 有几 有多少 多少 一共有 几 数一数 数一下 能 位置 一边 还是 从 看 吗
有没有 没有 了 是不是 给出 坐标 边界框 用 回答 找到 处 地方 拍的 时间 天空 天空中 一个 词 或 短语 问题 穿 衣服的 那
从左到右 和
"""
_TOKEN = re.compile(r"\d\.\d\d|\d|[A-Za-z]+|[^\sA-Za-z\d]")


def all_words() -> list[str]:
    """Every word there is, English and Chinese, with the coordinates 0.00 to 1.00, digits and punctuation."""
    return list(_words())


def split_words(text: str) -> list[str]:
    """`text` cut into words (without the spaces): Chinese by the longest known word.

    `What is at 0.23, 0.33?` -> `What`, `is`, `at`, `0.23`, `,`, `0.33`, `?`; `公交车在哪里` -> `公交车`, `在`, `哪里`.
    """
    words: list[str] = []
    for piece in re.findall(r"[\u4e00-\u9fff]+|[^\u4e00-\u9fff]+", text):
        words += _cut(piece) if "\u4e00" <= piece[0] <= "\u9fff" else _TOKEN.findall(piece)
    return words


def _cut(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        length = next(n for n in range(_LONGEST, 0, -1) if n == 1 or text[start : start + n] in _KNOWN)
        yield text[start : start + length]
        start += length


def _words() -> dict[str, None]:
    words = dict.fromkeys([*COORDINATES, *"0123456789", *_PUNCTUATION])
    words |= dict.fromkeys(_chinese_words())
    texts = [_ENGLISH, SHORT_ANSWER["en"], *ANSWERS["en"].values(), *RELATIONS["en"].values()]
    for phrasings in PHRASES["en"].values():
        texts += [re.sub(r"\{\w+\}", " ", text) for text in phrasings.train + phrasings.heldout]
    texts += [f"{kind} {plural(kind, 'en')}" for kind in KINDS]
    texts += [*COLOURS, *PLACES, *TIMES, *number_words("en"), "an"]
    texts += [words_of["en"] for words_of in SUPERLATIVES.values()]
    return words | dict.fromkeys(re.findall("[A-Za-z]+", " ".join(texts)))


def _chinese_words() -> list[str]:
    words = _CHINESE.split() + [kind_word(kind, "zh") for kind in KINDS] + [measure(kind) for kind in KINDS]
    words += [colour_word(colour, "zh") for colour in COLOURS] + list(number_words("zh"))
    words += [place_word(place, "zh") for place in PLACES] + [time_word(time, "zh") for time in TIMES]
    words += [*ANSWERS["zh"].values(), *RELATIONS["zh"].values(), *AT_PLACE.values()]
    return words + [words_of["zh"] for words_of in SUPERLATIVES.values()]


_KNOWN = frozenset(_chinese_words())
_LONGEST = max(map(len, _KNOWN))
