"""`llava demo train` from nothing to figures, a step or two of each stage; each takes up what the last one left."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

from paddle_llava.checkpoints.safetensors_file import SafetensorsFile
from paddle_llava.demo.train import Amount, train

AMOUNT = Amount(
    eye_steps=1,
    tongue_steps=1,
    alignment_steps=1,
    together_steps=2,
    rounds=2,
    pictures=100,
    pretrain_share=0.5,
    finetune_epochs=0.2,
    judged=1,
)
STAGES = ("base", "own", "pretrain", "taught-1", "taught-2", "finetune")


def changed(one: Path, other: Path) -> set[str]:
    """The parts of the model in which two checkpoints differ."""
    files = [SafetensorsFile(folder / "model.safetensors") for folder in (one, other)]
    parts = {name.split(".")[0] for name in files[0].names() if (files[0].read(name) != files[1].read(name)).any()}
    for file in files:
        file.close()
    return parts


def test_every_stage(tmp_path: Path) -> None:
    said: list[str] = []
    result = train(tmp_path, say=said.append, amount=AMOUNT)
    assert result == tmp_path / "finetune"
    everything = {"vision_tower", "multi_modal_projector", "language_model"}
    learnt = [changed(tmp_path / one, tmp_path / other) for one, other in pairwise(STAGES)]
    assert learnt == [everything, {"multi_modal_projector"}, everything, everything, everything - {"vision_tower"}]
    assert json.loads((result / "figures.json").read_text())["vqa"]["asked"] > 0
    drawn = [text.text for text in ElementTree.parse(tmp_path / "curves.svg").iterfind(".//{*}text[@class='title']")]
    learning = ("eye", "tongue", "alignment", "pretrain", "together-1", "together-2", "finetune")
    assert [title for title in drawn if title and title.endswith("loss")] == [f"{name}: loss" for name in learning]
    assert {"eye: held-out", "tongue: held-out", "together-2: held-out"} <= set(drawn)

    times = {name: (tmp_path / name / "model.safetensors").stat().st_mtime_ns for name in STAGES}
    train(tmp_path, say=said.append, amount=AMOUNT)
    assert times == {name: (tmp_path / name / "model.safetensors").stat().st_mtime_ns for name in STAGES}
