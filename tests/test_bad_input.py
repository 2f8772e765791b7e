"""Everything that a person can get wrong, each told in one line: what is wrong, and exit code 2."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hub_server import HubServer
from paddle_llava import device
from paddle_llava.checkpoints.safetensors_file import SafetensorsFile, write_safetensors
from paddle_llava.cli import main

WEIGHTS = "model.safetensors"
CHAT = ("chat", "--max-new-tokens=2", "--temperature=0")
NORM = "language_model.model.norm.weight"


@dataclass
class World:
    """Where a case happens: an empty current folder, a sound checkpoint and photograph, a web server, a hub."""

    here: Path
    sound: Path
    photo: Path
    web: str
    monkeypatch: pytest.MonkeyPatch

    def chat(self, *flags: str, model: str | Path | None = None) -> list[str]:
        return [
            "chat",
            "--model-path",
            str(model or self.sound),
            "--prompt",
            "hi",
            "--max-new-tokens=2",
            "--temperature=0",
            *flags,
        ]

    def picture(self, data: bytes) -> list[str]:
        (self.here / "picture").write_bytes(data)
        return self.chat("--image-file", "picture")

    def template(self, text: str) -> list[str]:
        (self.here / "template.json").write_text(text)
        return self.chat("--conv-mode", "template.json")

    def typed(self, *lines: str) -> list[str]:
        self.monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        return [*CHAT, "--model-path", str(self.sound)]

    def copy(self, without: str = "") -> Path:
        shutil.copytree(self.sound, self.here / "model")
        if without:
            (self.here / "model" / without).unlink()
        return self.here / "model"

    def file(self, name: str, content: bytes) -> list[str]:
        """A checkpoint of which one file is replaced, or added."""
        folder = self.copy()
        (folder / name).write_bytes(content)
        return self.chat(model=folder)

    def weights(self, name: str, content: bytes) -> list[str]:
        """A checkpoint whose only weights are this file."""
        folder = self.copy(without=WEIGHTS)
        (folder / name).write_bytes(content)
        return self.chat(model=folder)

    def settings(self, name: str = "config.json", **changes: Any) -> list[str]:
        """A checkpoint with changes, `section__key=value`, in a JSON file."""
        folder = self.copy()
        raw = json.loads((folder / name).read_text())
        for key, value in changes.items():
            *sections, last = key.split("__")
            place = raw
            for section in sections:
                place = place[section]
            place[last] = value
        (folder / name).write_text(json.dumps(raw))
        return self.chat(model=folder)

    def tensors(self, change: Callable[[dict[str, np.ndarray]], Any]) -> list[str]:
        """A checkpoint with a change to its tensors."""
        folder = self.copy()
        with_all = SafetensorsFile(folder / WEIGHTS)
        arrays = {name: with_all.read(name) for name in with_all.names()}
        with_all.close()
        change(arrays)
        specs = {name: ("float32", array.shape) for name, array in arrays.items()}
        write_safetensors(folder / WEIGHTS, specs, arrays.__getitem__)
        return self.chat(model=folder)

    def offline(self, *command: str) -> list[str]:
        self.monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        return list(command)

    def export(self, *flags: str) -> list[str]:
        return ["export", "--model-path", str(self.sound), "--out", str(self.here / "out"), *flags]

    def exported(self, *flags: str, damaged: str | None = None) -> list[str]:
        """A chat with OpenVINO graphs, one of their files cut short."""
        from paddle_llava.engines.openvino.export import export
        from paddle_llava.engines.openvino.formats import Formats

        folder = self.here / "exported"
        export(self.sound, folder, Formats("int8"))
        if damaged:
            (folder / damaged).write_bytes((folder / damaged).read_bytes()[:40])
        return self.chat(*flags, model=folder)


def bomb() -> bytes:
    """A PNG that claims 60000x60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


class Malice:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("pwned", "w"))


def torch_file(value: object) -> bytes:
    """A PyTorch archive of a pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, protocol=2))
        archive.writestr("archive/byteorder", b"little")
    return out.getvalue()


def index(*shards: str) -> bytes:
    return json.dumps({"weight_map": {f"tensor.{i}": shard for i, shard in enumerate(shards)}}).encode()


def to_existing_file(world: World) -> list[str]:
    (world.here / "target").write_text("mine")
    return ["convert", str(world.sound), "target"]


def to_full_folder(world: World) -> list[str]:
    (world.here / "target").mkdir()
    (world.here / "target" / "mine").write_text("mine")
    return ["convert", str(world.sound), "target"]


def saved_over(world: World) -> list[str]:
    (world.here / "mine.json").write_text("mine")
    return world.typed("hi", "/save mine.json")


def training(world: World, **settings: Any) -> list[str]:
    """A training of the sound checkpoint on a file that is not there."""
    run = {
        "model_name_or_path": str(world.sound),
        "dataset": {"train": [{"data_files": "train.json"}]},
        "output_dir": "out",
    }
    (world.here / "run.json").write_text(json.dumps(run | settings))
    return ["pretrain", "run.json"]


def checking(world: World, *options: str) -> list[str]:
    """A check of a file that is not there."""
    return ["data", "check", "train.json", "--model-path", str(world.sound), *options]


PARTS = '"user_prefix": "Q: ", "assistant_prefix": "A:"'
PINPOINTS = {"model_type": "llava_next", "image_grid_pinpoints": [[100, 0]]}

CASES: dict[str, tuple[Callable[[World], list[str]], str]] = {
    # pictures in files
    "a picture that is not there": (lambda w: w.chat("--image-file", "bus.jpg"), "no such file"),
    "a folder for a picture": (lambda w: w.chat("--image-file", "."), "directory"),
    "an empty picture": (lambda w: w.picture(b""), "empty"),
    "a truncated picture": (lambda w: w.picture(w.photo.read_bytes()[:9000]), "damaged"),
    "a decompression bomb": (lambda w: w.picture(bomb()), "60000x60000"),
    "a page for a picture": (lambda w: w.picture(b"<html><body>Not found</body></html>"), "not a picture"),
    "text for a picture": (lambda w: w.picture("一张照片".encode()), "not a picture"),
    "a broken data URI": (lambda w: w.chat("--image-file", "data:image/png;base64,%%%"), "base64"),
    "an empty picture name": (lambda w: w.chat("--image-file", ""), "''"),
    "a second picture that is bad": (
        lambda w: w.chat("--image-file", str(w.photo), "--image-file", "bus.jpg"),
        "bus.jpg",
    ),
    "more pictures than the model holds": (
        lambda w: w.chat(*["--image-file", str(w.photo)] * 40),
        "put away",
    ),
    # pictures behind URLs
    "a URL of no known kind": (lambda w: w.chat("--image-file", "ftp://127.0.0.1/a.jpg"), "ftp"),
    "a refused connection": (lambda w: w.chat("--image-file", "http://127.0.0.1:9/a.jpg"), "cannot be fetched"),
    "a URL that is not found": (lambda w: w.chat("--image-file", f"{w.web}/missing"), "404"),
    "a page behind a URL": (lambda w: w.chat("--image-file", f"{w.web}/page"), "text/html"),
    "redirects without end": (lambda w: w.chat("--image-file", f"{w.web}/loop"), "redirects"),
    "a redirect to a file": (lambda w: w.chat("--image-file", f"{w.web}/to-file"), "no http(s) address"),
    "a URL without a host": (lambda w: w.chat("--image-file", "http:///a.jpg"), "http"),
    # names of checkpoints
    "no model at all": (lambda w: ["chat", "--prompt", "hi"], "llava demo"),
    "a misspelt name": (lambda w: w.chat(model="llava-hf/llava-1.5-7b-fh"), "did you mean 'llava-hf/llava-1.5-7b-hf'"),
    "a name nobody has": (lambda w: w.chat(model="nobody/nothing"), "no such folder"),
    "a name without its owner": (lambda w: w.chat(model="llava-1.5-7b-hf"), "llava-hf/llava-1.5-7b-hf"),
    "a path that is not there": (lambda w: w.chat(model="./modell"), "no such folder"),
    "a language model alone": (lambda w: w.chat(model="lmsys/vicuna-7b-v1.5"), "sees no images"),
    "an empty name": (lambda w: w.chat("--model-path", ""), "''"),
    "a file for a folder": (lambda w: w.chat(model=w.sound / "config.json"), "a file"),
    "a folder without config.json": (lambda w: w.chat(model=w.copy(without="config.json")), "config.json"),
    # config.json
    "a config.json that is broken": (lambda w: w.file("config.json", b'{"model_type": '), "not valid JSON"),
    "a config.json that is a list": (lambda w: w.file("config.json", b"[]"), "JSON object"),
    "a config.json in no UTF": (lambda w: w.file("config.json", b"\xff\xfe\xfa"), "not valid JSON"),
    "another model's config.json": (lambda w: w.file("config.json", b'{"model_type": "qwen2_vl"}'), "qwen2_vl"),
    "a size in words": (lambda w: w.settings(text_config__hidden_size="large"), "hidden_size"),
    "a norm that Paddle refuses": (lambda w: w.settings(vision_config__layer_norm_eps=0.01), "layer_norm_eps"),
    "a norm below zero": (lambda w: w.settings(text_config__rms_norm_eps=-1e-6), "rms_norm_eps"),
    "a tower that is a list": (lambda w: w.settings(vision_config=[1]), "vision_config"),
    "heads that divide nothing": (lambda w: w.settings(text_config__num_attention_heads=0), "num_attention_heads"),
    "bad pinpoints": (lambda w: w.settings(**PINPOINTS), "pinpoints"),
    "another vocabulary size": (lambda w: w.settings(text_config__vocab_size=77), "vocab_size"),
    "another image token": (lambda w: w.settings(image_token_index=5), "image token"),
    "a template nobody knows in config.json": (lambda w: w.settings(conv_mode="vicuna_v7"), "vicuna_v7"),
    # weights
    "no weights": (lambda w: w.chat(model=w.copy(without=WEIGHTS)), "no weights"),
    "a missing tensor": (lambda w: w.tensors(lambda t: t.pop(NORM)), "missing"),
    "a left-over tensor": (lambda w: w.tensors(lambda t: t.update({"extra.weight": t[NORM]})), "extra.weight"),
    "a misshapen tensor": (lambda w: w.tensors(lambda t: t.update({NORM: np.zeros(3, "float32")})), "[3]"),
    "truncated safetensors": (lambda w: w.file(WEIGHTS, (w.sound / WEIGHTS).read_bytes()[:-100]), "truncated"),
    "safetensors of noise": (lambda w: w.file(WEIGHTS, b"\x07" * 5000), WEIGHTS),
    "empty safetensors": (lambda w: w.file(WEIGHTS, b""), WEIGHTS),
    "a Git LFS pointer": (lambda w: w.file(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "a .bin that runs code": (lambda w: w.weights("pytorch_model.bin", torch_file({"a": Malice()})), "pytorch_model"),
    "a bare pickle that runs code": (lambda w: w.weights("pytorch_model.bin", pickle.dumps(Malice())), "pytorch_model"),
    "a .pdparams that runs code": (
        lambda w: w.weights("model_state.pdparams", pickle.dumps({"a": Malice()}, protocol=2)),
        "model_state",
    ),
    "an index that leaves its folder": (
        lambda w: w.weights("model.safetensors.index.json", index("../../secret.safetensors")),
        "secret",
    ),
    "a missing shard": (
        lambda w: w.weights("model.safetensors.index.json", index("model-00001-of-00002.safetensors")),
        "model-00001-of-00002.safetensors",
    ),
    "an index without names": (lambda w: w.weights("model.safetensors.index.json", b"{}"), "weight_map"),
    # tokenizer and preprocessor
    "no tokenizer": (lambda w: w.chat(model=w.copy(without="tokenizer.json")), "tokenizer"),
    "a broken tokenizer": (lambda w: w.file("tokenizer.json", b'{"model": {}}'), "token"),
    "a tokenizer of noise": (lambda w: w.file("tokenizer.json", b"\x00\x01\x02"), "tokenizer.json"),
    "a broken preprocessor": (lambda w: w.file("preprocessor_config.json", b"{"), "preprocessor_config.json"),
    "a preprocessor without a mean": (
        lambda w: w.settings("preprocessor_config.json", image_mean="grey"),
        "image_mean",
    ),
    "a chat template without end": (
        lambda w: w.file("chat_template.jinja", b"{{ x }}" * 200_000),
        "chat_template.jinja",
    ),
    # flags
    "a command that does not exist": (lambda w: ["chatt"], "did you mean 'chat'"),
    "a flag that does not exist": (lambda w: w.chat("--quantum"), "--quantum"),
    "a misspelt flag": (lambda w: w.chat("--imagefile", "x"), "did you mean '--image-file'"),
    "a flag without its value": (lambda w: ["chat", "--model-path"], "--model-path"),
    "a word too many": (lambda w: w.chat("why"), "why"),
    "a temperature in words": (lambda w: w.chat("--temperature", "hot"), "--temperature"),
    "a temperature below zero": (lambda w: w.chat("--temperature", "-1"), "temperature"),
    "a temperature that is no number": (lambda w: w.chat("--temperature", "nan"), "temperature"),
    "a top-p above one": (lambda w: w.chat("--top-p", "2"), "top_p"),
    "a top-k below zero": (lambda w: w.chat("--top_k=-1"), "top_k"),
    "half a token": (lambda w: w.chat("--max-new-tokens", "1.5"), "--max-new-tokens"),
    "no token": (lambda w: w.chat("--max-new-tokens", "0"), "max_new_tokens"),
    "a repetition penalty of zero": (lambda w: w.chat("--repetition-penalty", "0"), "repetition_penalty"),
    "an empty stop string": (lambda w: w.chat("--stop", ""), "stop"),
    "a seed below zero": (lambda w: w.chat("--seed", "-7"), "seed"),
    "a device that does not exist": (lambda w: w.chat("--device", "gpuu"), "gpuu"),
    "no GPU": (lambda w: w.chat("--device", "gpu"), "GPU"),
    "no second GPU": (lambda w: w.chat("--device", "cuda:1"), "GPU"),
    "a device number in words": (lambda w: w.chat("--device", "cpu:one"), "cpu:one"),
    "no NPU": (lambda w: w.chat("--device", "npu"), "NPU"),
    "a number format nobody has": (lambda w: w.chat("--dtype", "float8"), "float8"),
    "two number formats": (lambda w: w.chat("--fp16", "--bf16"), "--bf16"),
    # engines
    "an engine nobody has": (lambda w: w.chat("--engine", "openvinno"), "did you mean 'openvino'"),
    "weights nobody has": (lambda w: w.chat("--weights", "int3"), "int4"),
    "weights for Paddle": (lambda w: w.chat("--engine", "paddle", "--weights", "int8"), "--dtype"),
    "weights and a number format": (lambda w: w.chat("--weights", "int8", "--fp16"), "--dtype"),
    "OpenVINO on a GPU": (lambda w: w.chat("--engine", "openvino", "--device", "gpu"), "--engine openvino"),
    "graphs for Paddle": (lambda w: w.exported("--engine", "paddle"), "Paddle cannot run"),
    "other weights of graphs": (lambda w: w.exported("--weights", "int4"), "export the checkpoint"),
    "a damaged graph": (lambda w: w.exported(damaged="openvino_language_model.xml"), "openvino_language_model.xml"),
    "graphs without their numbers": (
        lambda w: w.exported(damaged="openvino_language_model.bin"),
        "openvino_language_model",
    ),
    "graphs of no known format": (lambda w: w.exported(damaged="openvino_config.json"), "openvino_config.json"),
    "exporting without a place": (lambda w: ["export", "--model-path", str(w.sound)], "--out"),
    "exporting to a format nobody has": (lambda w: w.export("--to", "onnx"), "onnx"),
    "exporting to weights nobody has": (lambda w: w.export("--weights", "int2"), "int2"),
    "exporting 8 bits in groups": (lambda w: w.export("--weights", "int8", "--group-size", "64"), "--weights int4"),
    "exporting to groups of seven": (lambda w: w.export("--weights", "int4", "--group-size", "7"), "7"),
    "calibrating with a file that is not there": (
        lambda w: w.export("--weights", "int4", "--calibrate", "nowhere.json"),
        "nowhere.json",
    ),
    "calibrating with what is no training file": (
        lambda w: w.export("--weights", "int4", "--calibrate", str(w.photo)),
        "china.jpg",
    ),
    "calibrating what needs none": (lambda w: w.export("--calibrate", str(w.photo)), "--calibrate"),
    "an adapter that is not there": (lambda w: w.chat("--lora-path", "nowhere"), "nowhere"),
    "exporting below a file": (lambda w: w.export("--out", str(w.photo / "x")), "china.jpg"),
    # questions
    "an empty question": (lambda w: w.chat("--prompt", " "), "empty"),
    "a question of broken bytes": (lambda w: w.chat("--prompt", "a\udcffb"), "surrogate"),
    "a question longer than the model": (lambda w: w.chat("--prompt", "why " * 9000), "2048"),
    "a command that is none": (lambda w: w.typed("/imgae x.jpg"), "did you mean '/image'"),
    "a bad picture in the conversation": (lambda w: w.typed("hi", "/image bus.jpg"), "bus.jpg"),
    "saving over a file": (saved_over, "already exists"),
    "saving in no known form": (lambda w: w.typed("hi", "/save talk.docx"), ".md"),
    "saving where nothing is": (lambda w: w.typed("hi", "/save no/such/talk.md"), "talk.md"),
    "saving nothing": (lambda w: w.typed("/save talk.md"), "nothing"),
    # templates
    "a template nobody knows": (lambda w: w.chat("--conv-mode", "vicuna_v2"), "did you mean 'vicuna_v1'"),
    "a template file that is not there": (lambda w: w.chat("--conv-mode", "mine.json"), "mine.json"),
    "a template file that is no JSON": (lambda w: w.template("USER: "), "not valid JSON"),
    "a template with an unknown key": (lambda w: w.template('{"usr_prefix": "Q: "}'), "did you mean 'user_prefix'"),
    "a template without an end": (lambda w: w.template(f"{{{PARTS}}}"), "answer_suffix"),
    "a template of numbers": (lambda w: w.template(f'{{{PARTS}, "answer_suffix": 7}}'), "answer_suffix"),
    "a template that is a program": (lambda w: w.template('{"conversation": ["{% for x in y %}", ""]}'), "Jinja"),
    # convert
    "converting over a file": (to_existing_file, "already exists"),
    "converting into a full folder": (to_full_folder, "not an empty folder"),
    "converting below a file": (lambda w: ["convert", str(w.sound), str(w.photo / "x")], "china.jpg"),
    "an unknown layout": (lambda w: ["convert", str(w.sound), "target", "--layout", "pytorch"], "pytorch"),
    "converting to a format nobody has": (lambda w: ["convert", str(w.sound), "target", "--dtype", "int4"], "int4"),
    "converting what is not there": (lambda w: ["convert", "./modell", "target"], "no such folder"),
    "converting to nowhere": (lambda w: ["convert", str(w.sound)], "TARGET"),
    # training and its data
    "merging without an adapter": (lambda w: ["merge", "--model-name-or-path=m", "--merge-model-path=t"], "lora-path"),
    "merging what is no adapter": (
        lambda w: ["merge", f"--model-name-or-path={w.sound}", f"--lora-path={w.sound}", "--merge-model-path=target"],
        "adapter_config.json",
    ),
    "training without a configuration": (lambda w: ["finetune", "mine.json"], "mine.json"),
    "training with an unknown key": (lambda w: training(w, learning_rat=1e-4), "did you mean 'learning_rate'"),
    "training at an impossible rate": (lambda w: training(w, learning_rate=-1), "learning_rate"),
    "a setting without its value": (lambda w: [*training(w), "--learning_rate"], "--key value"),
    "training on data that is not there": (lambda w: training(w), "train.json"),
    "checking data with no model to be had": (
        lambda w: w.offline("data", "check", "train.json"),
        "or give --model-path",
    ),
    "checking data with fewer than no processes": (lambda w: checking(w, "--workers", "-1"), "--workers"),
    "showing fewer than no samples": (lambda w: checking(w, "--show", "-1"), "--show"),
    "samples of less than a token": (lambda w: checking(w, "--max-length", "-5"), "--max-length"),
    "checking data that is not there": (checking, "train.json"),
}


class _Web(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answers = {
            "/page": (200, {"Content-Type": "text/html"}),
            "/loop": (302, {"Location": "/loop"}),
            "/to-file": (302, {"Location": "file:///etc/passwd"}),
        }
        status, headers = answers.get(self.path, (404, {}))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "6"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Web)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with HubServer({}) as server:
        yield server.endpoint


@pytest.fixture
def world(
    tmp_path: Path, demo_checkpoint: Path, photo: Path, web: str, hub: str, monkeypatch: pytest.MonkeyPatch
) -> World:
    monkeypatch.setenv("HF_ENDPOINT", hub)
    monkeypatch.setattr(device, "available_devices", lambda: ["cpu"])
    monkeypatch.chdir(tmp_path)
    return World(tmp_path, demo_checkpoint, photo, web, monkeypatch)


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_told_in_one_line(case: str, world: World, capfd: pytest.CaptureFixture[str]) -> None:
    make, word = CASES[case]
    code = main(make(world))
    told = capfd.readouterr().err
    assert told.count("\n") == 1, told
    assert told.startswith("llava: error: ")
    assert "internal error" not in told
    assert word in told
    assert len(told) < 600
    assert code == 2
    assert not (world.here / "pwned").exists()
    assert all(path.read_text() == "mine" for path in world.here.rglob("mine*") if path.is_file())


def test_the_sound_checkpoint_is_no_bad_input(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(world.chat("--image-file", str(world.photo))) == 0
    assert capfd.readouterr().err == ""
    assert main(world.tensors(lambda tensors: None)) == 0
