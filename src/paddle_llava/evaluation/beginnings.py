"""What the questions of a batch begin with alike is run once for all of them: the system's text, and their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Part(NamedTuple):
    """Ids of a question, one image token a picture, and those pictures."""

    ids: tuple[int, ...]
    images: tuple[str, ...]

    def cut(self, start: int, end: int, image_token_id: int) -> Part:
        """The ids from `start` to `end`, and their pictures."""
        before, within = (ids.count(image_token_id) for ids in (self.ids[:start], self.ids[start:end]))
        return Part(self.ids[start:end], self.images[before : before + within])


class Run(NamedTuple):
    """One pass of the model: `parts[i]` goes on from row `rows[i]` of the run before."""

    rows: list[int]
    parts: list[Part]


def shared_runs(questions: Sequence[Part], image_token_id: int) -> list[Run]:
    """Up to three runs; the last one has a row for each question, in their order.

    The first is of what is alike up to the first picture, the second of what is alike up to the last; each is left out
    where it would have no fewer rows than the next.
    """
    places = [[place for place, token in enumerate(it.ids[:-1]) if token == image_token_id] for it in questions]
    ends = [
        [its[0] if its else 0 for its in places],
        [its[-1] + 1 if its else 0 for its in places],
        [len(it.ids) for it in questions],
    ]
    alike: list[Sequence[Part | int]] = [
        [it.cut(0, end, image_token_id) for it, end in zip(questions, level, strict=True)] for level in ends[:-1]
    ]
    alike.append(range(len(questions)))
    runs: list[Run] = []
    rows, starts = [0] * len(questions), [0] * len(questions)
    for level, level_ends in enumerate(ends):
        distinct = list(dict.fromkeys(alike[level]))
        last = level == len(ends) - 1
        if not last and (len(distinct) == len(set(alike[level + 1])) or level_ends == starts):
            continue
        firsts = [alike[level].index(it) for it in distinct]  # a question for each row
        parts = [questions[first].cut(starts[first], level_ends[first], image_token_id) for first in firsts]
        runs.append(Run([rows[first] for first in firsts], parts))
        rows, starts = [distinct.index(it) for it in alike[level]], level_ends
    return runs
