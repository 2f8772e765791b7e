"""How good an answer is."""

from __future__ import annotations

import re
from collections import Counter

from paddle_llava.demo.dialogues import Turn
from paddle_llava.demo.kinds import KINDS
from paddle_llava.demo.naming import Language, colour_word, kind_word, measure, number_words, plural
from paddle_llava.demo.pen import COLOURS
from paddle_llava.processing.boxes import box_iou, find_boxes

Mention = tuple[str, str | None]


def score(turn: Turn, answer: str) -> dict[str, float]:
    """`answer` against the right one.

    A box gives `iou` (of its first box; 0 without one) and `hit`, whether that is above 0.5. A description gives
    `named` of the `required` objects, those that must be told with their colour, and `invented` of the `mentions`,
    those for which the scene holds no such object; all four are numbers of objects, to be summed over turns. All
    others give `exact`, 1 for the right words: case, final punctuation, articles and spelled numbers aside.
    """
    if turn.kind == "box":
        boxes = find_boxes(answer)
        iou = box_iou(boxes[0], find_boxes(turn.answer)[0]) if boxes else 0.0
        return {"iou": iou, "hit": float(iou > 0.5)}
    if turn.kind == "describe":
        return _score_description(turn, answer)
    return {"exact": float(normalized(answer, turn.language) == normalized(turn.answer, turn.language))}


def normalized(answer: str, language: Language) -> str:
    """`A red bus.` -> `red bus`, `Two` -> `2`."""
    text = " ".join(answer.strip().strip(".。!！,，\"'").lower().split())
    if language == "en":
        text = re.sub(r"^(?:a|an|the) (?=.)", "", text)
    numbers = {"zero": "0", "none": "0", "one": "1", "零": "0", "二": "2"}
    numbers |= {word: str(number) for number, word in enumerate(number_words(language), 1) if word != "a"}
    return numbers.get(text, text)


def find_mentions(text: str, language: Language) -> Counter[Mention]:
    """The things that a text names, as (kind, colour or None), with how many of each."""
    mentions: Counter[Mention] = Counter()
    for match in _PATTERNS[language].finditer(text.lower()):
        colour = match["before"] or match["after"]
        number = normalized(match["number"] or "", language)
        mention = _KINDS[language][match["kind"]], _COLOURS[language].get(colour)
        mentions[mention] += int(number) if number in set("123456789") else 1
    return mentions


def _score_description(turn: Turn, answer: str) -> dict[str, float]:
    mentions = find_mentions(answer, turn.language)
    required = Counter(turn.present[number] for number in turn.objects)
    left = Counter(turn.present)
    invented = 0
    for (kind, colour), number in sorted(mentions.items(), key=lambda item: item[0][1] is None):
        for _ in range(number):
            if colour is None:  # a bus, of whatever colour
                colour_left = next((pair for pair in sorted(left) if pair[0] == kind and left[pair]), None)
            else:
                colour_left = (kind, colour) if left[kind, colour] else None
            if colour_left:
                left[colour_left] -= 1
            else:
                invented += 1
    named = sum(min(number, mentions[pair]) for pair, number in required.items())
    return {
        "named": float(named),
        "required": float(sum(required.values())),
        "invented": float(invented),
        "mentions": float(sum(mentions.values())),
    }


_COLOURS: dict[Language, dict[str | None, str]] = {
    "en": {colour: colour for colour in COLOURS},
    "zh": {colour_word(colour, "zh"): colour for colour in COLOURS},
}
_KINDS: dict[Language, dict[str, str]] = {
    "en": {name: kind for kind in KINDS for name in (kind, plural(kind, "en"))},
    "zh": {kind_word(kind, "zh"): kind for kind in KINDS},
}


def _any_of(words: object) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))  # type: ignore[call-overload]


_PATTERNS: dict[Language, re.Pattern[str]] = {
    "en": re.compile(
        rf"\b(?:(?P<number>an|\d|{_any_of(number_words('en'))}) )?(?:(?P<before>{_any_of(_COLOURS['en'])}) )?"
        rf"(?P<kind>{_any_of(_KINDS['en'])})\b(?: in (?P<after>{_any_of(_COLOURS['en'])})\b)?"
    ),
    "zh": re.compile(
        rf"(?:(?P<number>\d|{_any_of(number_words('zh'))})[{''.join(sorted({measure(kind) for kind in KINDS}))}])?"
        rf"(?:(?:穿(?P<after>{_any_of(_COLOURS['zh'])})衣服的)|(?:(?P<before>{_any_of(_COLOURS['zh'])})的?))?"
        rf"(?P<kind>{_any_of(_KINDS['zh'])})"
    ),
}
