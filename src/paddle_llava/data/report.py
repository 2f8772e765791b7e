"""What `llava data check` has found: for a person as text, for a program as a dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any, Literal

import numpy as np

BARS = 12
BAR_WIDTH = 40
SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class Problem:
    """Why a record cannot be trained on; `kind` says whether one of its pictures is the reason."""

    file: str
    record: int
    kind: Literal["record", "image"]
    reason: str


@dataclass
class Report:
    """The state of training files.

    `lengths` int64 [good records] are whole lengths in tokens, image features included; `tokens`, `image_tokens` and
    `target_tokens` count what remains of the good records at `max_length`.
    """

    files: list[str]
    max_length: int
    records: int = 0
    images: int = 0
    tokens: int = 0
    image_tokens: int = 0
    target_tokens: int = 0
    truncated: int = 0
    problems: list[Problem] = field(default_factory=list)
    lengths: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def image_failures(self) -> int:
        return sum(problem.kind == "image" for problem in self.problems)

    def histogram(self) -> list[tuple[int, int, int]]:
        """(from, to, records) of at most a dozen equal ranges of length, `to` included."""
        if not len(self.lengths):
            return []
        longest = int(self.lengths.max())
        step = next(step for step in _round_numbers() if step * BARS >= longest)
        counts = np.bincount((self.lengths - 1) // step)
        return [(n * step + 1, (n + 1) * step, int(records)) for n, records in enumerate(counts)]

    def to_dict(self) -> dict[str, Any]:
        quantiles = {"min": 0, "median": 0.5, "p95": 0.95, "max": 1}
        good = len(self.lengths)
        return {
            "files": self.files,
            "records": self.records,
            "bad_records": len(self.problems),
            "images": self.images,
            "image_failures": self.image_failures,
            "max_length": self.max_length,
            "truncated": self.truncated,
            "truncated_share": _share(self.truncated, good),
            "tokens": self.tokens,
            "image_token_share": _share(self.image_tokens, self.tokens),
            "target_token_share": _share(self.target_tokens, self.tokens),
            "length": {name: int(np.quantile(self.lengths, q)) for name, q in quantiles.items()} if good else {},
            "histogram": [{"from": low, "to": high, "records": n} for low, high, n in self.histogram()],
            "problems": [asdict(problem) for problem in self.problems],
        }

    def lines(self) -> Iterator[str]:
        """The report, to print."""
        good = len(self.lengths)
        yield f"{self.records:,} records, {self.images:,} pictures: {good:,} good, {len(self.problems):,} bad"
        if good:
            yield f"  truncated at max_length {self.max_length:,}: {self.truncated:,} ({self.truncated / good:.1%})"
            yield (
                f"  {self.tokens:,} tokens, of which {_share(self.image_tokens, self.tokens):.1%} are pictures "
                f"and {_share(self.target_tokens, self.tokens):.1%} are learnt"
            )
            yield from self._bars()
        if self.problems:
            yield f"bad records ({self.image_failures:,} for their pictures):"
            yield from (f"  {_name(problem)}: {problem.reason}" for problem in self.problems[:SHOWN_PROBLEMS])
            if len(self.problems) > SHOWN_PROBLEMS:
                yield f"  ... and {len(self.problems) - SHOWN_PROBLEMS:,} more; --json lists all"

    def _bars(self) -> Iterator[str]:
        bars = self.histogram()
        most = max(records for _, _, records in bars)
        width = len(f"{bars[-1][1]:,}")
        yield "  length in tokens:"
        for low, high, records in bars:
            bar = "█" * -(-records * BAR_WIDTH // most)
            cut = "" if high <= self.max_length else "  beyond max_length"
            yield f"  {low:>{width},} - {high:>{width},}  {bar:<{BAR_WIDTH}} {records:,}{cut}".rstrip()


def _round_numbers() -> Iterator[int]:
    return (digit * 10**zeros for zeros in count() for digit in (1, 2, 5))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _name(problem: Problem) -> str:
    return f"{problem.file}: record {problem.record}"
