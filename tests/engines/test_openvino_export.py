"""Folders of OpenVINO graphs: what is written, what is read back, and who gets to run a checkpoint."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino")

from paddle_llava import LlavaProcessor, opening
from paddle_llava.checkpoints.write import write_checkpoint
from paddle_llava.cli import main
from paddle_llava.config import ORIGINAL_IMAGE_TOKEN_ID
from paddle_llava.convert import convert
from paddle_llava.engines.openvino import export as export_module
from paddle_llava.engines.openvino.cache import cache_folder
from paddle_llava.engines.openvino.engine import OpenVINOEngine
from paddle_llava.engines.openvino.export import Exported, export
from paddle_llava.engines.openvino.formats import Formats
from paddle_llava.engines.openvino.pages import released
from paddle_llava.errors import LlavaError
from paddle_llava.opening import open_model
from paddle_llava.pretrained import find_pretrained
from reference_cases import CASES, CHECKPOINTS, FIXTURES, TOLERANCE


def logits(engine: Any, processor: LlavaProcessor, title: str = "640x480") -> np.ndarray:
    engine.reset()
    return engine.prefill(processor.prepare(list(CASES[title].prompts), CASES[title].pictures))


def expected(name: str, title: str = "640x480") -> np.ndarray:
    with np.load(FIXTURES / f"{name}.npz") as arrays:
        return arrays[f"{title}/logits"][:, -1]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_folder_is_a_model_by_itself(name: str, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / name, tmp_path / "source")
    told: list[tuple[int, int]] = []
    export(tmp_path / "source", tmp_path / "out", Formats("f32"), progress=lambda *done: told.append(done))
    shutil.rmtree(tmp_path / "source")
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] > told[0][0]
    engine, processor = open_model(str(tmp_path / "out"))
    assert isinstance(engine, OpenVINOEngine)
    assert np.abs(logits(engine, processor) - expected(name)).max() < TOLERANCE
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_rounded_weights_are_read_back_as_written(weights: str, tmp_path: Path) -> None:
    export(FIXTURES / "v1_6", tmp_path / "out", Formats(weights))
    assert Exported.read(tmp_path / "out").formats == Formats(weights, 32)
    from_folder = logits(*open_model(str(tmp_path / "out")))
    in_memory = logits(*open_model(str(FIXTURES / "v1_6"), weights=weights))
    assert np.abs(from_folder - in_memory).max() < 1e-5
    assert np.abs(from_folder - expected("v1_6")).max() < 3


@pytest.mark.parametrize(("asked", "width", "group"), [(None, 256, 32), (None, 4096, 64), (128, 256, 128)])
def test_groups_of_narrow_models_are_small_unless_asked_for(asked: int | None, width: int, group: int) -> None:
    model = replace(find_pretrained(FIXTURES / "v1_6").config.text, hidden_size=width, num_hidden_layers=3)
    forms = Formats("int4", asked).layers(model)
    assert [(form.name, form.group_size) for form in forms] == [("int8", None), ("int4", group), ("int8", None)]


def test_an_original_layout_gets_its_image_token(tmp_path: Path) -> None:
    convert(FIXTURES / "v1_6", tmp_path / "original", "original")
    export(tmp_path / "original", tmp_path / "out", Formats("f32"))
    engine, processor = open_model(str(tmp_path / "out"))
    assert processor.tokenizer.image_token_id == engine.config.image_token_id >= 0
    assert np.abs(logits(engine, processor)[:, :528] - expected("v1_6")).max() < TOLERANCE


def test_a_vocabulary_without_the_next_place_for_an_image_token(tmp_path: Path) -> None:
    """A padded one: the tokenizer's next token stands before its end."""
    source, sound = tmp_path / "original", find_pretrained(FIXTURES / "v1_6")
    text = replace(sound.config.text, pad_token_id=None)
    with sound.open_weights() as weights:
        config = replace(sound.config, text=text, image_token_id=ORIGINAL_IMAGE_TOKEN_ID)
        write_checkpoint(source, config, weights, "original")
    LlavaProcessor.from_pretrained(sound.folder).save_pretrained(source, "original")
    raw, settings = (json.loads((sound.folder / f"tokenizer{kind}.json").read_text()) for kind in ("", "_config"))
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["id"] < 512]
    (source / "tokenizer.json").write_text(json.dumps(raw))
    (source / "tokenizer_config.json").write_text(json.dumps({**settings, "image_token": None, "pad_token": None}))
    (source / "special_tokens_map.json").unlink()
    with pytest.raises(LlavaError, match="cannot have id 528"):
        LlavaProcessor.from_pretrained(source).tokenizer_of("hf")
    export(source, tmp_path / "out", Formats("f32"))
    engine, processor = open_model(str(tmp_path / "out"))
    assert processor.tokenizer.image_token_id is None
    assert engine.config.image_token_id == ORIGINAL_IMAGE_TOKEN_ID
    assert np.abs(logits(engine, processor) - logits(*open_model(str(source)))).max() < 1e-5


def test_a_killed_export_leaves_nothing_that_looks_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if by SIGKILL in the last graph: nothing is cleaned up. The next one starts anew."""
    written = []

    class Killed(BaseException):
        pass

    def save(model: Any, path: Path, **options: Any) -> None:
        written.append(path)
        path.write_bytes(b"half")
        if len(written) == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(export_module.openvino, "save_model", save)
        patch.setattr(export_module.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            export(FIXTURES / "v1_5", tmp_path / "out", Formats("int8"))
    assert not (tmp_path / "out").exists()
    (left,) = tmp_path.iterdir()
    assert not (left / "config.json").exists()
    with pytest.raises(LlavaError, match=r"no config\.json"):
        open_model(str(left))
    export(FIXTURES / "v1_5", tmp_path / "out", Formats("int8"))
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_a_second_export_to_the_same_folder_leaves_the_first_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, told = export_module.openvino.save_model, []

    def meanwhile(*graph: Any, **options: Any) -> None:
        save(*graph, **options)
        with ThreadPoolExecutor(1) as pool, pytest.raises(LlavaError) as refused:
            pool.submit(export, FIXTURES / "v1_6", tmp_path / "out", Formats("int8")).result()
        told.append(str(refused.value))

    monkeypatch.setattr(export_module, "PATIENCE", 0.05)
    monkeypatch.setattr(export_module.openvino, "save_model", meanwhile)
    export(FIXTURES / "v1_5", tmp_path / "out", Formats("f32"))
    assert len(told) == 3
    assert all("out: another export is writing this folder; wait for it" in message for message in told)
    assert np.abs(logits(*open_model(str(tmp_path / "out"))) - expected("v1_5")).max() < TOLERANCE
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_a_mount_point_is_refused_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "volume")
    with pytest.raises(LlavaError, match="volume: is a mount point, which cannot be replaced; give a folder inside it"):
        export("no/such/model", tmp_path / "volume", Formats("int8"))
    export(FIXTURES / "v1_5", tmp_path / "volume" / "inside", Formats("int8"))


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(export_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(LlavaError, match="too full"):
        export(FIXTURES / "v1_5", tmp_path / "out", Formats("int8"))
    assert not list(tmp_path.iterdir())


def test_lora_is_merged(tmp_path: Path) -> None:
    """As merging it first does."""
    adapter = an_adapter(tmp_path / "adapter")
    convert(FIXTURES / "v1_6", tmp_path / "merged", "hf", dtype="float32", lora_path=adapter)
    engine, processor = open_model(str(FIXTURES / "v1_6"), lora_path=str(adapter))
    merged = logits(*open_model(str(tmp_path / "merged")))
    assert np.abs(logits(engine, processor) - merged).max() < 1e-4
    assert np.abs(merged - expected("v1_6")).max() > 0.1
    export(FIXTURES / "v1_6", tmp_path / "out", Formats("f32"), lora_path=adapter)
    assert np.abs(logits(*open_model(str(tmp_path / "out"))) - merged).max() < 1e-4


@pytest.mark.parametrize("way", ["in memory", "through the cache", "exported"])
def test_an_adapter_of_another_published_model_is_told(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once at every start."""
    if way == "through the cache":
        monkeypatch.setattr(opening, "SMALL", 0)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = shutil.copytree(FIXTURES / "v1_6", tmp_path / "llava-v1.6-vicuna-13b-hf")
    adapter = an_adapter(tmp_path / "adapter", trained_for="liuhaotian/llava-v1.6-vicuna-7b")
    options = ["--model-path", str(model), "--lora-path", str(adapter)]
    for start in range(2):
        if way == "exported":
            command = ["export", "--out", str(tmp_path / f"out-{start}")]
        else:
            command = ["chat", "--engine", "openvino", "--prompt", "Hi", "--max-new-tokens", "1"]
        assert main([*command, *options]) == 0
        assert capsys.readouterr().err.count("was trained for liuhaotian/llava-v1.6-vicuna-7b, and not for") == 1


def an_adapter(folder: Path, trained_for: str = "") -> Path:
    from paddle_llava.checkpoints.adapter import Adapter, write_adapter

    config = find_pretrained(FIXTURES / "v1_6").config
    random = np.random.default_rng(0)
    width = config.text.hidden_size
    pair = (random.standard_normal((width, 2)).astype(np.float32), random.standard_normal((2, width)) * 0.05)
    pairs = {"language_model.layers.1.self_attn.q_proj": (pair[0], pair[1].astype(np.float32))}
    write_adapter(folder, Adapter(2, 4.0, base_model=trained_for, pairs=pairs), config)
    return folder


# --- who runs it ----------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint that counts as a large one, and an empty cache."""
    monkeypatch.setattr(opening, "SMALL", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(FIXTURES / "v1_5", tmp_path / "llava"))


def test_large_weights_are_rounded_once(large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, processor = open_model(str(large))
    told = capsys.readouterr().err
    assert told.count("llava: note: making int8 weights for OpenVINO") == 1
    (kept,) = (path for path in cache_folder().iterdir() if path.is_dir())
    assert kept.name.startswith("llava-int8-")
    assert str(kept) in told
    second, _ = open_model(str(large))
    assert capsys.readouterr().err == ""
    assert np.array_equal(logits(first, processor), logits(second, processor))


def test_other_weights_are_another_folder(large: Path, tmp_path: Path) -> None:
    """Other bytes under the same name, another format, an adapter."""
    open_model(str(large), weights="int4")
    open_model(str(large), weights="int4", lora_path=None)
    assert len([path for path in cache_folder().iterdir() if path.is_dir()]) == 1
    (large / "model.safetensors").touch()
    open_model(str(large), weights="int4")
    open_model(str(large), dtype="bfloat16")
    names = sorted(path.name.split("-")[1] for path in cache_folder().iterdir() if path.is_dir())
    assert names == ["bf16", "int4", "int4"]


def test_an_adapter_through_the_cache(large: Path, tmp_path: Path) -> None:
    """As merging it first does, at the first start and later; one that is not there is never passed over."""
    shutil.rmtree(large)
    shutil.copytree(FIXTURES / "v1_6", large)
    adapter = an_adapter(tmp_path / "adapter")
    convert(large, tmp_path / "merged", "hf", dtype="float32", lora_path=adapter)
    merged = logits(*open_model(str(tmp_path / "merged"), weights="f32"))
    base = logits(*open_model(str(large), weights="f32"))
    for _ in range(2):
        through_cache = logits(*open_model(str(large), weights="f32", lora_path=str(adapter)))
        assert np.abs(through_cache - merged).max() < 1e-4
        assert np.abs(through_cache - base).max() > 0.1
    kept = sorted(cache_folder().iterdir())
    (tmp_path / "empty").mkdir()
    for wrong, said in (("nowhere", "no such folder"), ("empty", "it is no LoRA adapter")):
        with pytest.raises(LlavaError, match=said):
            open_model(str(large), weights="f32", lora_path=str(tmp_path / wrong))
    assert sorted(cache_folder().iterdir()) == kept


def read_only(*_: Any, **__: Any) -> Any:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.parametrize("place", ["huggingface_hub.utils.WeakFileLock", "pathlib.Path.mkdir"])
def test_a_cache_that_can_only_be_read(large: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    open_model(str(large))
    monkeypatch.setattr(place, read_only)
    open_model(str(large))
    with pytest.raises(LlavaError, match=r"openvino: cannot be written \(Read-only .*; set XDG_CACHE_HOME"):
        open_model(str(large), weights="bf16")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    ("name", "damage"),
    [("openvino_language_model.xml", cut_short), ("config.json", cut_short), ("config.json", os.remove)],
)
def test_a_damaged_folder_of_the_cache(large: Path, name: str, damage: Callable[[Path], object]) -> None:
    open_model(str(large))
    (kept,) = (path for path in cache_folder().iterdir() if path.is_dir())
    damage(kept / name)
    with pytest.raises(LlavaError, match=rf"{name}.* \({kept} is of the cache: delete it, and it is made anew\)"):
        open_model(str(large))
    shutil.rmtree(kept)
    open_model(str(large))


def test_another_preprocessor_is_another_folder(large: Path) -> None:
    """The processor is read from the folder that is kept, which must not be older than it."""
    open_model(str(large))
    settings = large / "processor_config.json"
    told = json.loads(settings.read_text())
    told["image_processor"]["image_mean"] = [0.25, 0.5, 0.75]
    settings.write_text(json.dumps(told))
    _, processor = open_model(str(large))
    assert list(processor.image_processor.image_mean) == [0.25, 0.5, 0.75]


def test_an_export_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    command = ["export", "--model-path", str(FIXTURES / "v1_5"), "--to", "openvino", "--out"]
    assert main([*command, "."]) == 2
    assert "is the working folder, which cannot be replaced" in capsys.readouterr().err
    assert main([*command, "../new/../other"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "other"]


def test_auto_takes_openvino_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(FIXTURES / "v1_5")
    for options in ({}, {"device": "cpu"}, {"engine": "openvino"}, {"weights": "int8"}, {"dtype": "float32"}):
        assert isinstance(open_model(source, **options)[0], OpenVINOEngine), options
    from paddle_llava.engines.paddle import PaddleEngine

    assert isinstance(open_model(source, engine="paddle")[0], PaddleEngine)
    with monkeypatch.context() as patch:
        patch.setattr(opening, "_has_accelerator", lambda: True)
        assert isinstance(open_model(source)[0], PaddleEngine)
        assert isinstance(open_model(source, device="cpu")[0], OpenVINOEngine)
        assert isinstance(open_model(source, engine="openvino")[0], OpenVINOEngine)
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    assert isinstance(open_model(source)[0], PaddleEngine)
    with pytest.raises(LlavaError, match="pip install openvino"):
        open_model(source, engine="openvino")


def test_a_chat_with_an_exported_folder(tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["export", "--model-path", str(FIXTURES / "v1_6"), "--to", "openvino", "--out", out]) == 0
    assert f"llava chat --model-path {out}" in capsys.readouterr().err
    asked = ["--image-file", str(photo), "--prompt", "What is it?", "--max-new-tokens", "4", "--json"]
    assert main(["chat", "--model-path", out, *asked]) == 0
    assert json.loads(capsys.readouterr().out)["stats"]["generated_tokens"] > 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="pages are given back on Linux only")
def test_pages_of_a_file_are_given_back_and_can_be_read_again(tmp_path: Path) -> None:
    """Those of the file alone; what can be written to stays."""
    size = 32 << 20
    (tmp_path / "graph.bin").write_bytes(bytes(range(256)) * (size // 256))
    shutil.copy(tmp_path / "graph.bin", tmp_path / "other.bin")
    graph, other = (np.memmap(tmp_path / name, np.uint8, "r") for name in ("graph.bin", "other.bin"))
    written = np.memmap(tmp_path / "graph.bin", np.uint8, "c")
    written[:] = 7
    whole = int(graph.sum()), int(other.sum())
    before = resident_files()
    with released(tmp_path / "graph.bin"):
        pass
    assert before - resident_files() == pytest.approx(size, rel=0.2)
    assert (int(graph.sum()), int(other.sum())) == whole
    assert written.min() == 7


def resident_files() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssFile"))
