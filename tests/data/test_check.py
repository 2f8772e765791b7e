from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from paddle_llava.cli import main
from paddle_llava.data.check import check, run_check, write_good
from paddle_llava.data.encoding import encode_sample
from paddle_llava.data.records import FileChanged, RecordFile
from paddle_llava.data.report import Report
from paddle_llava.data.show import decoded_pieces, print_sample
from paddle_llava.errors import LlavaError
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.templates import TEMPLATES, Template

VICUNA = TEMPLATES["vicuna_v1"]
FEATURES = 64
Write = Callable[..., Path]


def in_vicuna(*files: RecordFile) -> list[tuple[RecordFile, Template]]:
    return [(file, VICUNA) for file in files]


def opened(*paths: Path) -> list[tuple[RecordFile, Template]]:
    return in_vicuna(*map(RecordFile, paths))


@pytest.fixture
def records(pictures: Path) -> list[Any]:
    return [
        {"image": str(pictures / "wide.png"), "conversations": [["<image>\nWhat is it?", "A red bus"]]},
        {"image": str(pictures / "broken.jpg"), "conversations": [["<image>\nWhat is it?", "A bus"]]},
        {"conversations": [["What is it?", "A lake " * 40]]},
        {"conversations": [["<image>", "A bus"]]},
        {"image": str(pictures / "none.jpg"), "conversations": [["<image>", "A bus"]]},
        {"conversations": [["What [red] </s>\x1b is it? 图", "A [bold]tree[/bold]</s>"]]},
        {"conversations": [["long " * 400, "A bus"]]},
    ]


BAD = {
    2: ("image", "broken.jpg' is damaged"),
    4: ("record", "1 <image> for 0 pictures"),
    5: ("image", "none.jpg': no such file"),
    7: ("record", "raise max_length"),
}


@pytest.mark.parametrize("workers", [0, 2])
def test_reports_each_bad_record_and_sums_the_good(
    write: Write, records: list[Any], v15: LlavaProcessor, workers: int
) -> None:
    file = RecordFile(write(records))
    limit = 180
    told = []
    report = check(in_vicuna(file), v15, limit, workers=workers, progress=lambda done, of: told.append((done, of)))
    assert {problem.record: problem.kind for problem in report.problems} == {n: kind for n, (kind, _) in BAD.items()}
    for problem in report.problems:
        assert problem.file == str(file.path)
        assert BAD[problem.record][1] in problem.reason
        assert "record" not in problem.reason.partition("picture")[0]  # the number stands beside it
    good = [encode_sample(file[n], v15, VICUNA, limit) for n in range(len(file)) if n + 1 not in BAD]
    assert report.records == 7
    assert report.lengths.tolist() == [sample.full_length for sample in good]
    assert report.tokens == sum(map(len, good))
    assert (report.images, report.image_tokens, report.image_failures) == (1, FEATURES, 2)
    assert report.target_tokens == sum(sample.num_targets for sample in good)
    assert report.truncated == sum(sample.truncated for sample in good) == 1
    assert told[-1] == (7, 7)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_written_over_meanwhile_is_no_fault_of_its_records(
    write: Write, v15: LlavaProcessor, workers: int
) -> None:
    path = write([{"conversations": [["Q", "A"]]}] * 400)
    file = RecordFile(path)

    def write_over(done: int, _: int) -> None:
        if done == 32:
            path.write_text("[]")

    with pytest.raises(FileChanged, match=r"train.json: the file has changed since it was opened; start again"):
        check(in_vicuna(file), v15, 2048, workers=workers, progress=write_over)


def test_sums_over_many_files(write: Write, v15: LlavaProcessor) -> None:
    record = {"conversations": [["Q", "A"]]}
    files = [RecordFile(write([record] * 100)), RecordFile(write([record] * 5, "more.jsonl"))]
    report = check(in_vicuna(*files), v15, 2048)
    assert len(report.lengths) == report.records == 105
    assert report.files == [str(file.path) for file in files]
    assert not report.problems


def test_histogram_covers_every_length() -> None:
    for lengths in ([1], [1, 1000], [5, 17, 300, 2047], list(range(1, 200)), [123456, 7]):
        report = Report([], 100, lengths=np.array(lengths))
        bars = report.histogram()
        assert sum(count for _, _, count in bars) == len(lengths)
        assert len(bars) <= 12
        for low, high, count in bars:
            assert count == sum(low <= length <= high for length in lengths)
        assert bars[0][0] == 1
        assert all(left[1] + 1 == right[0] for left, right in pairwise(bars))
    assert Report([], 100).histogram() == []


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_fix_keeps_the_bytes_of_good_records(write: Write, records: list[Any], v15: LlavaProcessor, name: str) -> None:
    path = write(records, name)
    if name == "train.json":
        path.write_text(json.dumps(records, indent=3).replace('"image":', '"image" : '))
    out = path.with_name(f"fixed-{name}")
    assert run_check(opened(path), v15, 180, fix=out) == 1
    file, fixed = RecordFile(path), RecordFile(out)
    assert fixed.is_jsonl == file.is_jsonl
    kept = [file.raw(n) for n in range(len(file)) if n + 1 not in BAD]
    assert [fixed.raw(n) for n in range(len(fixed))] == kept
    assert run_check(opened(out), v15, 180) == 0
    if name == "train.json":
        assert json.loads(out.read_text()) == [record for n, record in enumerate(records, 1) if n not in BAD]


def test_fix_joins_files_and_says_where_paths_begin(
    write: Write, v15: LlavaProcessor, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(pictures / "wide.png", tmp_path)
    paths = [write([{"image": "wide.png", "conversations": [["Q", name]]}], name) for name in ("a.json", "b.jsonl")]
    (tmp_path / "other").mkdir()
    assert run_check(opened(*paths), v15, 180, fix=tmp_path / "other" / "out.json") == 0
    written = json.loads((tmp_path / "other" / "out.json").read_text())
    assert [record["conversations"][0][1] for record in written] == ["a.json", "b.jsonl"]
    told = capsys.readouterr().err
    assert "2 good records written to" in told
    assert f"relative paths of its pictures begin in {tmp_path}: give that as image_folder" in told


@pytest.mark.parametrize("image", [{}, {"image": "pictures/wide.png"}])
def test_fix_says_nothing_of_paths_that_are_found(
    write: Write,
    v15: LlavaProcessor,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    image: dict[str, str],
) -> None:
    """Such as those that begin in the working directory; the file that is written finds them as the first did."""
    (tmp_path / "pictures").symlink_to(pictures)
    for folder in ("data", "other"):
        (tmp_path / folder).mkdir()
    path, out = write([{**image, "conversations": [["Q", "A"]]}], "data/train.json"), tmp_path / "other" / "out.json"
    monkeypatch.chdir(tmp_path)
    assert run_check(opened(path), v15, 180, fix=out) == 0
    assert "relative paths" not in capsys.readouterr().err
    assert run_check(opened(out), v15, 180) == 0


def test_fix_refuses_to_lose_anything(write: Write, v15: LlavaProcessor, tmp_path: Path) -> None:
    path = write([{"conversations": [["Q", "A"]]}])
    before = path.read_bytes()
    file = RecordFile(path)
    report = check(in_vicuna(file), v15, 180)
    with pytest.raises(LlavaError, match="the file that is checked"):
        write_good(in_vicuna(file), report, tmp_path / "." / path.name)
    with pytest.raises(LlavaError, match=r"cannot be written .No such file"):
        write_good(in_vicuna(file), report, tmp_path / "none" / "out.json")
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_prints_a_report_for_people(
    write: Write, records: list[Any], v15: LlavaProcessor, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(records)
    assert run_check(opened(path), v15, 180, show=2) == 1
    printed = capsys.readouterr()
    assert f"{path}: record 1: " in printed.out
    assert "USER: <image x64> \nWhat is it? ASSISTANT:[[ A red bus</s>]]" in printed.out
    assert "7 records, 1 pictures: 3 good, 4 bad" in printed.out
    assert "truncated at max_length 180: 1 (33.3%)" in printed.out
    for number, (_, reason) in BAD.items():
        assert any(f"record {number}: " in line and reason in line for line in printed.out.splitlines())
    assert "█" in printed.out
    assert printed.err == ""  # no progress bar where there is no terminal


def test_prints_json_for_programs(
    write: Write, records: list[Any], v15: LlavaProcessor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_check(opened(write(records)), v15, 180, show=1, as_json=True) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["records"], found["bad_records"], found["image_failures"], found["truncated"]) == (7, 4, 2, 1)
    assert [problem["record"] for problem in found["problems"]] == list(BAD)
    assert sum(bar["records"] for bar in found["histogram"]) == 3
    pieces = found["samples"][0]["pieces"]
    assert [piece["text"] for piece in pieces if piece["target"]] == [" A red bus</s>"]


def test_a_report_without_good_records(write: Write, v15: LlavaProcessor, capsys: pytest.CaptureFixture[str]) -> None:
    path = write([{}] * 30)
    for as_json in (False, True):
        assert run_check(opened(path), v15, 180, as_json=as_json, show=3) == 1
    assert "30 bad" in (printed := capsys.readouterr().out)
    assert "and 10 more; --json lists all" in printed


def test_a_file_that_is_no_list_raises(tmp_path: Path, v15: LlavaProcessor) -> None:
    (tmp_path / "a.json").write_text('[{"a": 1},\n{]')
    with pytest.raises(LlavaError, match=r"a.json: record 2 .line 2, column 2"):
        run_check(opened(tmp_path / "a.json"), v15, 180)


def test_pieces_are_the_prompt(write: Write, records: list[Any], v15: LlavaProcessor) -> None:
    """Their text, put together, is the prompt; special tokens of the user's are no others than spelled."""
    sample = encode_sample(RecordFile(write(records))[5], v15, VICUNA, 2048)
    pieces = decoded_pieces(sample, v15)
    prompt = f"<s> {VICUNA.system} USER: What [red] </s>\x1b is it? 图 ASSISTANT: A [bold]tree[/bold]</s></s>"
    assert "".join(piece.text for piece in pieces) == prompt
    assert [piece.text for piece in pieces if piece.target] == [" A [bold]tree[/bold]</s></s>"]


def test_targets_are_coloured_and_nothing_takes_over_the_terminal(
    write: Write, records: list[Any], v15: LlavaProcessor
) -> None:
    sample = encode_sample(RecordFile(write(records))[5], v15, VICUNA, 2048)
    console = Console(force_terminal=True, color_system="truecolor", width=80, record=True, file=StringIO())
    print_sample(sample, v15, console)
    text = console.export_text(styles=True)
    assert "\x1b[32m A [bold]tree[/bold]</s></s>" in text
    assert "What [red] </s>\\x1b is it? 图" in text


def test_a_configuration_is_checked_as_it_would_train(
    write: Write,
    pictures: Path,
    tmp_path: Path,
    demo_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each file with its own folder and template; what is given on the command line goes first."""
    (tmp_path / "files").mkdir()
    write([{"image": "wide.png", "conversations": [["<image>", "A red bus"]]}], "files/captions.json")
    write([{"conversations": [["What is it?", "A lake"]]}] * 2, "files/words.jsonl")
    entries = [
        {"data_files": "files/captions.json", "image_folder": str(pictures), "chat_template": "plain"},
        {"data_files": "files/*.jsonl", "weight": 3},
    ]
    settings = {"model_name_or_path": str(demo_checkpoint), "dataset": {"train": entries}, "output_dir": "out"}
    (tmp_path / "run.json").write_text(json.dumps(settings | {"max_length": 300, "conv_mode": "llava_v0"}))
    monkeypatch.chdir(tmp_path)
    command = ["data", "check", "run.json", "--workers=0", "--json", "--show=2"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["files"] == ["files/captions.json", "files/words.jsonl"]
    assert (report["records"], report["images"], report["max_length"]) == (3, 1, 300)
    caption, words = ("".join(piece["text"] for piece in sample["pieces"]) for sample in report["samples"])
    assert f"<image x{FEATURES}>" in caption
    assert caption.endswith("A red bus\n")
    assert words.endswith("###Human: What is it?###Assistant: A lake###")
    assert main([*command, "--max-length=200"]) == 0
    assert json.loads(capsys.readouterr().out)["max_length"] == 200
    assert main([*command, "--fix", "out.json"]) == 2
    assert "--fix out.json: one file cannot stand for those of run.json" in capsys.readouterr().err
