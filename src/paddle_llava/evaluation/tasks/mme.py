"""MME (https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models): fourteen subtasks of yes or no.

Files: the folder `MME_Benchmark_release_version`, with a folder for each subtask. In it a text file for each picture,
two lines of question, tab, answer: beside the pictures, or in `questions_answers_YN` with the pictures in `images`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.metrics.mme import (
    COGNITION,
    PERCEPTION,
    MmeAnswer,
    mme_scores,
    mme_totals,
    parse_mme_answer,
)
from paddle_llava.evaluation.prompts import short_answer
from paddle_llava.evaluation.records import Prediction, Question, Scores, Stratum
from paddle_llava.evaluation.tasks.files import Data, unique

INSTRUCTION = "Please answer yes or no."
PICTURES = (".jpg", ".png", ".jpeg")


def read(data: Data) -> list[Question]:
    """Both questions about each picture; an id is `subtask/picture/1`. Raises `LlavaError`."""
    known = {*PERCEPTION, *COGNITION}
    found = [folder for path in data.paths if path.is_dir() for folder in [path, *sorted(path.iterdir())]]
    folders = [folder for folder in found if folder.name in known and folder.is_dir()]
    if not folders:
        where = data.paths[0] if data.paths else "--data"
        raise LlavaError(f"{where}: none of MME's subtasks (existence, count, ...) is a folder there")
    return unique([pair for folder in folders for pair in _subtask(folder)])


def _subtask(folder: Path) -> list[tuple[str, Question]]:
    apart = (folder / "questions_answers_YN").is_dir()
    texts, pictures = (folder / "questions_answers_YN", folder / "images") if apart else (folder, folder)
    questions = []
    for file in sorted(texts.glob("*.txt")):
        places = [pictures / f"{file.stem}{ending}" for ending in PICTURES]
        picture = next((place for place in places if place.is_file()), places[0])
        try:
            lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise LlavaError(f"{file}: cannot be read as text ({error})") from None
        if len(lines) != 2:
            raise LlavaError(f"{file}: two lines are expected, a question for yes and one for no, found {len(lines)}")
        for number, line in enumerate(lines, 1):
            where = f"{file}: line {number}"
            asked, tab, answer = line.strip().partition("\t")
            if not tab or answer.strip().lower() not in ("yes", "no"):
                raise LlavaError(f"{where}: a question, a tab, and Yes or No are expected")
            # LLaVA asks for a word instead, as its question file `llava_mme.jsonl` shows.
            prompt = short_answer(asked.replace(INSTRUCTION, "").strip())
            meta = {"subtask": folder.name, "picture": file.stem}
            name = f"{folder.name}/{file.stem}/{number}"
            questions.append((where, Question(name, prompt, (str(picture),), (answer.strip().lower(),), meta)))
    return questions


def score(predictions: Sequence[Prediction]) -> Scores:
    """Perception (the figure that LLaVA publishes first, at most 2000), cognition (800), and each subtask (200).

    A failed question counts as wrong. A picture of which only one question was asked, as `--limit` may leave it, is not
    counted.
    """
    asked = Counter(_pair(it) for it in predictions)
    whole = [it for it in predictions if asked[_pair(it)] == 2]
    subtasks = mme_scores(MmeAnswer(*_pair(it), it.answer, _label(it)) for it in whole)
    each = {it.id: float(parse_mme_answer(it.answer) is _label(it)) for it in whole}
    groups = {
        "Score": {name: subtask.score for name, subtask in subtasks.items()},
        "acc": {name: 100 * subtask.acc for name, subtask in subtasks.items()},
        "acc+": {name: 100 * subtask.acc_plus for name, subtask in subtasks.items()},
    }
    left = len(predictions) - len(whole)
    notes = (f"{left} questions without the other about their picture are not counted",) if left else ()
    return Scores("perception", mme_totals(subtasks), each, groups, notes, _strata(whole, each))


def _strata(predictions: Sequence[Prediction], scores: Mapping[str, float]) -> dict[str, list[Stratum]]:
    """Of each subtask what every picture adds to its score: 0, 50, or 200 for both questions right."""
    pictures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for it in predictions:
        subtask, picture = _pair(it)
        pictures[subtask][picture].append(scores[it.id])
    rows = {
        subtask: [(50 * sum(right) + 100 * all(right), 1.0) for right in own.values()]
        for subtask, own in pictures.items()
    }
    parts = {"perception": PERCEPTION, "cognition": COGNITION}
    return {name: [rows[subtask] for subtask in own if subtask in rows] for name, own in parts.items()}


def _pair(prediction: Prediction) -> tuple[str, str]:
    meta = prediction.question.meta
    return meta["subtask"], meta["picture"]


def _label(prediction: Prediction) -> bool:
    return prediction.question.references[0] == "yes"
