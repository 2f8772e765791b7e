"""What `llava doctor` finds, on this machine and on ones with something wrong."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from paddle_llava import doctor, environment
from paddle_llava.cli import main
from paddle_llava.doctor import Finding, examine, print_findings
from terminal import Terminal


def named(findings: list[Finding], name: str) -> Finding:
    found = [finding for finding in findings if finding.name == name]
    assert len(found) == 1, name
    return found[0]


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_everything_is_examined_here() -> None:
    findings, usable = examine()
    assert usable
    assert {finding.topic for finding in findings} == {
        *("versions", "devices", "number formats", "speed", "processor", "environment", "memory", "hub"),
    }
    assert all(finding.value for finding in findings)
    assert all(finding.fix for finding in findings if finding.state == "problem")
    assert "GFLOP/s" in named(findings, "matrix product").value
    assert "GB/s" in named(findings, "reading weights").value
    assert named(findings, "float32").state == "ok"
    assert named(findings, "PaddlePaddle").value.startswith("runs on ")


def test_measuring_takes_less_than_a_second_of_two_processors() -> None:
    list(doctor._speed())
    start = time.process_time()  # whatever else the machine is busy with
    assert [finding.topic for finding in doctor._speed()] == ["speed", "speed"]
    assert time.process_time() - start < 2


def test_a_pipe_gets_a_line_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    print_findings([Finding("hub", "cache", "full", "problem", "free some"), Finding("memory", "RAM", "64 GB")])
    assert capsys.readouterr().out == "hub: cache: full [problem] -> free some\nmemory: RAM: 64 GB\n"


def test_json_and_the_exit_code(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    found = json.loads(captured.out)
    assert {"topic", "name", "value", "state", "fix"} == set(found[0])
    assert {finding["state"] for finding in found} <= {"ok", "note", "problem"}


def test_a_table_at_a_terminal() -> None:
    script = (
        "from paddle_llava.doctor import *\n"
        "print_findings([Finding('hub', 'cache', '[red]full[/red]', 'note', 'free some'), Finding('hub', 'b', 'fine')])"
    )
    with Terminal(sys.executable, "-c", script, TERM="dumb") as terminal:
        terminal.wait_for("hub  cache  [red]full[/red] -> free some")
        terminal.wait_for("b      fine")


def test_a_paddle_that_does_not_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise ImportError("libmkl.so: cannot open\nshared object")

    monkeypatch.setattr(doctor, "select_device", broken)
    assert main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert "libmkl.so: cannot open shared object" in captured.out
    assert "pip install" in captured.out
    assert "memory: RAM" in captured.out
    assert captured.err == ""


def test_a_part_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: 1 / 0)
    findings, usable = examine()
    assert usable
    assert "ZeroDivisionError" in named(findings, "examination").value


@pytest.mark.parametrize(("driver", "wheel"), [("12.8", "cu126"), ("12.2", "cu118")])
def test_a_gpu_that_this_paddle_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str, wheel: str
) -> None:
    program(
        tmp_path,
        "nvidia-smi",
        f'if [ $# = 0 ]; then echo "| Driver Version: 570  CUDA Version: {driver} |"; else echo "A100, 40 GiB"; fi',
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(doctor, "_version", lambda package: "")
    finding = named(list(doctor._accelerators()), "GPU")
    assert finding.state == "problem"
    assert "A100" in finding.value
    assert "paddlepaddle-gpu" in finding.fix
    assert f"/{wheel}/" in finding.fix


def test_a_gpu_program_without_a_gpu_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "nvidia-smi", "echo no devices were found; exit 9")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(doctor, "_version", lambda package: "")
    assert list(doctor._accelerators()) == []


def test_an_npu_without_its_plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "npu-smi", "echo 910B")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(doctor, "_version", lambda package: "")
    assert "paddle-custom-npu" in named(list(doctor._accelerators()), "NPU").fix


@pytest.mark.parametrize(
    ("value", "applied", "state", "word"),
    [
        ("4", {"OMP_NUM_THREADS": "4"}, "ok", "set by paddle-llava"),
        ("4", {}, "ok", "set by you"),
        ("1", {}, "note", "4 is fastest"),
        (None, {}, "problem", "not set"),
    ],
)
def test_environment_settings(
    monkeypatch: pytest.MonkeyPatch, value: str | None, applied: dict[str, str], state: str, word: str
) -> None:
    monkeypatch.setattr(environment, "recommended", lambda: {"OMP_NUM_THREADS": "4"})
    monkeypatch.setattr(environment, "paddle_came_first", lambda: False)
    monkeypatch.setattr(environment, "applied", applied)
    monkeypatch.setattr(environment, "before", {"OMP_NUM_THREADS"})
    if value is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    finding = named(list(doctor._environment()), "OMP_NUM_THREADS")
    assert (finding.state, bool(finding.fix)) == (state, state != "ok")
    assert word in finding.value


def test_opting_out_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "recommended", lambda: {"OMP_NUM_THREADS": "4"})
    monkeypatch.setenv(environment.OPT_OUT, "1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert named(list(doctor._environment()), "OMP_NUM_THREADS").fix == f"unset {environment.OPT_OUT}"


def test_settings_that_came_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "paddle_came_first", lambda: True)
    assert named(list(doctor._environment()), "order").state == "problem"


def test_the_hub_as_it_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hf-mirror.com")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not yet" / "there"))
    findings = list(doctor._hub())
    assert named(findings, "address").value == "https://hf-mirror.com (offline: only the cache is used)"
    assert str(tmp_path) in named(findings, "cache").value
    monkeypatch.setenv("HF_ENDPOINT", "hf-mirror")
    assert named(list(doctor._hub()), "address").state == "problem"
