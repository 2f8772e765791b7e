from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from random import Random

import pytest

from paddle_llava.demo import questions
from paddle_llava.demo.descriptions import LARGE, box_share, caption, description, large_objects, scene_as_text
from paddle_llava.demo.dialogues import KINDS_OF_QUESTION, Turn, corpus, dialogue
from paddle_llava.demo.document import document_scene
from paddle_llava.demo.kinds import HELDOUT_PAIRS, KINDS
from paddle_llava.demo.naming import LANGUAGES, Language, colour_word, kind_word, measure, plural
from paddle_llava.demo.pen import COLOURS
from paddle_llava.demo.phrases import PHRASES, RELATIONS
from paddle_llava.demo.questions import Question
from paddle_llava.demo.scenes import Scene, SceneObject, draw_scene
from paddle_llava.demo.scoring import find_mentions, score
from paddle_llava.demo.view import Reference, View
from paddle_llava.demo.vocabulary import all_words, split_words
from paddle_llava.processing.boxes import box_iou, find_boxes, from_padded_frame


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(seed, size=72) for seed in range(500)]


@pytest.fixture(scope="module")
def heldout() -> list[Scene]:
    return [draw_scene(seed, size=72, split="heldout") for seed in range(300)]


@pytest.fixture(scope="module")
def asked(scenes: list[Scene], heldout: list[Scene]) -> list[tuple[View, str, Question]]:
    """Questions before they are words: each kind, once or twice a scene."""
    found = []
    for number, scene in enumerate(scenes + heldout):
        view, rng = View(scene), Random(number)
        for kind, (_, ask) in KINDS_OF_QUESTION.items():
            for _ in range(4 if kind in ("yes_no", "relation") else 2):
                if question := ask(view, rng):
                    found.append((view, kind, question))
    return found


def meant(view: View, name: Reference) -> list[int]:
    """Every object, hidden ones too, that a name could mean."""
    alike = [
        number
        for number, thing in enumerate(view.things)
        if thing.kind == name.kind and name.colour in (None, thing.colour)
    ]
    if name.side is None:
        return alike
    sign = 1 if name.side == "left" else -1
    first = min(sign * view.centre(number)[0] for number in alike)
    return [number for number in alike if sign * view.centre(number)[0] < first + 0.05]


def test_names_fit_one_thing_alone(asked: list[tuple[View, str, Question]]) -> None:
    checked = Counter[str]()
    for view, kind, question in asked:
        if question.sort in ("exists", "count"):
            continue
        for name, number in zip((question.it, question.other), question.objects, strict=False):
            if name:
                assert meant(view, name) == [number], (kind, name)
                assert view.things[number].clear
                checked[name.side or "alone"] += 1
    assert min(checked[way] for way in ("left", "right", "alone")) > 100


def test_answers_are_true(asked: list[tuple[View, str, Question]]) -> None:
    """Each answer is worked out again from the objects alone."""
    checked = Counter[str]()
    for view, kind, question in asked:
        things, numbers, answer = view.things, question.objects, question.answer
        if kind == "what":
            assert [it.kind for it in things if it.colour == question.colour] == [answer]
        elif kind == "colour":
            assert things[numbers[0]].colour == answer
            assert question.it.colour is None
        elif kind == "count":
            alike = meant(view, question.it)
            assert len(alike) == int(answer)
            assert all(thing.clear for thing in things if thing.kind == question.it.kind)
        elif kind == "where":
            x, y = view.centre(numbers[0])
            rows = {"top": (0, 1 / 3), "bottom": (2 / 3, 1)}
            columns = {"left": (0, 1 / 3), "right": (2 / 3, 1)}
            low, high = next((span for word, span in rows.items() if word in answer), (1 / 3, 2 / 3))
            assert low <= y <= high
            low, high = next((span for word, span in columns.items() if word in answer), (1 / 3, 2 / 3))
            assert low <= x <= high
        elif kind == "relation":
            assert holds(view, things[numbers[0]], answer, things[numbers[1]])
        elif question.sort == "is_beside":
            true = holds(view, things[numbers[0]], question.relation or "", things[numbers[1]])
            assert true == (answer == "yes")
        elif question.sort == "is_colour":
            assert (things[numbers[0]].colour == question.colour) == (answer == "yes")
        elif question.sort == "exists":
            alike = meant(view, question.it)
            assert any(things[number].clear for number in alike) if answer == "yes" else not alike
        elif kind in ("box", "at_box"):
            written = answer if kind == "box" else question.box
            box = from_padded_frame(find_boxes(written)[0], *view.scene.size)
            best = max(range(len(things)), key=lambda number: box_iou(things[number].box, box))
            assert best == numbers[0]
            error = max(abs(a - b) for a, b in zip(box, things[best].box, strict=True))
            assert error <= 0.0051 * max(view.scene.size)
            if kind == "at_box":
                assert (answer, question.colour) == (things[best].kind, things[best].colour)
        checked[question.sort] += 1
    assert all(checked[sort] >= 40 for sort in PHRASES["en"]), checked


def holds(view: View, one: SceneObject, relation: str, two: SceneObject) -> bool:
    if relation in ("right", "below", "behind"):
        return holds(view, two, questions.OPPOSITE[relation], one)
    if relation == "left":
        return one.box[0] + one.box[2] + 0.1 * view.scene.size[0] < two.box[0] + two.box[2]
    if relation == "above":
        return one.box[3] <= two.box[1] + 0.011 * view.scene.size[1]
    touching = max(one.box[0], two.box[0]) <= min(one.box[2], two.box[2])
    return touching and view.things.index(one) > view.things.index(two)


def test_yes_and_no_are_balanced(asked: list[tuple[View, str, Question]]) -> None:
    sorts: dict[str, Counter[str]] = {}
    kinds: dict[str, Counter[str]] = {}
    for _, kind, question in asked:
        if kind == "yes_no":
            sorts.setdefault(question.sort, Counter())[question.answer] += 1
            if question.sort == "exists":
                kinds.setdefault(question.it.kind, Counter())[question.answer] += 1
    for answers in sorts.values():
        assert 0.44 < answers["yes"] / answers.total() < 0.56
    for kind, answers in kinds.items():
        assert 0.27 < answers["yes"] / answers.total() < 0.73, (kind, answers)


def test_denied_things_are_near_misses_too(asked: list[tuple[View, str, Question]]) -> None:
    denied = [(view, it.it) for view, _, it in asked if it.sort == "exists" and it.answer == "no"]
    same_kind = sum(name.kind in view.kinds for view, name in denied)
    same_colour = sum(
        name.kind not in view.kinds and name.colour in {thing.colour for thing in view.things} for view, name in denied
    )
    assert same_kind / len(denied) > 0.2
    assert same_colour / len(denied) > 0.2


def test_counts_are_spread(scenes: list[Scene]) -> None:
    counts = Counter(
        turn.answer
        for number, scene in enumerate(scenes)
        for turn in dialogue(scene, number, "en", kinds=["count"], turns=1)
    )
    assert counts.total() == len(scenes)
    assert all(0.07 < counts[str(number)] / counts.total() < 0.36 for number in range(4))
    assert counts["4"] + counts["5"] > 0.1 * counts.total()


def test_every_turn_of_a_dialogue_is_another(scenes: list[Scene]) -> None:
    for number, scene in enumerate(scenes[:150]):
        turns = dialogue(scene, number, turns=6)
        assert len({turn.question for turn in turns}) == len(turns) == 6
        assert turns == dialogue(scene, number, turns=6)
    assert dialogue(scenes[0], 1) != dialogue(scenes[0], 2)


def test_both_languages_ask_the_same(scenes: list[Scene]) -> None:
    answers: dict[str, set[str]] = {}
    for number, scene in enumerate(scenes[:250]):
        english, chinese = (dialogue(scene, number, language) for language in LANGUAGES)
        assert [(turn.kind, turn.objects) for turn in english] == [(turn.kind, turn.objects) for turn in chinese]
        for one, other in zip(english, chinese, strict=True):
            if one.kind == "describe":
                assert find_mentions(one.answer, "en") == find_mentions(other.answer, "zh")
            else:
                answers.setdefault(f"{one.kind} {one.answer}", set()).add(other.answer)
            assert not re.search("[\u4e00-\u9fff]", one.question + one.answer)
            assert not re.search("[A-Za-z{}]", other.question + other.answer)
    assert all(len(translations) == 1 for translations in answers.values()), answers


def test_left_to_itself_a_dialogue_is_in_either_language_or_mixed(scenes: list[Scene]) -> None:
    spoken = Counter(
        frozenset(turn.language for turn in dialogue(scene, number)) for number, scene in enumerate(scenes)
    )
    assert len(spoken) == 3
    assert min(spoken.values()) > 40


@pytest.mark.parametrize("language", LANGUAGES)
def test_wordings(language: str) -> None:
    for sort, phrasings in PHRASES[language].items():
        assert len(set(phrasings.train)) == len(phrasings.train) >= 8, sort
        assert 1 <= len(phrasings.heldout) <= 2
        assert not set(phrasings.train) & set(phrasings.heldout)
        holes = {
            frozenset(re.findall(r"\{(\w+)\}", text)) - {"measure"} for text in phrasings.train + phrasings.heldout
        }
        assert len(holes) == 1, sort
        other = PHRASES["en"][sort].train[0]
        assert holes == {frozenset(re.findall(r"\{(\w+)\}", other))}


@pytest.mark.parametrize("language", LANGUAGES)
def test_new_wordings_are_of_known_words(language: str) -> None:
    def words(texts: tuple[str, ...]) -> set[str]:
        return {word for text in texts for word in split_words(re.sub(r"\{\w+\}", " ", text))}

    known = set().union(*(words(phrasings.train) for phrasings in PHRASES[language].values()))
    for phrasings in PHRASES[language].values():
        assert words(phrasings.heldout) <= known


def test_no_wording_means_two_sorts_of_question() -> None:
    for language in LANGUAGES:
        texts = [text for it in PHRASES[language].values() for text in it.train + it.heldout]
        assert len(texts) == len(set(texts))


def any_of(words: Iterable[str]) -> str:
    return f"(?:{'|'.join(sorted(words, key=len, reverse=True))})"


def fillings(language: Language) -> str:
    """What may stand in a wording's places."""
    colour = any_of(colour_word(colour, language) for colour in COLOURS)
    kind = any_of(word for kind in KINDS for word in (plural(kind, language), kind_word(kind, language)))
    if language == "en":
        name = f"(?:the |an? )?(?:leftmost |rightmost )?(?:{colour} )?{kind}(?: in {colour})?"
    else:
        name = f"(?:最[左右]边那.)?(?:{colour}的|穿{colour}衣服的)?{kind}"
    measures = any_of(measure(kind) for kind in KINDS)
    return any_of([name, colour, measures, "[0-9., ]+", *RELATIONS[language].values()])


def patterns(which: str) -> list[re.Pattern[str]]:
    found = []
    for language in LANGUAGES:
        texts = [text for phrasings in PHRASES[language].values() for text in getattr(phrasings, which)]
        filling = fillings(language)
        parts = ([re.escape(part) for part in re.split(r"\{\w+\}", text)] for text in texts)
        found += [re.compile(filling.join(fixed)) for fixed in parts]
    return found


def all_turns(scenes: list[Scene], **how: str) -> list[Turn]:
    return [turn for number, scene in enumerate(scenes) for turn in dialogue(scene, number, **how)]


def test_training_never_names_a_heldout_pair(scenes: list[Scene], heldout: list[Scene]) -> None:
    def pairs(turns: list[Turn]) -> set[object]:
        return {
            pair
            for turn in turns
            for text in (turn.question, turn.answer)
            for pair in find_mentions(text, turn.language)
        }

    assert not pairs(all_turns(scenes)) & HELDOUT_PAIRS
    assert len(pairs(all_turns(heldout)) & HELDOUT_PAIRS) == len(HELDOUT_PAIRS)


def test_questions_about_a_heldout_pair_are_marked(heldout: list[Scene]) -> None:
    for number, scene in enumerate(heldout[:40]):
        new = {index for index, thing in enumerate(scene.objects) if (thing.kind, thing.colour) in HELDOUT_PAIRS}
        for turn in dialogue(scene, number):
            assert turn.new_pair == bool(new & set(turn.objects))


def test_training_never_uses_a_heldout_wording(scenes: list[Scene], heldout: list[Scene]) -> None:
    new, old = patterns("heldout"), patterns("train")
    turns = all_turns(heldout)
    fresh = [turn for turn in turns if turn.new_wording]
    assert 0.07 < len(fresh) / len(turns) < 0.13
    for turn in fresh[:120]:
        question = turn.question.split("\n")[0]
        assert any(pattern.fullmatch(question) for pattern in new)
        assert not any(pattern.fullmatch(question) for pattern in old), question
    train = all_turns(scenes[:150])
    assert not any(turn.new_wording or turn.new_pair for turn in train)
    assert not any(turn.new_wording for turn in all_turns(heldout[:50], split="train"))
    for turn in train[:400]:
        assert any(pattern.fullmatch(turn.question.split("\n")[0]) for pattern in old), turn.question


def test_the_first_dialogue() -> None:
    scene = document_scene()
    english, chinese = description(scene, "en"), description(scene, "zh")
    assert "a red bus" in english
    assert "一辆红色的公交车" in chinese
    assert "描述这张照片" in PHRASES["zh"]["describe"].train
    assert "给出{it}位置的坐标" in PHRASES["zh"]["box"].train
    boxes = {
        turn.question: turn.answer
        for seed in range(300)
        for turn in dialogue(scene, seed, "zh", kinds=["box"], turns=4)
    }
    assert boxes["给出公交车位置的坐标"] == "0.23, 0.33, 0.79, 0.78"
    assert {turn.objects for turn in dialogue(scene, 0, kinds=["describe"])} == {tuple(large_objects(scene))}


def test_descriptions_name_what_is_large(scenes: list[Scene]) -> None:
    for scene in scenes[:200]:
        for language in LANGUAGES:
            told = find_mentions(description(scene, language), language)
            large = Counter(
                (thing.kind, thing.colour)
                for thing in scene.objects
                if thing.clear and box_share(scene, thing) >= LARGE
            )
            assert not large - told
            assert not told - Counter((thing.kind, thing.colour) for thing in scene.objects)
            assert find_mentions(caption(scene, language), language) == told


def test_a_scene_as_text_holds_every_clear_thing_and_its_box(scenes: list[Scene]) -> None:
    for scene in scenes[:100]:
        for language in LANGUAGES:
            text = scene_as_text(scene, language)
            boxes = [from_padded_frame(box, *scene.size) for box in find_boxes(text.replace("。", ". "))]
            clear = [thing for thing in scene.objects if thing.clear]
            assert len(boxes) == len(clear)
            assert find_mentions(text, language) == Counter((thing.kind, thing.colour) for thing in clear)
            for box, thing in zip(boxes, clear, strict=True):
                assert max(abs(a - b) for a, b in zip(box, thing.box, strict=True)) < 0.0051 * 72


def test_an_empty_scene_has_its_place_and_time() -> None:
    scene = draw_scene(1, size=(32, 32), objects=(0, 0))
    assert scene.objects == ()
    assert caption(scene, "en").startswith("A ")
    assert description(scene, "zh").count("。") == 1
    turns = dialogue(scene, 0, turns=20)
    assert {turn.kind for turn in turns} <= {"describe", "count", "yes_no", "place", "time"}
    assert {turn.answer for turn in turns if turn.kind == "count"} == {"0"}


def test_every_word_is_in_the_vocabulary(heldout: list[Scene]) -> None:
    words = set(all_words())
    assert len(words) == len(all_words()) < 500
    turns = all_turns(heldout)
    texts = [text for turn in turns for text in (turn.question, turn.answer)] + list(corpus(2000))
    unknown = Counter(word for text in texts for word in split_words(text) if word not in words)
    assert not unknown


def test_words_are_cut_at_the_longest() -> None:
    assert split_words("What is at 0.23, 0.33?") == ["What", "is", "at", "0.23", ",", "0.33", "?"]
    assert split_words("给出公交车位置的坐标") == ["给出", "公交车", "位置", "的", "坐标"]


def test_corpus_is_of_the_asked_length_in_both_languages_and_repeatable() -> None:
    texts = list(corpus(300))
    assert len(texts) == 300
    assert texts == list(islice(corpus(1000), 300))
    assert texts != list(corpus(300, seed=1))
    chinese = sum(bool(re.search("[\u4e00-\u9fff]", text)) for text in texts)
    assert 60 < chinese < 200


def test_right_answers_score_full_marks(heldout: list[Scene]) -> None:
    for turn in all_turns(heldout[:120]):
        marks = score(turn, turn.answer)
        if turn.kind == "describe":
            assert marks["named"] == marks["required"] == len(turn.objects)
            assert marks["invented"] == 0
        elif turn.kind == "box":
            assert marks == {"iou": pytest.approx(1.0), "hit": 1.0}
        else:
            assert marks == {"exact": 1.0}
