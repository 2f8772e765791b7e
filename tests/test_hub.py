"""Names and paths -> folders, against a hub on loopback that misbehaves on demand (tests/hub_server.py)."""

from __future__ import annotations

import fcntl
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants, snapshot_download
from hypothesis import given
from hypothesis import strategies as st

from hub_server import Fault, HubServer
from paddle_llava import hub as hub_module
from paddle_llava import transfer
from paddle_llava.checkpoints.config_file import config_to_dict
from paddle_llava.cli import main
from paddle_llava.errors import LlavaError
from paddle_llava.hub import CHECKPOINT_FILES, PADDLE_NAMES, Unreachable, local_folder, tower_folder, weight_files
from paddle_llava.json_file import write_json
from paddle_llava.processing.processor import LlavaProcessor

HF = "llava-hf/llava-1.5-7b-hf"
ORIGINAL = "liuhaotian/llava-v1.5-7b"
TOWER = "openai/clip-vit-large-patch14-336"
SHARD = "model-00001-of-00002.safetensors"
SIZE = 300_000

HF_NEEDED = {
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "model.safetensors.index.json",
    SHARD,
    "model-00002-of-00002.safetensors",
}
ORIGINAL_NEEDED = {
    "config.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "pytorch_model.bin.index.json",
    "pytorch_model-00001-of-00002.bin",
    "pytorch_model-00002-of-00002.bin",
}
EXTRA = {
    HF: {"README.md", ".gitattributes", "pytorch_model.bin", "flax_model.msgpack", "onnx/model.safetensors"},
    ORIGINAL: {"README.md", "mm_projector.bin", "training_args.bin", "trainer_state.json", "modeling_x.py"},
    TOWER: {"README.md", "tf_model.h5", "merges.txt", "tokenizer.json", "special_tokens_map.json"},
}
NEEDED = {
    HF: HF_NEEDED,
    ORIGINAL: ORIGINAL_NEEDED,
    TOWER: {"config.json", "preprocessor_config.json", "pytorch_model.bin"},
}


def write_repository(folder: Path, names: set[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        content = f"{folder.name}/{name}\n".encode()
        (folder / name).write_bytes(content * (SIZE // len(content)) if name == SHARD else content)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with three repositories, and an environment that knows only it and an empty cache."""
    repos = {
        repo: write_repository(tmp_path / "repos" / repo.partition("/")[2], NEEDED[repo] | EXTRA[repo])
        for repo in NEEDED
    }
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    hub_module._say.cache_clear()
    with HubServer(repos) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What a download would have waited between its attempts, in seconds; nothing is waited."""
    told: list[float] = []
    monkeypatch.setattr(transfer, "time", SimpleNamespace(sleep=told.append))
    return told


def refusal(name: str | Path, **options: Any) -> str:
    """The error of `local_folder`, which has to be one line."""
    with pytest.raises(LlavaError) as caught:
        local_folder(name, progress=False, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    return str(caught.value)


def blobs(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "home").rglob("blobs/*"))


def same_content(folder: Path, source: Path) -> bool:
    return all((folder / p.name).read_bytes() == (source / p.name).read_bytes() for p in folder.iterdir())


# --- what is downloaded ---------------------------------------------------------------------------


@pytest.mark.parametrize("repo", [HF, ORIGINAL, TOWER])
def test_exactly_the_needed_files_are_downloaded(hub: HubServer, repo: str) -> None:
    fetch = tower_folder if repo == TOWER else local_folder
    folder = fetch(repo, progress=False)
    assert {path.name for path in folder.iterdir()} == NEEDED[repo] == hub.names()
    assert same_content(folder, hub.repos[repo])


def test_a_second_call_downloads_nothing_and_says_nothing(
    hub: HubServer, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    first = local_folder(HF, progress=False)
    hub.requests.clear()
    assert local_folder(HF) == first
    assert capsys.readouterr().err == ""
    assert not recwarn.list
    assert [request.path for request in hub.requests] == [f"/api/models/{HF}/revision/main?blobs=true"]


def test_only_what_is_missing_is_downloaded(hub: HubServer) -> None:
    folder = local_folder(HF, progress=False)
    (folder / "tokenizer.json").resolve().unlink()
    hub.requests.clear()
    local_folder(HF, progress=False)
    assert [request.name for request in hub.downloads()] == ["tokenizer.json"]


def test_a_new_commit_downloads_only_what_changed(hub: HubServer) -> None:
    old = local_folder(HF, progress=False)
    (hub.repos[HF] / "config.json").write_text("{} ")
    hub.requests.clear()
    new = local_folder(HF, progress=False)
    assert new != old
    assert [request.name for request in hub.downloads()] == ["config.json"]
    assert (new / "config.json").read_text() == "{} "
    assert same_content(new, hub.repos[HF])


def test_the_cache_is_shared_with_the_library(hub: HubServer, tmp_path: Path) -> None:
    ours = local_folder(HF, progress=False)
    cache = tmp_path / "home" / "hub"
    assert snapshot_download(HF, local_files_only=True, cache_dir=cache) == str(ours)
    theirs = snapshot_download(TOWER, cache_dir=cache, endpoint=hub.endpoint)
    hub.requests.clear()
    assert tower_folder(TOWER, progress=False) == Path(theirs)
    assert hub.downloads() == []


def test_names_outside_the_list_are_never_written(hub: HubServer, tmp_path: Path) -> None:
    hub.extra_names = [
        "../../evil.json",
        "/tmp/evil.json",
        "sub/config.json",
        "model-00001-of-00001.safetensors\n",
    ]
    folder = local_folder(HF, progress=False)
    assert {path.name for path in folder.iterdir()} == HF_NEEDED
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize(
    "edit",
    [
        {"sha": "../../../evil"},
        {"sha": None},
        {"siblings": [{"rfilename": n, "size": 3, "blobId": "../evil"} for n in ("config.json", "model.safetensors")]},
        {"siblings": [{"rfilename": n} for n in ("config.json", "model.safetensors")]},
        {"siblings": [{"rfilename": n, "blobId": "0" * 40} for n in ("config.json", "model.safetensors")]},
    ],
)
def test_a_listing_that_cannot_be_trusted_is_refused(hub: HubServer, edit: dict, tmp_path: Path) -> None:
    hub.listing_edit = edit
    assert "does not tell the sizes and checksums" in refusal(HF)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("edit", [{"siblings": [{"name": "config.json"}]}, {"siblings": 3}, {"lastModified": "soon"}])
def test_an_endpoint_that_is_no_hub(hub: HubServer, edit: dict) -> None:
    hub.listing_edit = edit
    assert "does not answer as a Hugging Face hub" in refusal(HF)


@pytest.mark.parametrize("lost", ["config.json", "model-00002-of-00002.safetensors"])
def test_a_repository_that_is_no_checkpoint(hub: HubServer, lost: str) -> None:
    (hub.repos[HF] / lost).unlink()
    (hub.repos[HF] / "pytorch_model.bin").unlink()
    assert "not a checkpoint" in refusal(HF)


# --- without weights ------------------------------------------------------------------------------


def light(hub: HubServer, repo: str) -> set[str]:
    return {name for name in NEEDED[repo] if name in CHECKPOINT_FILES}


@pytest.mark.parametrize("repo", [HF, ORIGINAL, TOWER])
def test_the_small_files_are_had_alone_and_completed_later(hub: HubServer, repo: str) -> None:
    fetch = tower_folder if repo == TOWER else local_folder
    folder = fetch(repo, progress=False, weights=False)
    assert {path.name for path in folder.iterdir()} == light(hub, repo) == hub.names()
    hub.requests.clear()
    assert fetch(repo, progress=False) == folder
    assert hub.names() == NEEDED[repo] - light(hub, repo)
    hub.requests.clear()
    assert fetch(repo, progress=False, weights=False) == folder
    assert hub.downloads() == []
    assert same_content(folder, hub.repos[repo])


def test_offline_the_small_files_do_for_what_needs_no_weights(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = local_folder(HF, progress=False, weights=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert local_folder(HF, weights=False) == folder
    assert "nor in the cache" in refusal(HF)


def test_offline_small_files_that_are_not_all_there_do_not(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    hub.faults["tokenizer.model"] = Fault("status", times=99)
    assert "tokenizer.model" in refusal(HF, weights=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Unreachable, match="nor in the cache"):
        local_folder(HF, weights=False, revision=hub.commit(HF))


def test_small_files_of_a_new_commit_do_not_hide_a_whole_copy(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = local_folder(HF, progress=False)
    (hub.repos[HF] / "config.json").write_text("{} ")
    assert local_folder(HF, progress=False, weights=False) != whole
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert local_folder(HF) == local_folder(HF, weights=False) == whole


def test_a_processor_takes_no_weights(hub: HubServer, tmp_path: Path, demo_checkpoint: Path) -> None:
    """Nor those of the separate tower that its checkpoint names."""
    own = LlavaProcessor.from_pretrained(demo_checkpoint)
    raw, tower = config_to_dict(own.config, "original"), write_repository(tmp_path / "eyes", {"model.safetensors"})
    write_json(tower / "config.json", raw.pop("vision_config"))
    folder = write_repository(tmp_path / "small", {"model.safetensors"})
    write_json(folder / "config.json", raw | {"mm_vision_tower": "someone/eyes"})
    own.save_pretrained(folder, "original")
    hub.repos |= {"someone/small": folder, "someone/eyes": tower}
    assert LlavaProcessor.from_pretrained("someone/small").config.vision == own.config.vision
    assert "config.json" in hub.names()
    assert "model.safetensors" not in hub.names()


def test_data_is_checked_without_weights_and_offline(
    hub: HubServer, demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the files of LLaVA 1.5 unless a model is named."""
    hub.repos[HF] = demo_checkpoint
    (tmp_path / "train.json").write_text('[{"conversations": [["What is it?", "A bus."]]}]')
    command = ["data", "check", str(tmp_path / "train.json"), "--workers", "0"]
    assert main(command) == 0
    assert "tokenizer.json" in hub.names()
    assert "model.safetensors" not in hub.names()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(command) == main([*command, "--model_path", HF]) == 0


# --- which weights --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ("model.safetensors pytorch_model.bin model_state.pdparams", "model.safetensors"),
        ("pytorch_model.bin model_state.pdparams", "pytorch_model.bin"),
        ("model_state.pdparams config.json", "model_state.pdparams"),
        (
            "model_state-00002-of-00002.pdparams model_state-00001-of-00002.pdparams model.pdparams",
            "model_state-00001-of-00002.pdparams model_state-00002-of-00002.pdparams",
        ),
        ("model-00001-of-00002.safetensors pytorch_model.bin", "pytorch_model.bin"),  # half a set is none
        ("adapter_model.safetensors mm_projector.bin training_args.bin", ""),
        ("model-00000-of-00000.safetensors", ""),
    ],
)
def test_one_whole_set_of_weights_is_chosen(names: str, chosen: str) -> None:
    assert weight_files(set(names.split())) == chosen.split()


@given(
    st.sampled_from(["model{}.safetensors", "pytorch_model{}.bin", "model_state{}.pdparams"]),
    st.integers(1, 12),
    st.data(),
)
def test_a_set_with_a_missing_shard_is_not_chosen(pattern: str, total: int, data: st.DataObject) -> None:
    shards = [pattern.format(f"-{i:05}-of-{total:05}") for i in range(1, total + 1)]
    assert weight_files({*shards, "config.json"}) == shards
    lost = data.draw(st.sampled_from(shards))
    assert weight_files({*shards, "config.json"} - {lost}) == []


# --- connections that break -----------------------------------------------------------------------


def test_a_link_that_another_process_made_stays(tmp_path: Path) -> None:
    """It may be reading through it."""
    blob, pointer = tmp_path / "blobs" / "0a", tmp_path / "snapshots" / "config.json"
    for path in (blob, pointer):
        path.parent.mkdir()
    blob.write_text("{}")
    transfer._link(blob, pointer)
    first = pointer.lstat().st_ino
    transfer._link(blob, pointer)
    assert pointer.lstat().st_ino == first
    other = blob.with_name("0b")
    transfer._link(other, pointer)
    assert os.readlink(pointer) == "../blobs/0b"


@pytest.mark.parametrize("kind", ["cut", "reset"])
def test_a_cut_transfer_continues_where_it_was_cut(hub: HubServer, waits: list[float], kind: str) -> None:
    hub.faults[SHARD] = Fault(kind, times=2)  # type: ignore[arg-type]
    folder = local_folder(HF, progress=False)
    size = (hub.repos[HF] / SHARD).stat().st_size
    assert [request.first_byte for request in hub.downloads(SHARD)] == [
        0,
        size // 2,
        size // 2 + (size - size // 2) // 2,
    ]
    assert same_content(folder, hub.repos[HF])
    assert waits == [1, 1]  # no patience is lost as long as something arrives


def test_a_server_without_ranges_begins_again(hub: HubServer, waits: list[float]) -> None:
    hub.faults[SHARD] = Fault("cut", times=1)
    hub.ignore_ranges = True
    assert same_content(local_folder(HF, progress=False), hub.repos[HF])
    assert len(hub.downloads(SHARD)) == 2


def test_a_busy_server_is_asked_again_with_growing_pauses(hub: HubServer, waits: list[float]) -> None:
    hub.faults[SHARD] = Fault("status", times=3, status=503)
    assert same_content(local_folder(HF, progress=False), hub.repos[HF])
    assert waits == [2, 4, 8]


def test_a_server_that_stays_busy_is_given_up_and_what_came_is_kept(hub: HubServer, waits: list[float]) -> None:
    hub.faults[SHARD] = Fault("cut", times=1)
    hub.faults["config.json"] = Fault("status", times=99, status=429)
    message = refusal(HF)
    assert "config.json" in message
    assert "HTTP status 429" in message
    assert "run the same again" in message
    del hub.faults["config.json"]
    hub.faults[SHARD] = Fault("cut", times=99, at=0)
    assert f"at 0 of {(hub.repos[HF] / SHARD).stat().st_size:,} bytes of {SHARD}" in refusal(HF)


def test_a_silent_server_is_not_waited_for(hub: HubServer, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.faults[SHARD] = Fault("stall", times=1)
    began = time.monotonic()
    assert same_content(local_folder(HF, progress=False), hub.repos[HF])
    assert time.monotonic() - began < 2


def test_a_killed_download_is_continued_by_the_next_process(hub: HubServer, tmp_path: Path) -> None:
    hub.faults[SHARD] = Fault("stall", times=1)
    process = subprocess.Popen([sys.executable, "-c", f"from paddle_llava.hub import *; local_folder({HF!r})"])
    half = (hub.repos[HF] / SHARD).stat().st_size // 2
    deadline = time.monotonic() + 8
    while not (there := sum(p.stat().st_size for p in (tmp_path / "home").rglob("*.incomplete"))) > half * 0.8:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.requests.clear()
    folder = local_folder(HF, progress=False)
    assert there <= hub.downloads(SHARD)[0].first_byte <= half
    assert same_content(folder, hub.repos[HF])


# --- files that are wrong -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [SHARD, "config.json"])  # SHA-256, git's object name
def test_a_corrupt_file_is_downloaded_again(hub: HubServer, name: str) -> None:
    hub.faults[name] = Fault("corrupt", times=1)
    folder = local_folder(HF, progress=False)
    assert [request.first_byte for request in hub.downloads(name)] == [0, 0]
    assert same_content(folder, hub.repos[HF])


@pytest.mark.parametrize("name", [SHARD, "config.json"])
@pytest.mark.parametrize("kind", ["corrupt", "truncate"])
def test_a_file_that_stays_wrong_is_named_and_not_kept(
    hub: HubServer, waits: list[float], tmp_path: Path, name: str, kind: str
) -> None:
    hub.faults[name] = Fault(kind, times=99)  # type: ignore[arg-type]
    assert f"{name} arrived damaged twice" in refusal(HF)
    etag = hub.files(HF)[name].etag
    assert not [path for path in blobs(tmp_path) if path.name.startswith(etag)]
    assert not list((tmp_path / "home").rglob(name))
    hub.faults.clear()
    assert same_content(local_folder(HF, progress=False), hub.repos[HF])


def test_a_partial_file_of_other_bytes_is_not_built_upon(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "home/hub" / f"models--{HF.replace('/', '--')}" / "blobs"
    folder.mkdir(parents=True)
    (folder / f"{hub.files(HF)[SHARD].etag}.incomplete").write_bytes(b"something else")
    assert same_content(local_folder(HF, progress=False), hub.repos[HF])
    assert [request.first_byte for request in hub.downloads(SHARD)] == [14, 0]


def test_an_empty_file_is_a_file(hub: HubServer) -> None:
    (hub.repos[HF] / "added_tokens.json").write_bytes(b"")
    assert (local_folder(HF, progress=False) / "added_tokens.json").read_bytes() == b""


def test_two_at_once_download_each_file_once(hub: HubServer) -> None:
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: local_folder(HF, progress=False), range(2)))
    assert folders[0] == folders[1]
    assert sorted(request.name for request in hub.downloads()) == sorted(HF_NEEDED)
    assert same_content(folders[0], hub.repos[HF])


# --- without a network ----------------------------------------------------------------------------


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_takes_the_cache_without_a_request(
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    switch: str,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    online = local_folder(HF, progress=False)
    monkeypatch.setenv(switch, "1")
    hub.requests.clear()
    assert local_folder(HF) == online
    assert local_folder(HF, revision=hub.commit(HF)) == online
    assert hub.requests == []
    assert capsys.readouterr().err == ""
    assert not recwarn.list


def test_offline_without_the_cache_says_so(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    message = refusal(HF)
    assert "no such folder, nor in the cache" in message
    assert "unset HF_HUB_OFFLINE" in message
    assert hub.requests == []


def test_offline_with_half_a_checkpoint_is_without(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    (local_folder(HF, progress=False) / SHARD).resolve().unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "nor in the cache" in refusal(HF)


@pytest.mark.parametrize("outage", ["unreachable", "busy"])
def test_an_outage_falls_back_on_the_cache_and_says_so(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, outage: str, recwarn: pytest.WarningsRecorder
) -> None:
    online = local_folder(HF, progress=False)
    if outage == "unreachable":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    hub.listing_status = 503
    assert local_folder(HF, progress=False) == online
    assert local_folder(HF, progress=False) == online
    (said,) = (str(warning.message) for warning in recwarn)
    assert "using the copy in the cache" in said


def test_a_cache_that_cannot_be_written_to_serves(hub: HubServer, tmp_path: Path) -> None:
    folder = local_folder(HF, progress=False)
    shutil.rmtree(tmp_path / "home/hub" / f"models--{HF.replace('/', '--')}" / "refs")
    (tmp_path / "home/hub" / f"models--{HF.replace('/', '--')}" / "refs").write_text("in the way")
    assert local_folder(HF, progress=False) == folder


# --- the token ------------------------------------------------------------------------------------


def test_the_token_goes_to_the_endpoint_and_nowhere_else(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    hub.gated[HF] = {"hf_good"}
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    hub.faults[SHARD] = Fault("cut", times=1)
    local_folder(HF, progress=False)
    assert {request.token for request in hub.requests if request.host == "hub"} == {"Bearer hf_good"}
    assert {request.token for request in hub.requests if request.host == "storage"} == {None}


# --- errors a person can act on -------------------------------------------------------------------


def test_gated(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated[HF] = set()
    for token in ("", "hf_good"):
        monkeypatch.setenv("HF_TOKEN", token)
        message = refusal(HF)
        assert f"ask for it at {hub.endpoint}/{HF}" in message
        assert "hf auth login" in message


@pytest.mark.parametrize(
    ("token", "told"),
    [
        ("hf_bad", "does not accept the access token"),
        ("hf_b\x01ad", "characters that no token has"),
        ("hf_bäd", "characters that no token has"),
    ],
)
def test_a_bad_token_is_told_and_not_shown(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, token: str, told: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    message = refusal(HF)
    assert told in message
    assert token not in message


@pytest.mark.parametrize("token", [None, "hf_good"])  # 401 or 404, as on the real one
def test_an_unknown_name_with_the_nearest(hub: HubServer, monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    message = refusal("liuhaotian/llava-v1.5-7B")
    assert "no such folder, nor such a model" in message
    assert "did you mean 'liuhaotian/llava-v1.5-7b'?" in message
    assert "did you mean" not in refusal("liuhaotian/llava-v1.6-vicuna-7b")


def test_a_revision_that_is_not_there(hub: HubServer) -> None:
    assert "no branch, tag or commit 'v9'" in refusal(HF, revision="v9")
    assert "not a revision" in refusal(HF, revision="../../main")
    assert "not a revision" in refusal(HF, revision="main/../../../evil")


@pytest.mark.parametrize(
    ("endpoint", "told"),
    [
        ("http://127.0.0.1:9", "no connection to http://127.0.0.1:9"),
        ("huggingface.co", "not a web address"),
        ("ftp://127.0.0.1", "not a web address"),
        ("http://127.0.0.1:none", "not a web address"),
        ("http://[::1", "not a web address"),
    ],
)
def test_an_endpoint_that_does_not_work(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, endpoint: str, told: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert told in refusal(HF)


@pytest.mark.parametrize("status", [400, 404, 429, 500])
def test_an_endpoint_that_refuses(hub: HubServer, status: int) -> None:
    hub.listing_status = status
    assert f"answers with HTTP status {status}" in refusal(HF)


def test_too_little_room_is_told_before_the_download(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    message = refusal(HF)
    assert "no room in the cache" in message
    assert "1.00kB are free" in message
    assert hub.downloads() == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_fills_up_meanwhile(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "home/hub" / f"models--{HF.replace('/', '--')}" / "blobs"
    folder.mkdir(parents=True)
    (folder / f"{hub.files(HF)[SHARD].etag}.incomplete").symlink_to("/dev/full")
    assert "no room in the cache" in refusal(HF)


def test_a_cache_that_cannot_be_made(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    assert "cannot use the cache" in refusal(HF)


# --- folders and names ----------------------------------------------------------------------------


def test_a_folder_is_returned_as_it_is(tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "liuhaotian" / "llava-v1.5-7b").mkdir(parents=True)
    (tmp_path / "liuhaotian" / "llava-v1.5-7b" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_folder(ORIGINAL) == Path(ORIGINAL)
    assert local_folder(tmp_path / ORIGINAL) == tower_folder(str(tmp_path / ORIGINAL)) == tmp_path / ORIGINAL
    assert local_folder(f"~/{ORIGINAL}") == tmp_path / ORIGINAL
    assert hub.requests == []


def test_what_is_wrong_with_a_path(tmp_path: Path, hub: HubServer) -> None:
    assert "no config.json" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "a file; give the folder" in refusal(tmp_path / "config.json")
    assert "no such folder" in refusal(tmp_path / "nowhere")
    assert "no such folder" in refusal(Path("owner/nowhere"))
    assert hub.requests == []
    assert "no such folder, nor a hub name" in refusal(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "llava",
        "./a/b",
        "a/b/c",
        "a\\b",
        "a/..",
        "a--b/c",
        "a/b\n",
        "a\0/b",
        "https://huggingface.co/a/b",
        "x" * 9999,
    ],
)
def test_what_is_neither_a_folder_nor_a_name(name: str, hub: HubServer) -> None:
    with pytest.raises(LlavaError, match="no such folder, nor a hub name of the form owner/name"):
        local_folder(name)
    assert hub.requests == []


def test_a_name_without_its_owner_gets_the_nearest(hub: HubServer) -> None:
    assert "did you mean 'liuhaotian/llava-v1.5-13b'?" in refusal("llava-v1.5-13b")
    assert "did you mean 'paddlemix/llava/llava-v1.5-7b'?" in refusal("paddlemix/llava/llava-v1.5-7")


def test_a_paddle_name_is_the_same_weights_and_says_so_once(hub: HubServer, recwarn: pytest.WarningsRecorder) -> None:
    folder = local_folder("paddlemix/llava/llava-v1.5-7b", progress=False)
    assert (
        folder
        == local_folder("paddlemix/llava/llava-v1.5-7b", progress=False)
        == local_folder(ORIGINAL, progress=False)
    )
    (said,) = (str(warning.message) for warning in recwarn)
    assert ORIGINAL in said
    assert PADDLE_NAMES["paddlemix/llava/llava-v1.6-vicuna-13b"] == "liuhaotian/llava-v1.6-vicuna-13b"


@pytest.mark.parametrize("name", ["paddlemix/llava/vicuna-13b-v1.5", "lmsys/vicuna-7b-v1.5"])
def test_vicuna_alone_is_refused(name: str, hub: HubServer) -> None:
    assert "sees no images" in refusal(name)
    assert hub.requests == []


# --- a process of its own, as a user starts it ----------------------------------------------------


def test_a_fresh_process_with_a_terminal_shows_a_bar_on_stderr(hub: HubServer) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    script = f"from paddle_llava.hub import *; print(local_folder({HF!r}))"
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=follower, timeout=20)
    os.close(follower)
    shown = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert done.returncode == 0
    assert Path(done.stdout.decode().strip(), "config.json").is_file()
    assert f"{HF}: downloading 30" in shown
    assert "100%" in shown
    assert hub.names() == HF_NEEDED


def test_the_commands_tell_it_as_notes(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, with the same beginning as all that the commands say."""
    name = "paddlemix/llava/llava-v1.5-7b"
    assert main(["convert", name, "target"]) == 2  # its files are no real ones
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"llava: note: {name}: using the same weights")
    assert lines[1].startswith(f"llava: note: {ORIGINAL}: downloading ")
    assert all(line.startswith("llava: ") for line in lines)
    assert sum(name in line for line in lines) == 1


def test_importing_is_light() -> None:
    script = "import sys, paddle_llava.hub; sys.exit('huggingface_hub' in sys.modules or 'paddle' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=20).returncode == 0


def test_the_list_of_files_names_no_code() -> None:
    assert all(name.endswith((".json", ".model", ".jinja")) for name in CHECKPOINT_FILES)
