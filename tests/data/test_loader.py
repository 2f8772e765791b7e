"""Batches through epochs, windows, ranks, workers, bad samples and deaths."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from paddle_llava.data.batches import BatchSettings
from paddle_llava.data.loader import Batches, Position
from paddle_llava.data.mixture import Mixture
from paddle_llava.errors import LlavaError
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.templates import TEMPLATES

PLAIN = BatchSettings(batch_size=2, max_length=400, window=8)
GROUPED = replace(PLAIN, group_by_modality_length=True)
PACKED = replace(PLAIN, packing=True)
KINDS = {"plain": PLAIN, "grouped": GROUPED, "packed": PACKED}
RECORDS = 21


def record(number: int, pictures: Path) -> dict[str, Any]:
    """Every third one without a picture, and each of another length."""
    answer = f"Number {number}" + " on the street" * (number * 7 % 11)
    name = ("wide.png", "tall.jpg", "square.png")[number % 3]
    if number % 3 == 0:
        return {"conversations": [["What is it?", answer]]}
    return {"image": str(pictures / name), "conversations": [["<image>\nWhat is it?", answer]]}


@pytest.fixture
def mixture(write: Callable[..., Path], pictures: Path) -> Mixture:
    path = write([record(number, pictures) for number in range(RECORDS)])
    return Mixture.from_entries([{"data_files": str(path)}], TEMPLATES["vicuna_v1"])


def with_bad(write: Callable[..., Path], pictures: Path, bad: dict[int, Any]) -> Mixture:
    path = write([bad.get(number, record(number, pictures)) for number in range(RECORDS)])
    return Mixture.from_entries([{"data_files": str(path)}], TEMPLATES["vicuna_v1"])


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(
        np.array_equal(left[key], right[key]) for key in left if key != "records"
    )


def assert_same(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one["records"] == other["records"]
        assert same(one, other)


def names(batches: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> list[str]:
    return [name for batch in batches for row in batch["records"] for name in row]


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_is_every_sample_once(mixture: Mixture, v15: LlavaProcessor, kind: str) -> None:
    batches = list(Batches(mixture, v15, KINDS[kind], epochs=2))
    for epoch in (0, 1):
        own = [batch for batch in batches if batch["epoch"] == epoch]
        assert len(set(names(own))) == len(names(own)) == RECORDS
        assert all(batch["input_ids"].shape[0] <= 2 and batch["input_ids"].shape[1] <= 400 for batch in own)
    assert names(batches)[:RECORDS] != names(batches)[RECORDS:]
    assert not any(batch["skipped"] for batch in batches)


@pytest.mark.parametrize("kind", KINDS)
def test_every_state_continues_the_unbroken_run(mixture: Mixture, v15: LlavaProcessor, kind: str) -> None:
    whole = list(Batches(mixture, v15, KINDS[kind], epochs=2))
    for done, batch in enumerate(whole, 1):
        assert_same(list(Batches(mixture, v15, KINDS[kind], epochs=2, start=list(batch["state"]))), whole[done:])
    assert whole[-1]["state"] == Position(2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_batches_equally(mixture: Mixture, v15: LlavaProcessor, kind: str, world_size: int) -> None:
    whole = list(Batches(mixture, v15, KINDS[kind], epochs=2))
    ranks = [
        list(Batches(mixture, v15, KINDS[kind], epochs=2, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    turns = [batch for step in zip(*ranks, strict=True) for batch in step]
    kept = []
    for epoch in (0, 1):
        own = [batch for batch in whole if batch["epoch"] == epoch]
        kept += own[: len(own) // world_size * world_size]
    assert [batch["records"] for batch in turns] == [batch["records"] for batch in kept]
    for step in zip(*ranks, strict=True):  # one state for all, from which a run with fewer ranks goes on, too
        assert len({batch["state"] for batch in step}) == 1
    first = ranks[0][0]
    rest = list(Batches(mixture, v15, KINDS[kind], epochs=1, start=first["state"]))
    assert names(rest) == names([batch for batch in whole if batch["epoch"] == 0][world_size:])


def test_an_epoch_ends_with_the_last_batch_that_all_ranks_have(mixture: Mixture, v15: LlavaProcessor) -> None:
    """Eleven batches, of which two ranks take ten."""
    for world_size, last in ((1, [10, 21]), (2, [4, 9])):
        batches = Batches(mixture, v15, PLAIN, epochs=2, world_size=world_size)
        assert [number for number, batch in enumerate(batches) if batch["ends_epoch"]] == last


def test_the_number_of_workers_changes_nothing(mixture: Mixture, v16: LlavaProcessor) -> None:
    inline = list(Batches(mixture, v16, PACKED, epochs=2))
    assert_same(list(Batches(mixture, v16, PACKED, epochs=2, workers=2)), inline)
    start = inline[3]["state"]
    assert_same(list(Batches(mixture, v16, PACKED, epochs=2, workers=1, start=start)), inline[4:])
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("kind", ["plain", "grouped"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
@pytest.mark.parametrize("world_size", [1, 2])
def test_length_is_known_up_front(
    mixture: Mixture, v15: LlavaProcessor, kind: str, batch_size: int, world_size: int
) -> None:
    settings = replace(KINDS[kind], batch_size=batch_size)
    batches = Batches(mixture, v15, settings, epochs=1, world_size=world_size)
    assert batches.len_estimate() == len(list(batches))


def test_length_with_packing_is_estimated(mixture: Mixture, v15: LlavaProcessor) -> None:
    one_window = Batches(mixture, v15, replace(PACKED, window=100))
    assert one_window.len_estimate() == len(list(one_window))
    windows = Batches(mixture, v15, PACKED)
    assert abs(windows.len_estimate() - len(list(windows))) <= 2


def test_modalities_keep_apart_in_batches(mixture: Mixture, v15: LlavaProcessor) -> None:
    settings = replace(GROUPED, window=100)
    batches = list(Batches(mixture, v15, settings))
    shown = [{int((row == v15.config.image_token_id).sum()) > 0 for row in batch["input_ids"]} for batch in batches]
    assert sum(len(kinds) == 2 for kinds in shown) <= 1
    assert Counter(frozenset(kinds) for kinds in shown)[frozenset({False})] >= 3


def test_without_shuffling_the_file_sets_the_order(mixture: Mixture, v15: LlavaProcessor) -> None:
    found = names(Batches(mixture, v15, replace(PLAIN, shuffle=False)))
    assert found == [f"{mixture.parts[0].files[0].path}: record {n + 1}" for n in range(RECORDS)]


def test_the_documents_file_trains(server: Any, pictures: Path, tmp_path: Path, v15: LlavaProcessor) -> None:
    """As it stands but for its pictures, which come from a server here."""
    text = (Path(__file__).parent / "fixtures" / "llava_train_examples.json").read_text()
    served = iter(["wide.png", "tall.jpg", "large.jpg"])
    text = re.sub(r"http://[^\"]+", lambda _: f"{server.address}/{next(served)}", text)
    (tmp_path / "train.json").write_text(text)
    mixture = Mixture.from_entries([{"data_files": str(tmp_path / "train.json")}], TEMPLATES["vicuna_v1"])
    settings = replace(PLAIN, batch_size=3, shuffle=False, max_length=2048)
    (batch,) = Batches(mixture, v15, settings)
    answers = [json.loads(text)[n]["conversations"][0][1] for n in range(3)]
    learnt = [v15.tokenizer.decode(row[row >= 0].tolist(), skip_special_tokens=False) for row in batch["labels"]]
    assert learnt == [f"{answer}</s>" for answer in answers]
    expected = v15.prepare_images([pictures / name for name in ("wide.png", "tall.jpg", "large.jpg")])
    assert batch["pixel_values"].tobytes() == expected["pixel_values"].tobytes()
    assert batch["input_ids"].shape[0] == 3


BAD = {
    4: {"image": "broken.jpg", "conversations": [["<image>Q", "A"]]},
    9: {"conversations": [["Q", ""]]},
    14: {"image": "none.jpg", "conversations": [["<image>Q", "A"]]},
}
REASONS = {5: "no such file", 10: "no answer to learn from", 15: "no such file"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", ["v15", "v16"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_bad_samples_are_skipped_and_reported(
    request: pytest.FixtureRequest,
    write: Callable[..., Path],
    pictures: Path,
    kind: str,
    version: str,
    world_size: int,
) -> None:
    mixture, processor = with_bad(write, pictures, BAD), request.getfixturevalue(version)
    settings = replace(KINDS[kind], on_bad_sample="skip", max_length=800)
    ranks = [
        list(Batches(mixture, processor, settings, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    reported = [reason for rank in ranks for batch in rank for reason in batch["skipped"]]
    if world_size == 1:
        good = {mixture.parts[0].files[0].name(n) for n in range(RECORDS) if n not in BAD}
        assert set(names(ranks[0])) == good
        assert len(names(ranks[0])) <= len(good) + settings.batch_size  # where a batch had to be replaced
        assert len(reported) == len(BAD)
    for reason in reported:
        number = int(reason.split("record ")[1].split(":")[0])
        assert REASONS[number] in reason


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_sample_stops_unless_skipped(
    write: Callable[..., Path], pictures: Path, v15: LlavaProcessor, kind: str
) -> None:
    for number, bad in BAD.items():
        batches = iter(Batches(with_bad(write, pictures, {number: bad}), v15, KINDS[kind]))
        with pytest.raises(LlavaError, match=rf"train.json: record {number + 1}: .*{REASONS[number + 1]}"):
            list(batches)


def test_an_error_comes_where_it_would_without_workers(
    write: Callable[..., Path], pictures: Path, v15: LlavaProcessor
) -> None:
    mixture = with_bad(write, pictures, {14: {"conversations": []}})
    before = []
    for workers in (0, 1):
        seen = []
        with pytest.raises(LlavaError, match="record 15: conversations"):
            seen.extend(batch["records"] for batch in Batches(mixture, v15, PACKED, workers=workers))
        before.append(seen)
    assert before[0] == before[1]


def test_a_batch_without_any_good_sample_is_replaced(
    write: Callable[..., Path], pictures: Path, v15: LlavaProcessor
) -> None:
    """Every rank makes as many steps, whatever its pictures."""
    mixture = with_bad(write, pictures, BAD)
    settings = replace(PLAIN, batch_size=1, on_bad_sample="skip")
    batches = list(Batches(mixture, v15, settings))
    assert len(batches) == RECORDS == Batches(mixture, v15, settings).len_estimate()
    assert sum(bool(batch["skipped"]) for batch in batches) == len(BAD)
    assert all(batch["num_targets"] for batch in batches)
    assert_same(batches, list(Batches(mixture, v15, settings)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_window_without_any_good_sample_is_left_out(
    write: Callable[..., Path], pictures: Path, v15: LlavaProcessor, kind: str, world_size: int
) -> None:
    """Its samples, the last five of 21, are reported, and all ranks make as many batches."""
    mixture = with_bad(write, pictures, dict.fromkeys(range(16, RECORDS), BAD[4]))
    settings = replace(KINDS[kind], shuffle=False, on_bad_sample="skip")
    good, ranks = {mixture.parts[0].files[0].name(n) for n in range(16)}, []
    for rank in range(world_size):
        batches = Batches(mixture, v15, settings, epochs=None, rank=rank, world_size=world_size)
        ranks.append(list(islice(batches, 12)))
    assert all(set(names(rank)) <= good for rank in ranks)
    assert [[batch["state"] for batch in rank] for rank in ranks] == [[b["state"] for b in ranks[0]]] * world_size
    assert ranks[0][-1]["epoch"] > 0
    reported = [reason for rank in ranks for batch in rank for reason in batch["skipped"]]
    assert Counter(reported).most_common(1)[0][1] == ranks[0][-1]["epoch"]
    assert len(set(reported)) == RECORDS - 16


def test_data_without_any_good_sample_is_refused(
    write: Callable[..., Path], pictures: Path, v15: LlavaProcessor
) -> None:
    for settings, bad in ((PLAIN, BAD[4]), (PACKED, BAD[9])):
        mixture = with_bad(write, pictures, dict.fromkeys(range(RECORDS), bad))
        with pytest.raises(LlavaError, match=r"batch.*; .*train.json: record \d+"):
            list(Batches(mixture, v15, replace(settings, on_bad_sample="skip"), epochs=None))


def test_fewer_batches_than_ranks_are_refused(mixture: Mixture, v15: LlavaProcessor) -> None:
    with pytest.raises(LlavaError, match="no batch for each of 30 processes"):
        next(iter(Batches(mixture, v15, PLAIN, epochs=None, world_size=30)))


def test_a_start_beyond_the_data_is_refused(mixture: Mixture, v15: LlavaProcessor) -> None:
    with pytest.raises(LlavaError, match="no window 9 to go on from"):
        next(iter(Batches(mixture, v15, PLAIN, start=(0, 9, 0))))


def test_a_dead_worker_is_an_error_and_closing_ends_the_others(mixture: Mixture, v15: LlavaProcessor) -> None:
    batches = iter(Batches(mixture, v15, PLAIN, epochs=None, workers=2))
    next(batches)
    workers = multiprocessing.active_children()
    assert workers
    os.kill(workers[0].pid or 0, signal.SIGKILL)
    with pytest.raises(LlavaError, match="a process that prepares data has died"):
        list(islice(batches, 1000))
    assert not multiprocessing.active_children()


def test_leaving_the_loop_ends_the_workers(mixture: Mixture, v15: LlavaProcessor) -> None:
    for _ in Batches(mixture, v15, PLAIN, epochs=None, workers=1):
        assert multiprocessing.active_children()
        break
    assert not multiprocessing.active_children()


KILLED = """
import multiprocessing, os, signal, sys
from pathlib import Path
from paddle_llava.data.batches import BatchSettings
from paddle_llava.data.loader import Batches
from paddle_llava.data.mixture import Mixture
from paddle_llava.demo.checkpoint import build
from paddle_llava.processing.processor import LlavaProcessor
from paddle_llava.processing.templates import TEMPLATES

build(Path(sys.argv[2]))
mixture = Mixture.from_entries([{"data_files": sys.argv[1]}], TEMPLATES["vicuna_v1"])
processor = LlavaProcessor.from_pretrained(sys.argv[2])
batches = iter(Batches(mixture, processor, BatchSettings(2, 400, window=8), epochs=None, workers=1))
next(batches)
assert "paddle" not in sys.modules
print(multiprocessing.active_children()[0].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_killed_parent_and_nobody_loads_paddle(mixture: Mixture, tmp_path: Path) -> None:
    path = str(mixture.parts[0].files[0].path)
    command = [sys.executable, "-c", KILLED, path, str(tmp_path / "model")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == -signal.SIGKILL, result.stderr
    deadline = time.monotonic() + 10
    while psutil.pid_exists(int(result.stdout)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not psutil.pid_exists(int(result.stdout))
