"""The benchmarks, a module each: `read` makes questions of its published files, `score` figures of predictions.

Nothing heavy is imported here: the command line lists these names for its help.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from paddle_llava.evaluation.records import Prediction, Question, Scores
    from paddle_llava.evaluation.tasks.files import Data


class Task(Protocol):
    """What each module offers. Both raise `LlavaError`, `read` naming file and record."""

    def read(self, data: Data) -> list[Question]: ...
    def score(self, predictions: Sequence[Prediction]) -> Scores: ...


class Entry(NamedTuple):
    """A task's module, what it is, and what to give it with `--data`."""

    module: str
    title: str
    data: str


REFER = "refs(unc).p and instances.json, or refcoco_val.jsonl and the like"
TASKS = {
    "vqav2": Entry("vqav2", "VQAv2", "v2_OpenEnded_..._questions.json and v2_..._annotations.json"),
    "gqa": Entry("gqa", "GQA", "testdev_balanced_questions.json"),
    "textvqa": Entry("textvqa", "TextVQA", "TextVQA_0.5.1_val.json, and a file of OCR tokens if they are to be used"),
    "scienceqa": Entry("scienceqa", "ScienceQA-IMG", "problems.json and pid_splits.json"),
    "pope": Entry("pope", "POPE", "coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json"),
    "mme": Entry("mme", "MME", "the folder MME_Benchmark_release_version"),
    "mmbench": Entry("mmbench", "MMBench", "mmbench_dev_20230712.tsv"),
    "seed": Entry("seed", "SEED-Bench, its pictures", "SEED-Bench.json"),
    "coco-caption": Entry("coco_caption", "COCO captions", "captions_val2014.json, or Karpathy's dataset_coco.json"),
    "refcoco": Entry("refcoco", "RefCOCO", REFER),
    "refcoco+": Entry("refcoco", "RefCOCO+", REFER),
    "refcocog": Entry("refcoco", "RefCOCOg", REFER.replace("unc", "umd").replace("refcoco_", "refcocog_")),
    "street": Entry("street", "the demonstration's held-out pictures", "how many pictures (without: 1000)"),
    "custom": Entry("custom", "your own data", "training files, JSON or JSONL, whose answers are the references"),
}
ALIASES = {"caption": "coco-caption", "vqa": "vqav2", "grounding": "refcoco"}
"""Shorter names of the usual one of its kind."""


def load_task(name: str) -> Task:
    """The task of a name in `TASKS`."""
    return cast(Task, import_module(f"{__name__}.{TASKS[name].module}"))
