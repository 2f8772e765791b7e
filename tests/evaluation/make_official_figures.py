"""Scores the answers in fixtures/vqa.json, answers.json and grounding.json anew with the benchmarks' own programs.

    git clone https://github.com/GT-Vision-Lab/VQA
    git clone https://github.com/haotian-liu/LLaVA
    python tests/evaluation/make_official_figures.py VQA LLaVA

It needs pycocotools and tqdm. MME's own program comes with its pictures only: its figures stay as they are.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

FIXTURES = Path(__file__).with_name("fixtures")


def imported(path: Path, *, python2: bool = False) -> ModuleType:
    source = path.read_text(encoding="utf-8")
    if python2:
        source = re.sub(r'print ("[^"]*")', r"print(\1)", source)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(path.stem, None))
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


def vqa(folder: Path, cases: list[dict[str, Any]]) -> None:
    """`vqa` and `normalised` of each case."""
    module = imported(folder / "PythonEvaluationTools/vqaEvaluation/vqaEval.py", python2=True)
    said, true = {}, {}
    for number, case in enumerate(cases):
        said[number] = {"answer": case["answer"]}
        answers = [{"answer": text, "answer_id": place} for place, text in enumerate(case["annotators"])]
        true[number] = {"answers": answers, "question_type": "x", "answer_type": "x"}
    everything = SimpleNamespace(qa=true, getQuesIds=lambda: list(true))
    program = module.VQAEval(everything, SimpleNamespace(qa=said), n=12)
    with contextlib.redirect_stdout(io.StringIO()):
        program.evaluate()
    for number, case in enumerate(cases):
        case["vqa"] = round(program.evalQA[number] / 100, 10)
        text = case["answer"].replace("\n", " ").replace("\t", " ").strip()
        case["normalised"] = program.processDigitArticle(program.processPunctuation(text))


def textvqa(folder: Path, cases: list[dict[str, Any]]) -> None:
    """`textvqa` and `textvqa_normalised` of each case."""
    program = imported(folder / "llava/eval/m4c_evaluator.py").TextVQAAccuracyEvaluator()
    for case in cases:
        case["textvqa_normalised"] = program.answer_processor(case["answer"])
        with contextlib.redirect_stderr(io.StringIO()):
            score = program.eval_pred_list([{"pred_answer": case["answer"], "gt_answers": case["annotators"]}])
        case["textvqa"] = round(score, 10)


def pope(folder: Path, groups: list[dict[str, Any]]) -> None:
    """The figures of each group, which the program prints."""
    module = imported(folder / "llava/eval/eval_pope.py")
    names = {
        "accuracy": "Accuracy",
        "precision": "Precision",
        "recall": "Recall",
        "f1": "F1 score",
        "yes_share": "Yes ratio",
    }
    for group in groups:
        answers = [{"text": text} for text in group["answers"]]
        labels = "".join(json.dumps({"label": "yes" if label else "no"}) + "\n" for label in group["labels"])
        printed = io.StringIO()
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file, contextlib.redirect_stdout(printed):
            file.write(labels)
            file.flush()
            module.eval_pope(answers, file.name)
        group["read"] = [answer["text"] == "yes" for answer in answers]
        for name, told in names.items():
            group[name] = round(float(re.search(rf"{told}: (\S+)", printed.getvalue())[1]), 12)


def science_qa(folder: Path, cases: list[list[Any]]) -> None:
    """The place of the option that an answer names, -1 for none."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        problems = {str(n): {"choices": ["x"] * options, "answer": 0} for n, (_, options, _) in enumerate(cases)}
        (base / "problems.json").write_text(json.dumps(problems))
        (base / "pid_splits.json").write_text(json.dumps({"test": list(problems)}))
        said = [{"question_id": str(n), "text": text, "prompt": "<image>"} for n, (text, *_) in enumerate(cases)]
        (base / "said.jsonl").write_text("".join(json.dumps(it) + "\n" for it in said))
        program = [sys.executable, folder / "llava/eval/eval_science_qa.py", "--base-dir", base]
        files = ["--result-file", base / "said.jsonl", "--output-file", base / "a.json", "--output-result"]
        subprocess.run([*program, *files, base / "b.json"], check=True, stdout=subprocess.DEVNULL)
        results = json.loads((base / "b.json").read_text())["results"]
    for number, case in enumerate(cases):
        case[2] = results[str(number)]


def grounding(cases: list[list[Any]]) -> None:
    """The IoU of the box in an answer, in a padded square, with the true one in pixels; 0 without one."""
    from pycocotools import mask

    for case in cases:
        text, (x1, y1, x2, y2), width, height, _ = case
        numbers = [float(it) for it in re.findall(r"\d*\.\d+|\d+", text)]
        if len(numbers) != 4:
            case[4] = 0.0
            continue
        left, top, right, bottom = numbers
        side = max(width, height)
        across, down = (side - width) // 2, (side - height) // 2
        said = [left * side - across, top * side - down, (right - left) * side, (bottom - top) * side]
        case[4] = round(float(mask.iou([said], [[x1, y1, x2 - x1, y2 - y1]], [0])[0, 0]), 10)


def main() -> None:
    vqa_folder, llava_folder = map(Path, sys.argv[1:])
    files = {name: json.loads((FIXTURES / f"{name}.json").read_text()) for name in ("vqa", "answers", "grounding")}
    vqa(vqa_folder, files["vqa"]["cases"])
    textvqa(llava_folder, files["vqa"]["cases"])
    pope(llava_folder, files["answers"]["pope"])
    science_qa(llava_folder, files["answers"]["science_qa"])
    grounding(files["grounding"]["cases"])
    for name, content in files.items():
        lines = json.dumps(content, ensure_ascii=False).replace("}, {", "},\n{").replace("], [", "],\n[")
        (FIXTURES / f"{name}.json").write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
