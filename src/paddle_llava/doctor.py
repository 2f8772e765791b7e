"""`llava doctor`: what is here, what is fast, what is missing, and how to mend it."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from paddle_llava import environment, hub
from paddle_llava.console import importing_paddle
from paddle_llava.device import DTYPES, available_devices, compute_dtype, select_device
from paddle_llava.errors import LlavaError

PACKAGES = (
    *("numpy", "Pillow", "tokenizers", "sentencepiece", "huggingface_hub", "httpx", "typer", "rich"),
    "paddle-llava",
)
PADDLES = ("paddlepaddle", "paddlepaddle-gpu", "paddlepaddle-xpu")
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")
GB_OF_7B, GB_OF_7B_INT8 = 28.3, 7.2
"""Weights of the 7B models in float32, and in OpenVINO's 8 bits; every generated token reads nearly all of them."""


@dataclass(frozen=True)
class Finding:
    """One line of the report; `problem` is something to mend, and `fix` says how."""

    topic: str
    name: str
    value: str
    state: Literal["ok", "note", "problem"] = "ok"
    fix: str = ""


def examine() -> tuple[list[Finding], bool]:
    """Everything that can be said, and whether Paddle runs here at all."""
    try:
        with importing_paddle():
            device = select_device()
            import paddle

            usable = paddle.to_tensor([[2.0]]).matmul(paddle.to_tensor([[3.0]])).item() == 6.0
        running = Finding("devices", "PaddlePaddle", f"runs on {device}")
    except Exception as error:  # whatever a broken installation does, the rest of the report is wanted all the more
        usable = False
        reason = str(error) if isinstance(error, LlavaError) else f"{type(error).__name__}: {error}"
        fix = "python -m pip install --force-reinstall 'paddlepaddle>=3.3,<3.4'"
        running = Finding("devices", "PaddlePaddle", f"does not run: {_brief(reason)}", "problem", fix)
    with_paddle = (_devices, _number_formats, _speed) if usable else ()
    findings = [*_sections(_versions), running]
    return [*findings, *_sections(_accelerators, *with_paddle, _processor, _environment, _memory, _hub)], usable


def _sections(*sections: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A doctor does not die of what it examines: a part that fails is a finding too."""
    for section in sections:
        try:
            yield from section()
        except Exception as error:
            topic = section.__name__.strip("_").replace("_", " ")
            reason = _brief(f"{type(error).__name__}: {error}")
            yield Finding(topic, "examination", f"failed: {reason}", "problem", "please report it")


def print_findings(findings: list[Finding], *, as_json: bool = False) -> None:
    """To stdout: JSON, a table at a terminal, or else a plain line each."""
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    elif sys.stdout.isatty():
        _print_table(findings)
    else:
        for finding in findings:
            mark = "" if finding.state == "ok" else f" [{finding.state}]"
            print(f"{finding.topic}: {finding.name}: {finding.value}{mark}{_fix(finding)}")


def _print_table(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "note": "yellow", "problem": "red"}
    table = Table("", "", "", box=None, show_header=False, pad_edge=False)
    topic = ""
    for finding in findings:
        if topic and finding.topic != topic:
            table.add_section()
            table.add_row()
        first = Text(finding.topic if finding.topic != topic else "", style="bold")
        value = Text(finding.value + _fix(finding), style=colours[finding.state])
        table.add_row(first, Text(finding.name), value)
        topic = finding.topic
    Console().print(table)


def _fix(finding: Finding) -> str:
    return f" -> {finding.fix}" if finding.fix else ""


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "Python", f"{platform.python_version()} on {platform.platform()}")
    paddles = [package for package in PADDLES if _version(package)]
    for package in paddles:
        yield Finding("versions", package, _version(package))
    if not paddles:
        fix = "python -m pip install 'paddlepaddle>=3.3,<3.4'"
        yield Finding("versions", "paddlepaddle", "missing", "problem", fix)
    if found := _version("openvino"):
        yield Finding("versions", "openvino", found)
    else:
        yield Finding(
            "versions", "openvino", "missing: Paddle runs on the CPU", "note", "python -m pip install openvino"
        )
    for package in PACKAGES:
        found = _version(package)
        fix = "" if found else f"python -m pip install {package}"
        yield Finding("versions", package, found or "missing", "ok" if found else "problem", fix)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _devices() -> Iterator[Finding]:
    import paddle

    for kind in available_devices():
        names = [kind]
        if kind == "gpu":
            count = paddle.device.cuda.device_count()
            names = [f"gpu:{index} {paddle.device.cuda.get_device_name(index)}" for index in range(count)]
        yield Finding("devices", "available", ", ".join(names))


def _accelerators() -> Iterator[Finding]:
    """What the machine has, whether Paddle can use it or not."""
    seen = _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    if seen and not _version("paddlepaddle-gpu"):
        driver = re.search(r"CUDA Version: (\d+)\.(\d+)", _output("nvidia-smi"))
        wheel = "cu126" if driver and (int(driver[1]), int(driver[2])) >= (12, 6) else "cu118"
        fix = (
            "python -m pip uninstall -y paddlepaddle && python -m pip install 'paddlepaddle-gpu>=3.3,<3.4' "
            f"-i https://www.paddlepaddle.org.cn/packages/stable/{wheel}/"
        )
        yield Finding("devices", "GPU", f"{'; '.join(seen.splitlines())}: not used, Paddle is for CPUs", "problem", fix)
    elif seen:
        yield Finding("devices", "GPU", "; ".join(seen.splitlines()))
    if _output("npu-smi", "info") and not _version("paddle-custom-npu"):
        fix = "install paddle-custom-npu for your CANN version, see PaddleCustomDevice/backends/npu"
        yield Finding("devices", "NPU", "an Ascend NPU: not used, Paddle has no plug-in for it", "problem", fix)


def _output(*command: str) -> str:
    """What a program prints; nothing when there is no such program or it fails."""
    program = shutil.which(command[0])
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=5, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> Iterator[Finding]:
    info = environment.cpu_info()
    flags = info.get("flags", info.get("Features", "")).split()
    model = info.get("model name") or platform.processor() or platform.machine()
    known = [name for name in INSTRUCTION_SETS if name in flags]
    yield Finding("processor", "model", model)
    yield Finding("processor", "cores", str(environment.physical_cores()))
    yield Finding("processor", "instruction sets", ", ".join(known) or "unknown")


def _environment() -> Iterator[Finding]:
    if environment.paddle_came_first():
        fix = "import paddle_llava before paddle"
        yield Finding("environment", "order", "Paddle was imported first: settings came too late", "problem", fix)
    for name, best in environment.recommended().items():
        value = os.environ.get(name)
        if value is None:
            fix = f"unset {environment.OPT_OUT}" if os.environ.get(environment.OPT_OUT) else f"export {name}={best}"
            yield Finding("environment", name, f"not set; {best} is fastest", "problem", fix)
        elif environment.applied.get(name) == value:
            yield Finding("environment", name, f"{value}, set by paddle-llava")
        elif name not in environment.before:
            fix = f"unset {environment.OPT_OUT}"
            yield Finding("environment", name, f"{value}, set by Paddle; {best} is fastest", "problem", fix)
        elif value == best:
            yield Finding("environment", name, f"{value}, set by you")
        else:
            fix = f"unset {name}"
            yield Finding("environment", name, f"{value}, set by you; {best} is fastest", "note", fix)


def _number_formats() -> Iterator[Finding]:
    import paddle

    for dtype in DTYPES:
        computed, reason = compute_dtype(dtype)
        try:
            square = paddle.ones([16, 16], dtype="float32").astype(dtype)
            works = float(square.matmul(square)[0, 0].astype("float32")) == 16.0
        except Exception:  # Paddle has no one type for a kernel that it lacks
            works = False
        if works and computed == dtype:
            yield Finding("number formats", dtype, "computes here")
        else:
            yield Finding("number formats", dtype, reason or f"cannot compute here; use --dtype {DTYPES[0]}", "note")


def _speed() -> Iterator[Finding]:
    """Two quick measurements, half a second in all; other programs that run meanwhile lower them."""
    import paddle

    on_cpu = paddle.get_device() == "cpu"
    cores = environment.physical_cores() if on_cpu else 1
    side = 1024 if on_cpu else 8192
    left = paddle.ones([side, side])
    gflops = 2e-9 * side**3 / _best_seconds(partial(left.matmul, left))
    flags = environment.cpu_info().get("flags", "").split()
    expected = cores * (50 if "avx512f" in flags else 25)
    value = f"{gflops:.0f} GFLOP/s in float32"
    if on_cpu and gflops < expected:
        fix = "see 'environment' below, and whether other programs keep the processor busy"
        yield Finding("speed", "matrix product", f"{value}: slow for {cores} cores", "note", fix)
    else:
        yield Finding("speed", "matrix product", value)

    weights = paddle.ones([4096, 8192])
    row = paddle.ones([1, 4096])
    gb_per_second = 1e-9 * 4 * 4096 * 8192 / _best_seconds(partial(row.matmul, weights))
    value = f"{gb_per_second:.0f} GB/s: a 7B model answers at most {gb_per_second / GB_OF_7B:.1f} tokens/s in float32"
    if on_cpu:
        value += f", {gb_per_second / GB_OF_7B_INT8:.1f} in OpenVINO's 8 bits"
    yield Finding("speed", "reading weights", value, "ok" if gb_per_second > 2 * GB_OF_7B else "note")


def _best_seconds(run: Callable[[], Any], budget: float = 0.2) -> float:
    """The shortest of as many runs as fit in `budget` seconds, after one to warm up."""
    import paddle

    def synchronize() -> None:
        if paddle.get_device() != "cpu":
            paddle.device.synchronize()

    run()
    synchronize()
    best, end = float("inf"), time.perf_counter() + budget
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def _memory() -> Iterator[Finding]:
    try:
        in_all = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (AttributeError, OSError, ValueError):  # Windows
        return
    value = f"{in_all:.0f} GB"
    ways = {"float32": GB_OF_7B + 2, "OpenVINO's 8 bits": GB_OF_7B_INT8 + 2}
    too_much = [f"{way} ({needed:.0f} GB)" for way, needed in ways.items() if in_all < needed]
    if too_much:
        value += f": too little for a 7B model in {' or '.join(too_much)}"
    yield Finding("memory", "RAM", value, "note" if too_much else "ok")


def _hub() -> Iterator[Finding]:
    try:
        cache, endpoint = hub.cache_folder(), hub.hub_endpoint()
    except LlavaError as error:
        yield Finding("hub", "address", str(error), "problem", "unset HF_ENDPOINT")
        return
    offline = hub.is_offline()
    yield Finding("hub", "address", f"{endpoint}{' (offline: only the cache is used)' if offline else ''}")
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(there).free / 1e9
    value, fix = f"{cache}, {free:.0f} GB free", ""
    if free < 15:
        value, fix = f"{value}: too little for a 7B model (14 GB)", "free some, or set HF_HOME to another disk"
    yield Finding("hub", "cache", value, "note" if fix else "ok", fix)
    if not os.access(there, os.W_OK):
        yield Finding("hub", "cache", f"{there} cannot be written", "problem", "set HF_HOME to another place")


def _brief(text: str) -> str:
    return " ".join(text.split())[:300]
