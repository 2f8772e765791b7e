"""VQA accuracy as VQA v2 and TextVQA define it, after their own normalisation of answers.

VQA v2: Goyal et al. 2017 and its published evaluation (GT-Vision-Lab/VQA, `vqaEval.py`). TextVQA: the answer processor
of its EvalAI challenge (LLaVA's `m4c_evaluator.py`). What three of the other nine people said is wholly right in both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_STOPS = 32  # the reference passes a flag where `re.sub` has its count, and so stops there
_DIGIT_COMMA = re.compile(r"\d,\d")
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# The rule mends a contraction that lacks one of its apostrophes. Its table has `somebody'd` the wrong way round.
_MENDED = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS.split()
    for place, sign in enumerate(word)
    if sign == "'"
} | {"somebody'd": "somebodyd"}


def normalise_answer(text: str) -> str:
    """`The two dogs, dont run.` -> `2 dogs don't run`: VQA v2's punctuation, digits, articles, contractions."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return _without_articles(_without_punctuation(text, bool(_DIGIT_COMMA.search(text))))


def normalise_textvqa_answer(text: str) -> str:
    """As `normalise_answer`, but commas and question marks go first, and `'s` becomes a word of its own."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _without_articles(_without_punctuation(text.replace("\n", " ").replace("\t", " ").strip(), False))


def _without_punctuation(text: str, thousands: bool) -> str:
    """Signs at a word's edge, and all when there is a comma in a number (`thousands`), go; others become spaces."""
    bare = text
    for sign in _PUNCTUATION:
        loose = thousands or sign + " " in text or " " + sign in text
        bare = bare.replace(sign, "" if loose else " ")
    return _FULL_STOP.sub("", bare, count=_MOST_STOPS)


def _without_articles(text: str) -> str:
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(_MENDED.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, annotators: Sequence[str]) -> float:
    """How many people agree, 0 to 1, meant over leaving each of the (ten) `annotators` out; 0 without any.

    VQA v2's rule. Answers are normalised only when the annotators are not all of one opinion, as in the reference.
    """
    given = [_plain(each) for each in annotators]
    answer = _plain(answer)
    if len(set(given)) > 1:
        given, answer = [normalise_answer(each) for each in given], normalise_answer(answer)
    return _agreement(answer, given)


def textvqa_accuracy(answer: str, annotators: Sequence[str]) -> float:
    """As `vqa_accuracy`, by TextVQA's normalisation, which always applies."""
    return _agreement(normalise_textvqa_answer(answer), [normalise_textvqa_answer(each) for each in annotators])


def _plain(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _agreement(answer: str, given: Sequence[str]) -> float:
    if not given:
        return 0.0
    same = sum(each == answer for each in given)
    # Leaving out one who said the same leaves `same - 1`; any other, all of them.
    return (same * min(1.0, (same - 1) / 3) + (len(given) - same) * min(1.0, same / 3)) / len(given)
