"""POPE (https://github.com/RUCAIBox/POPE): is a thing in the picture that is not, or is it?

Files: `coco_pope_random.json`, `coco_pope_popular.json` and `coco_pope_adversarial.json` (JSONL), any of them; the last
word of a file's name is its split. Pictures `COCO_val2014_000000310196.jpg`, in the image folder or in `val2014` there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.metrics.yes_no import pope_answer, pope_scores
from paddle_llava.evaluation.prompts import short_answer
from paddle_llava.evaluation.records import Prediction, Question, Scores, Stratum
from paddle_llava.evaluation.tasks.files import Data, get, get_id, read_records, unique
from paddle_llava.evaluation.tasks.tables import mean


def read(data: Data) -> list[Question]:
    """The questions of all files; an id is `split/question_id`, for every split counts from 1. Raises `LlavaError`."""
    questions = []
    for path in data.files(".json", ".jsonl"):
        split = path.stem.rpartition("_")[2]
        for where, record in read_records(path):
            label = get(record, "label", str, where)
            if label not in ("yes", "no"):
                raise LlavaError(f"{where}: label must be yes or no, found {label[:40]!r}")
            picture = data.image(get(record, "image", str, where), path, "val2014")
            name = f"{split}/{get_id(record, 'question_id', where)}"
            prompt = short_answer(get(record, "text", str, where))
            questions.append((where, Question(name, prompt, (picture,), (label,), {"split": split})))
    return unique(questions)


def score(predictions: Sequence[Prediction]) -> Scores:
    """F1, accuracy, precision, recall and share of yes, in percent: of each split, and the mean over the splits.

    The mean F1 is the figure that LLaVA publishes. A failed question counts as a wrong answer.
    """
    splits = dict.fromkeys(it.question.meta["split"] for it in predictions)
    tables = {}
    for split in splits:
        own = [it for it in predictions if it.question.meta["split"] == split]
        labels = [_label(it) for it in own]
        figures = pope_scores([_said(it) for it in own], labels)
        tables[split] = {name: 100 * value for name, value in figures.items()}
    names = list(next(iter(tables.values()), {}))
    each = {it.id: float(pope_answer(_said(it)) == _label(it)) for it in predictions}
    figures = {name: mean(table[name] for table in tables.values()) for name in names}
    return Scores("f1", figures, each, tables, strata=_strata(predictions, len(splits)))


def _strata(predictions: Sequence[Prediction], splits: int) -> dict[str, list[Stratum]]:
    """What each question adds to its split's fractions; F1 is twice the hits by those said and those labelled yes."""
    strata: dict[str, list[Stratum]] = {}
    rows: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for it in predictions:
        said, label = pope_answer(_said(it)), _label(it)
        hit, share = said and label, 100 / splits
        fractions = {
            "accuracy": (said == label, 1),
            "precision": (hit, said),
            "recall": (hit, label),
            "f1": (2 * hit, said + label),
            "yes_share": (said, 1),
        }
        for name, (above, below) in fractions.items():
            rows[name, it.question.meta["split"]].append((share * above, below))
    for (name, _), stratum in rows.items():
        strata.setdefault(name, []).append(stratum)
    return strata


def _label(prediction: Prediction) -> bool:
    return prediction.question.references[0] == "yes"


def _said(prediction: Prediction) -> str:
    """The answer; of a failed question the wrong one, for the rule takes silence for a yes."""
    return ("no" if _label(prediction) else "yes") if prediction.error else prediction.answer
