"""What the things of a scene are called in English and Chinese."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

_PLURALS = {"bus": "buses", "person": "people", "bench": "benches"}
_CHINESE = {  # kind: (noun, measure word)
    "bus": ("公交车", "辆"),
    "car": ("汽车", "辆"),
    "truck": ("卡车", "辆"),
    "bicycle": ("自行车", "辆"),
    "boat": ("船", "只"),
    "tree": ("树", "棵"),
    "house": ("房子", "座"),
    "person": ("人", "个"),
    "traffic light": ("交通灯", "盏"),
    "street lamp": ("路灯", "盏"),
    "bench": ("长椅", "张"),
    "dog": ("狗", "只"),
    "sun": ("太阳", "个"),
    "cloud": ("云", "朵"),
    "bird": ("鸟", "只"),
    "balloon": ("气球", "个"),
}
_CHINESE_COLOURS = {
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "pink": "粉色",
    "brown": "棕色",
    "black": "黑色",
    "white": "白色",
}
_NUMBERS = {
    "en": ("", "a", "two", "three", "four", "five", "six", "seven", "eight"),
    "zh": ("", "一", "两", "三", "四", "五", "六", "七", "八"),
}
_CHINESE_PLACES = {"street": "街道", "park": "公园", "river": "河边"}
_CHINESE_TIMES = {"day": "白天", "evening": "傍晚"}
SUPERLATIVES = {
    "left": {"en": "leftmost", "zh": "最左边"},
    "right": {"en": "rightmost", "zh": "最右边"},
}


def kind_word(kind: str, language: Language) -> str:
    """`bus`, `公交车`."""
    return _CHINESE[kind][0] if language == "zh" else kind


def plural(kind: str, language: Language, colour: str | None = None) -> str:
    """`red buses`, `people in red`; in Chinese, which has no plural, as one."""
    if language == "zh":
        return named(kind, colour, "zh")
    return _coloured(_PLURALS.get(kind, f"{kind}s"), kind, colour)


def measure(kind: str) -> str:
    """The Chinese measure word: `辆`."""
    return _CHINESE[kind][1]


def colour_word(colour: str, language: Language) -> str:
    """`red`, `红色`."""
    return _CHINESE_COLOURS[colour] if language == "zh" else colour


def place_word(place: str, language: Language) -> str:
    return _CHINESE_PLACES[place] if language == "zh" else place


def time_word(time: str, language: Language) -> str:
    return _CHINESE_TIMES[time] if language == "zh" else time


def named(kind: str, colour: str | None, language: Language) -> str:
    """`bus`, `red bus`, `person in red`; `公交车`, `红色的公交车`, `穿红色衣服的人`."""
    if language == "en":
        return _coloured(kind, kind, colour)
    noun = _CHINESE[kind][0]
    if colour is None:
        return noun
    return f"穿{_CHINESE_COLOURS[colour]}衣服的{noun}" if kind == "person" else f"{_CHINESE_COLOURS[colour]}的{noun}"


def definite(kind: str, colour: str | None, side: str | None, language: Language) -> str:
    """`the leftmost red bus`; `最左边那辆红色的公交车`."""
    name = named(kind, colour, language)
    if language == "zh":
        return f"{SUPERLATIVES[side]['zh']}那{measure(kind)}{name}" if side else name
    return f"the {SUPERLATIVES[side]['en']} {name}" if side else f"the {name}"


def counted(kind: str, colour: str | None, number: int, language: Language) -> str:
    """`a red bus`, `two red buses`; `一辆红色的公交车`."""
    words = _NUMBERS[language]
    word = words[number] if number < len(words) else str(number)
    if language == "zh":
        return f"{word}{measure(kind)}{named(kind, colour, 'zh')}"
    if number > 1:
        return f"{word} {plural(kind, 'en', colour)}"
    name = named(kind, colour, "en")
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def listed(names: Sequence[str], language: Language) -> str:
    """`a, b and c`; `a、b和c`."""
    comma, last = ("、", "和") if language == "zh" else (", ", " and ")
    return comma.join(names[:-1]) + last + names[-1] if len(names) > 1 else names[0]


def number_words(language: Language) -> tuple[str, ...]:
    """The words of `counted` for 1, 2, ...; `a` and `an` apart in English."""
    return _NUMBERS[language][1:]


def _coloured(noun: str, kind: str, colour: str | None) -> str:
    if colour is None:
        return noun
    return f"{noun} in {colour}" if kind == "person" else f"{colour} {noun}"
