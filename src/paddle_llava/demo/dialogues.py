"""Conversations about a scene, in English and Chinese, and the texts that a tokenizer learns from.

for turn in dialogue(draw_scene(7), seed=0):
    print(turn.question, turn.answer)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from random import Random

from paddle_llava.demo import questions
from paddle_llava.demo.composition import pick
from paddle_llava.demo.descriptions import caption, description, large_objects, scene_as_text
from paddle_llava.demo.kinds import HELDOUT_PAIRS, Split
from paddle_llava.demo.naming import (
    LANGUAGES,
    Language,
    colour_word,
    definite,
    kind_word,
    measure,
    named,
    place_word,
    plural,
    time_word,
)
from paddle_llava.demo.phrases import ANSWERS, PHRASES, RELATIONS, SHORT_ANSWER
from paddle_llava.demo.questions import Question
from paddle_llava.demo.scenes import Scene, draw_scene
from paddle_llava.demo.view import Reference, View

NEW_WORDINGS = 0.1
_HINTED = 0.1
_MIXED_LANGUAGES = 0.2
# The parts of a wording that mean something of the scene, where they are not `it` and `other`.
_NAMED_BY = {"count": ("many",), "exists": ("a",), "what": ("colour",), "at_box": ("box",)}

# What is asked, how often, and how it is made.
KINDS_OF_QUESTION: dict[str, tuple[float, Callable[[View, Random], Question | None]]] = {
    "describe": (0.8, questions.ask_describe),
    "what": (0.7, questions.ask_what),
    "colour": (1.0, questions.ask_colour),
    "count": (1.4, questions.ask_count),
    "where": (0.9, questions.ask_where),
    "relation": (1.2, questions.ask_relation),
    "yes_no": (1.6, questions.ask_yes_no),
    "box": (1.7, questions.ask_box),
    "at_box": (1.0, questions.ask_at_box),
    "place": (0.2, questions.ask_place),
    "time": (0.2, questions.ask_time),
}


@dataclass(frozen=True)
class Turn:
    """A question about a scene and the right answer.

    `names` are the words in the question that mean something of the scene, in the order of `objects`; where these are
    counted, one name means all.
    `kind` is a key of `KINDS_OF_QUESTION`, `sort` the question's among its kind, a key of `PHRASES`; `objects` are the
    numbers, in `scene.objects`, of what it is about (for a description: what it must name). `new_wording` marks a
    phrasing that is kept out of training, `new_pair` a question about a thing of which training never has kind and
    colour together. `present` is (kind, colour) of every object in the scene, for judging descriptions.
    """

    question: str
    answer: str
    kind: str
    objects: tuple[int, ...]
    language: Language
    sort: str = ""
    new_wording: bool = False
    present: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    names: tuple[str, ...] = ()
    new_pair: bool = False


def dialogue(
    scene: Scene,
    seed: int,
    language: Language | None = None,
    split: Split | None = None,
    *,
    turns: int = 8,
    kinds: Sequence[str] = tuple(KINDS_OF_QUESTION),
) -> list[Turn]:
    """At most `turns` different questions of the given `kinds` about `scene`, with their answers.

    The same seed gives the same questions in both languages. Without a `language` the seed chooses one, now and
    then another for each turn. `split` (the scene's own if not given) decides on the wordings: in `heldout` a
    tenth of the questions is put as none is in `train`.
    """
    rng, view = Random(f"dialogue {seed}"), View(scene)
    chosen, mixed = rng.choice(LANGUAGES), rng.random() < _MIXED_LANGUAGES
    weights = {kind: KINDS_OF_QUESTION[kind][0] for kind in kinds}
    found: list[Turn] = []
    asked: set[object] = set()
    for _ in range(4 * turns):
        if len(found) == turns:
            break
        kind, own, wording = pick(weights, rng), rng.choice(LANGUAGES), Random(rng.random())
        question = KINDS_OF_QUESTION[kind][1](view, rng)
        if question is None or (key := _subject_of(question)) in asked:
            continue
        asked.add(key)
        told = language or (own if mixed else chosen)
        found.append(_put(question, kind, view, told, split or scene.split, wording))
    return found


def corpus(number: int, seed: int = 0) -> Iterator[str]:
    """`number` texts of the training world, half of them Chinese: questions, answers, captions, scenes as text."""

    def texts() -> Iterator[str]:
        for index in count():
            scene = draw_scene(seed * 1_000_003 + index, size=(64, 64))
            for language in LANGUAGES:
                yield scene_as_text(scene, language)
                yield caption(scene, language)
                for turn in dialogue(scene, index, language):
                    yield turn.question
                    yield turn.answer

    return islice(texts(), number)


def _subject_of(question: Question) -> object:
    """What must not be asked twice in a dialogue."""
    if question.sort in ("describe", "place", "time"):
        return question.sort
    return question.sort, question.it, question.other, question.objects, question.colour, question.relation


def _put(question: Question, kind: str, view: View, language: Language, split: Split, rng: Random) -> Turn:
    """The question in words."""
    phrasings = PHRASES[language][question.sort]
    new = split == "heldout" and rng.random() < NEW_WORDINGS
    template = rng.choice(phrasings.heldout if new else phrasings.train)
    it = question.it
    words = {
        "it": _definite(it, language),
        "other": _definite(question.other, language),
        "a": _indefinite(it, language),
        "many": plural(it.kind, language, it.colour) if it else "",
        "colour": colour_word(question.colour, language) if question.colour else "",
        "box": question.box or "",
    }
    relation = RELATIONS[language][question.relation] if question.relation else ""
    text = template.format(**words, measure=measure(it.kind) if it else "", relation=relation)
    names = tuple(words[part] for part in _NAMED_BY.get(question.sort, ("it", "other")) if words[part])
    if rng.random() < _HINTED and kind not in ("describe", "box", "at_box"):
        text = f"{text}\n{SHORT_ANSWER[language]}"
    answer = _answer(question, view.scene, language)
    pairs = tuple((thing.kind, thing.colour) for thing in view.things)
    described = kind == "describe"
    objects = tuple(large_objects(view.scene)) if described else question.objects
    return Turn(
        text,
        answer,
        kind,
        objects,
        language,
        question.sort,
        new,
        present=pairs if described else (),
        names=names,
        new_pair=any(pairs[number] in HELDOUT_PAIRS for number in objects),
    )


def _answer(question: Question, scene: Scene, language: Language) -> str:
    match question.answer_as:
        case "fixed":
            return ANSWERS[language][question.answer]
        case "kind":
            return kind_word(question.answer, language)
        case "colour":
            return colour_word(question.answer, language)
        case "named":
            return named(question.answer, question.colour, language)
        case "place":
            return place_word(question.answer, language)
        case "time":
            return time_word(question.answer, language)
        case "description":
            return description(scene, language)
    return question.answer


def _definite(name: Reference | None, language: Language) -> str:
    return definite(name.kind, name.colour, name.side, language) if name else ""


def _indefinite(name: Reference | None, language: Language) -> str:
    if name is None:
        return ""
    words = named(name.kind, name.colour, language)
    if language == "zh":
        return words
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"
