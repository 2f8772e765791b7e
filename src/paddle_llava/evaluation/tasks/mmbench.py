"""MMBench (https://github.com/open-compass/MMBench): one of up to four options, in every turned order of them.

File: `mmbench_dev_20230712.tsv` or a later one with answers; the pictures are in it, in base64, and are copied to the
cache of pictures. A file that lists the turned orders itself (indices from 1,000,000 on) is asked as it stands; for any
other they are made. In a file whose name holds `_cn` the instruction is the Chinese one.
"""

from __future__ import annotations

import base64
import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.metrics.choices import circular_accuracy, parse_choice, rotations
from paddle_llava.evaluation.prompts import LETTER, multiple_choice
from paddle_llava.evaluation.records import Prediction, Question, Scores
from paddle_llava.evaluation.tasks.files import Data, keep_picture, letter_place, unique
from paddle_llava.evaluation.tasks.tables import mean, percent_by

TURNED = 1_000_000
CHINESE = "请直接回答选项字母。"
NEEDED = {"index", "question", "A", "B", "answer", "image"}
LONGEST_INDEX = 12
MAX_CELL = 64 << 20


def read(data: Data) -> list[Question]:
    """Every round of every question, the rounds of each together; an id is `index/round`. Raises `LlavaError`."""
    return unique([pair for path in data.files(".tsv") for pair in _questions(path)])


def _questions(path: Path) -> list[tuple[str, Question]]:
    rows: dict[int, list[tuple[str, int, dict[str, str]]]] = defaultdict(list)
    pictures = dict[str, str]()  # by index, for rows that only point at another's
    for where, row in _rows(path):
        try:
            index = int(row["index"])
        except ValueError:
            raise LlavaError(f"{where}: index must be a whole number, found {row['index'][:40]!r}") from None
        row["image"] = pictures[str(index)] = _picture(row["image"], where, pictures)
        rows[index % TURNED].append((where, index, row))
    listed = any(index >= TURNED for several in rows.values() for _, index, _ in several)
    instruction = CHINESE if "_cn" in path.stem.lower() else LETTER
    questions = []
    for number, several in sorted(rows.items()):
        if not listed and len(several) > 1:
            raise LlavaError(f"{several[1][0]}: the index {number} is that of {several[0][0]} already")
        rounds = []
        for where, index, row in sorted(several, key=lambda it: it[1]):
            options = [row[letter] for letter in "ABCD" if not _is_empty(row.get(letter))]
            answer = row["answer"]
            letter_place(answer, len(options), where)
            turned = [(options, answer)] if listed else rotations(options, answer)
            rounds += [(where, index // TURNED, row, *turn) for turn in turned]
        for place, (where, turn, row, options, answer) in enumerate(rounds):
            context = "" if _is_empty(row.get("hint")) else row["hint"]
            meta: dict[str, Any] = {"options": list(options), "question": str(number), "rounds": len(rounds)}
            meta |= {key: row[key] for key in ("category", "l2-category") if not _is_empty(row.get(key))}
            prompt = multiple_choice(row["question"], options, context, instruction)
            name = f"{number}/{turn if listed else place}"
            questions.append((where, Question(name, prompt, (row["image"],), (answer,), meta)))
    return questions


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    csv.field_size_limit(MAX_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            missing = NEEDED - set(reader.fieldnames or ())
            if missing:
                raise LlavaError(f"{path}: there is no column {min(missing)}, as MMBench's files with answers have it")
            for number, row in enumerate(reader, 1):
                where = f"{path}: record {number} (line {reader.line_num})"
                if None in row or None in row.values():
                    raise LlavaError(f"{where}: it has not as many cells as there are columns")
                yield where, row
    except OSError as error:
        raise LlavaError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise LlavaError(f"{path}: not a table of tab-separated UTF-8 text ({error})") from None


def _is_empty(cell: str | None) -> bool:
    return cell is None or cell.strip().lower() in ("", "nan", "none")


def _picture(cell: str, where: str, pictures: dict[str, str]) -> str:
    """The path of a picture's copy; a cell holds it, or names another row by its index."""
    if len(cell) <= LONGEST_INDEX and cell in pictures:
        return pictures[cell]
    try:
        content = base64.b64decode("".join(cell.split()), validate=True)
    except ValueError:
        content = b""
    if not content:
        raise LlavaError(f"{where}: image is neither a picture in base64 nor the index of an earlier record")
    return keep_picture(content, where)


def score(predictions: Sequence[Prediction]) -> Scores:
    """`circular`, the share of questions answered rightly in every round, and `vanilla`, in the first; percent.

    Answers are read as MMBench does it before it asks ChatGPT: the only letter named, or the only option's text. A
    failed question counts as wrong; one of which `--limit` left rounds out is not counted.
    """
    asked: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        asked[prediction.question.meta["question"]].append(prediction)
    whole = {name: several for name, several in asked.items() if len(several) == several[0].question.meta["rounds"]}
    rounds = {name: [_is_right(it) for it in sorted(several, key=_round)] for name, several in whole.items()}
    figures = {name: 100 * value for name, value in circular_accuracy(rounds).items()}
    figures["rounds"] = 100 * mean(mean(right) for right in rounds.values())
    firsts = [min(several, key=_round) for several in whole.values()]
    each = {it.id: float(all(rounds[it.question.meta["question"]])) for it in firsts}
    groups = {
        title: percent_by(firsts, each, key) for key, title in (("category", "Category"), ("l2-category", "Ability"))
    }
    strata = {
        "vanilla": [[(100.0 * right[0], 1.0) for right in rounds.values()]],
        "rounds": [[(100 * mean(right), 1.0) for right in rounds.values()]],
    }
    left = len(asked) - len(whole)
    notes = (f"{left} questions were not asked in all their rounds and are not counted",) if left else ()
    return Scores("circular", figures, each, groups, notes, strata, published_as=_published_as(predictions))


def _published_as(predictions: Sequence[Prediction]) -> str | None:
    """Which of the published scores is of these questions: the Chinese ones have one of their own, a mixture none."""
    chinese = [it.question.prompt.endswith(CHINESE) for it in predictions]
    return "mmbench_cn" if all(chinese) else "mixed" if any(chinese) else None


def _is_right(prediction: Prediction) -> bool:
    question = prediction.question
    return not prediction.error and parse_choice(prediction.answer, question.meta["options"]) == question.references[0]


def _round(prediction: Prediction) -> int:
    return int(prediction.id.rpartition("/")[2])
