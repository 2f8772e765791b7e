"""What the questions of a batch begin with alike is run once."""

from __future__ import annotations

from paddle_llava.evaluation.beginnings import Part, Run, shared_runs

IMAGE = -200


def runs(*questions: tuple[list[int], tuple[str, ...]]) -> list[Run]:
    return shared_runs([Part(tuple(ids), images) for ids, images in questions], IMAGE)


def test_the_systems_text_then_the_pictures_then_the_rest() -> None:
    found = runs(([1, 2, IMAGE, 3], ("a",)), ([1, 2, IMAGE, 4, 5], ("b",)), ([1, 2, IMAGE, 6], ("a",)))
    assert found == [
        Run([0], [Part((1, 2), ())]),
        Run([0, 0], [Part((IMAGE,), ("a",)), Part((IMAGE,), ("b",))]),
        Run([0, 1, 0], [Part((3,), ()), Part((4, 5), ()), Part((6,), ())]),
    ]


def test_a_question_of_another_kind_stands_beside_them() -> None:
    """Without a picture, or with one at the very end: something must be left for the last run."""
    for other in (([3, 4], ()), ([IMAGE], ("b",))):
        found = runs(([1, IMAGE, 2], ("a",)), other, ([1, IMAGE, 3], ("a",)))
        assert [run.rows for run in found] == [[0, 0], [0, 1, 0]]
        assert [run.parts[1] for run in found] == [Part((), ()), Part(tuple(other[0]), other[1])]


def test_what_spares_nothing_is_not_run_apart() -> None:
    alone = [1, 2, IMAGE, 3, IMAGE, 4], ("a", "b")
    assert runs(alone) == [Run([0], [Part(tuple(alone[0]), alone[1])])]
    assert runs(alone, (alone[0], ("a", "c"))) == [
        Run([0], [Part((1, 2), ())]),
        Run([0, 0], [Part((IMAGE, 3, IMAGE, 4), images) for images in (("a", "b"), ("a", "c"))]),
    ]
    assert len(runs(([1, 2], ()), ([1, 3], ()))) == 1
    assert len(runs(([1, IMAGE, 3], ("a",)), ([2, IMAGE, 3], ("a",)))) == 1


def test_equal_questions_have_a_row_each() -> None:
    same = [1, IMAGE, 2], ("a",)
    assert runs(same, same) == [Run([0], [Part((1, IMAGE), ("a",))]), Run([0, 0], [Part((2,), ()), Part((2,), ())])]
