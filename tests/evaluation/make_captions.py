"""Writes fixtures/captions.json: made-up captions and what pycocoevalcap (with Java) says of them.

python tests/evaluation/make_captions.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("fixtures") / "captions.json"
IMAGES = 240

WHO = [
    "a man",
    "Two dogs",
    "the woman's cat",
    "A black-and-white cow",
    "some people",
    "a boy (left)",
    "an 8-year-old girl",
    "3 zebras",
    "A group of men",
    "Mr. Smith",
    "a “vintage” bus",
]
DOES = [
    "is riding",
    "isn't looking at",
    "sits next to",
    "can't reach",
    "are playing with",
    "holds",
    "stands by",
    "eats",
]
WHAT = [
    "a red t-shirt",
    "the dog's bone",
    'a sign that says "STOP"',
    "a hot-dog w/ mustard",
    "an old TV",
    "a laptop, a mouse and a cup",
    "1,000 sheep",
    "a pizza",
    "skateboards",
    "a bench",
]
WHERE = [
    "on the street",
    "at 10:30 a.m.",
    "in the U.S.",
    "near St. Louis",
    "in front of a café",
    "on the beach -- alone",
    "at the men's room",
    "by the water; it's raining",
    "in 50% shade",
]
ENDS = ["", ".", " .", "!", "...", "!!", "?", "\n", " \n"]


def invented(images: int, seed: int = 7) -> tuple[dict[str, str], dict[str, list[str]]]:
    """A caption and 1 to 5 references for each image, which have much in common."""
    rng = random.Random(seed)
    predictions, references = {}, {}
    for number in range(images):
        who, does, what, where = (rng.sample(part, 2) for part in (WHO, DOES, WHAT, WHERE))

        def sentence(parts: list[list[str]] = [who, does, what, where]) -> str:  # noqa: B006
            words = [part[rng.random() < 0.35] for part in parts]
            return " ".join(words[: rng.choice([2, 3, 4, 4])]) + rng.choice(ENDS)

        predictions[f"{number:04}"] = rng.choice(["", "."]) if number % 60 == 59 else sentence()
        references[f"{number:04}"] = [sentence() for _ in range(rng.randint(1, 5))]
    return predictions, references


def official(predictions: dict[str, str], references: dict[str, list[str]], *, with_meteor: bool) -> dict[str, Any]:
    """The figures and the words of pycocoevalcap, which needs Java for them."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    said = PTBTokenizer().tokenize({id: [{"caption": text}] for id, text in predictions.items()})
    true = PTBTokenizer().tokenize({id: [{"caption": text} for text in texts] for id, texts in references.items()})
    corpus, per_image = {}, {id: {} for id in predictions}
    bleus, bleu_rows = Bleu(4).compute_score(true, said, verbose=0)
    columns = {f"BLEU-{order}": (bleus[order - 1], bleu_rows[order - 1]) for order in (1, 2, 3, 4)}
    columns |= {"ROUGE-L": Rouge().compute_score(true, said), "CIDEr": Cider().compute_score(true, said)}
    if with_meteor:
        columns["METEOR"] = Meteor().compute_score(true, said)
    for name, (total, values) in columns.items():
        corpus[name] = float(total)
        for id, value in zip(true, values, strict=True):
            per_image[id][name] = float(value)
    words = {id: [*said[id], *true[id]] for id in predictions}
    return {"corpus": corpus, "per_image": per_image, "words": words}


def main() -> None:
    predictions, references = invented(IMAGES)
    figures = official(predictions, references, with_meteor=False)
    figures["corpus"] = {name: round(value, 12) for name, value in figures["corpus"].items()}
    names = list(figures["corpus"])
    figures["per_image"] = {id: [round(row[name], 10) for name in names] for id, row in figures["per_image"].items()}
    page = {"source": "pycocoevalcap 1.2, Java's PTBTokenizer", "names": names}
    page |= {"predictions": predictions, "references": references, **figures}
    lines = json.dumps(page, ensure_ascii=False, separators=(",", ":")).replace('],"', '],\n"')
    FILE.write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
