"""BLEU, ROUGE-L, CIDEr and METEOR of captions, as `pycocoevalcap` computes them for COCO.

BLEU: Papineni et al. 2002, clipped n-grams over the whole corpus, the reference nearest in length. ROUGE-L: Lin 2004,
beta 1.2. CIDEr: Vedantam et al. 2015, the clipped and length-penalised variant known as CIDEr-D, weights from the
references at hand (so a figure belongs to its set of pictures, and that of a single picture is 0).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paddle_llava.errors import LlavaError
from paddle_llava.evaluation.metrics.meteor import meteor, meteor_jar
from paddle_llava.evaluation.metrics.ptb import java_tokenizer, java_words, words

ORDERS = 4
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0
_SMALL, _TINY = 1e-9, 1e-15  # as in the reference: they show in the figures of single captions

Ngrams = Counter[tuple[str, ...]]


@dataclass(frozen=True)
class CaptionScores:
    """`corpus` has BLEU-1 ... BLEU-4, ROUGE-L, CIDEr, and METEOR when its Java is there; `per_image` the same of each.

    BLEU, ROUGE-L and METEOR are 0 to 1, CIDEr 0 to 10. `tokenizer` says what made the words: `java` or `own`.
    """

    corpus: dict[str, float]
    per_image: dict[str, dict[str, float]]
    tokenizer: str


def caption_scores(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]], *, java: bool | None = None
) -> CaptionScores:
    """Score a caption for each image against its references.

    `java` chooses whether Stanford's tokenizer and METEOR run (default: where they are installed). Raises `LlavaError`
    when the images of the two are not the same, or one has no reference.
    """
    _check(predictions, references)
    java = java_tokenizer() is not None if java is None else java
    ids = list(predictions)
    texts = [text for id in ids for text in (predictions[id], *references[id])]
    lines = iter([" ".join(line) for line in (java_words(texts) if java else map(words, texts))])
    candidates, truths = [], []
    for id in ids:
        candidates.append(next(lines))
        truths.append([next(lines) for _ in references[id]])

    corpus, columns = bleu(candidates, truths)
    figures = {"ROUGE-L": rouge_l(candidates, truths), "CIDEr": cider(candidates, truths)}
    columns |= figures
    corpus |= {name: sum(values) / len(values) for name, values in figures.items()}
    if java and meteor_jar():
        corpus["METEOR"], columns["METEOR"] = meteor(candidates, truths)
    per_image = {id: {name: values[row] for name, values in columns.items()} for row, id in enumerate(ids)}
    return CaptionScores(corpus, per_image, "java" if java else "own")


def _check(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    if not predictions:
        raise LlavaError("there are no captions to score")
    if odd := predictions.keys() ^ references.keys():
        lack = "caption" if min(odd) in references else "reference"
        raise LlavaError(f"image {min(odd)} has no {lack} ({len(odd)} such images): score those that have both")
    if bare := [id for id in predictions if not references[id]]:
        raise LlavaError(f"image {bare[0]} has an empty list of references")


def bleu(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """BLEU-1 ... BLEU-4 of the corpus, and of each caption. All texts are words joined by spaces."""
    names = [f"BLEU-{order}" for order in range(1, ORDERS + 1)]
    columns: dict[str, list[float]] = {name: [] for name in names}
    all_right, all_made = [0] * ORDERS, [0] * ORDERS
    all_length = all_nearest = 0
    for candidate, truths in zip(candidates, references, strict=True):
        most: Ngrams = Counter()
        for truth in truths:
            most |= _ngrams(truth)
        length = len(candidate.split())
        nearest = min((abs(len(truth.split()) - length), len(truth.split())) for truth in truths)[1]
        right = [0] * ORDERS
        for ngram, count in (_ngrams(candidate) & most).items():
            right[len(ngram) - 1] += count
        made = [max(0, length - order) for order in range(ORDERS)]
        for name, value in zip(names, _bleu(right, made, length, nearest), strict=True):
            columns[name].append(value)
        all_right = [sum(pair) for pair in zip(all_right, right, strict=True)]
        all_made = [sum(pair) for pair in zip(all_made, made, strict=True)]
        all_length, all_nearest = all_length + length, all_nearest + nearest
    return dict(zip(names, _bleu(all_right, all_made, all_length, all_nearest), strict=True)), columns


def _bleu(right: Sequence[int], made: Sequence[int], length: int, nearest: int) -> list[float]:
    ratio = (length + _TINY) / (nearest + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, values = 1.0, []
    for order in range(ORDERS):
        product *= (right[order] + _TINY) / (made[order] + _SMALL)
        values.append(product ** (1 / (order + 1)) * penalty)
    return values


def _ngrams(text: str) -> Ngrams:
    tokens = text.split()
    return Counter(
        tuple(tokens[at : at + order]) for order in range(1, ORDERS + 1) for at in range(len(tokens) - order + 1)
    )


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """ROUGE-L of each caption: of its best precision and its best recall, which may be from different references."""
    return [_rouge_l(candidate, truths) for candidate, truths in zip(candidates, references, strict=True)]


def _rouge_l(candidate: str, truths: Sequence[str]) -> float:
    tokens = candidate.split(" ")  # as in the reference, an empty caption is one empty word
    split = [truth.split(" ") for truth in truths]
    shared = [_longest_common(tokens, truth) for truth in split]
    precision = max(shared) / len(tokens)
    recall = max(common / len(truth) for common, truth in zip(shared, split, strict=True))
    if not precision:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    row = [0] * (len(other) + 1)
    for word in one:
        before = row
        row = [0]
        for place, each in enumerate(other):
            row.append(before[place] + 1 if word == each else max(row[-1], before[place + 1]))
    return row[-1]


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr of each caption, 0 to 10; rarer n-grams, by how many images' references hold them, count more."""
    found: Ngrams = Counter()
    for truths in references:
        found.update({ngram for truth in truths for ngram in _ngrams(truth)})
    images = math.log(len(references))

    def weighed(text: str) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDERS)]
        counts = _ngrams(text)
        for ngram, count in counts.items():
            vectors[len(ngram) - 1][ngram] = count * (images - math.log(max(1, found[ngram])))
        norms = [math.sqrt(sum(value * value for value in vector.values())) for vector in vectors]
        return vectors, norms, sum(count for ngram, count in counts.items() if len(ngram) == 2)

    scores = []
    for candidate, truths in zip(candidates, references, strict=True):
        vectors, norms, length = weighed(candidate)
        total = 0.0
        for truth in truths:
            other_vectors, other_norms, other_length = weighed(truth)
            # The reference takes the number of bigrams for the length.
            penalty = math.exp(-((length - other_length) ** 2) / (2 * CIDER_SIGMA**2))
            for vector, other, norm, other_norm in zip(vectors, other_vectors, norms, other_norms, strict=True):
                dot = sum(
                    min(weight, other[ngram]) * other[ngram] for ngram, weight in vector.items() if ngram in other
                )
                total += penalty * (dot / (norm * other_norm) if norm and other_norm else dot)
        scores.append(10 * total / ORDERS / len(truths))
    return scores
