"""The street world's held-out set: what the demonstration's training asks its model at the end.

No files: the pictures are drawn anew, the same each time, and kept in the cache. `--data 60` draws 60 of them instead
of the 1,000 that a whole training is judged by (a quick one: 60).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from io import BytesIO
from typing import Any

from paddle_llava.demo.dialogues import Turn, dialogue
from paddle_llava.demo.evaluate import SEED, TURNS, Answered, figures, longest_answer
from paddle_llava.demo.model import IMAGE_SIZE
from paddle_llava.demo.scenes import draw_scene
from paddle_llava.demo.scoring import score as score_turn
from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.records import Prediction, Question, Scores, Stratum
from paddle_llava.evaluation.tasks.files import Data, keep_picture

PICTURES = 1000
SHOWN = {"vqa": ("exact", "new"), "box": ("iou", "hit"), "describe": ("named", "invented")}


def read(data: Data) -> list[Question]:
    """At most eight questions about each picture; an id is `picture/turn`. Raises `LlavaError`."""
    questions = []
    for number in range(_number_of_pictures(data)):
        scene = draw_scene(SEED + number, size=IMAGE_SIZE, split="heldout")
        file = BytesIO()
        scene.image.save(file, "PNG")
        picture = keep_picture(file.getvalue(), f"street picture {number}")
        for place, turn in enumerate(dialogue(scene, SEED + number, turns=TURNS)):
            meta = {"picture": number, **_as_lists(asdict(turn))}
            longest = longest_answer(turn.kind)
            questions.append(
                Question(f"{number}/{place}", turn.question, (picture,), (turn.answer,), meta, max_new_tokens=longest)
            )
    return questions


def _number_of_pictures(data: Data) -> int:
    if not data.paths:
        return PICTURES
    number = str(data.paths[0])
    if len(data.paths) > 1 or not number.isascii() or not number.isdigit() or not 1 <= int(number) <= 1_000_000:
        raise LlavaError(f"--data {number[:40]}: the task street takes a number of pictures to draw, such as 60")
    return int(number)


def _as_lists(turn: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it, to be equal to what is read back."""
    present = [list(pair) for pair in turn["present"]]
    return {**turn, "objects": list(turn["objects"]), "names": list(turn["names"]), "present": present}


def _turn(meta: dict[str, Any]) -> Turn:
    own = {key: value for key, value in meta.items() if key in Turn.__dataclass_fields__}
    present = tuple((a, b) for a, b in own["present"])
    return Turn(**{**own, "objects": tuple(own["objects"]), "names": tuple(own["names"]), "present": present})


def score(predictions: Sequence[Prediction]) -> Scores:
    """The table that training prints, 0 to 1, for each kind of question; a failed question counts as an empty answer.

    `exact` is the share of right answers where one is right. An answer's own score is whether it is right, whether its
    box is, or the share that a description names of what it should.
    """
    answered = [Answered(_turn(it.question.meta), it.question.meta["picture"], it.answer) for it in predictions]
    table = figures(answered)
    scored = [(it.turn, score_turn(it.turn, it.answer)) for it in answered]
    each = {it.id: _single(scores) for it, (_, scores) in zip(predictions, scored, strict=True)}
    shown, strata = dict[str, float](), dict[str, list[Stratum]]()
    for kind, keys in SHOWN.items():
        for key in keys:
            if key in table.get(kind, {}):
                name = key if kind == "vqa" else f"{kind} {key}"
                shown[name] = table[kind][key]
                strata[name] = [_stratum(scored, key)]
    return Scores("exact" if "exact" in shown else next(iter(shown), "exact"), shown, each, table, strata=strata)


def _stratum(scored: Sequence[tuple[Turn, dict[str, float]]], key: str) -> Stratum:
    """What each answer adds to a figure: an object named to those that should be, one invented to all mentioned."""
    above, below = {"new": "exact"}.get(key, key), {"named": "required", "invented": "mentions"}.get(key)
    return [
        (scores[above], scores[below] if below else 1.0)
        for turn, scores in scored
        if above in scores and (key != "new" or turn.new_wording)
    ]


def _single(scores: dict[str, float]) -> float:
    if "required" in scores:
        return scores["named"] / max(scores["required"], 1.0)
    return scores.get("hit", scores.get("exact", 0.0))
