"""Process settings that Paddle reads once, at its import or its first matrix product.

Paddle sets `OMP_NUM_THREADS=1` when it is unset, and the MKL in its wheel takes its slow generic path
on AMD processors; on two AVX-512 AMD cores the two settings below make an fp32 product about 9 times
faster. Both are only defaults: what the user has set stays.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

applied: dict[str, str] = {}
"""The variables that `prepare` has set."""

before = frozenset(os.environ)
"""Names of the variables that were there before: the user's, unless Paddle was imported first."""

OPT_OUT = "PADDLE_LLAVA_KEEP_ENVIRONMENT"


@cache
def cpu_info() -> dict[str, str]:
    """The first processor's fields of `/proc/cpuinfo` (`vendor_id`, `model name`, `flags`, ...); {} elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    rows = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in rows}


def physical_cores() -> int:
    """Cores that this process may run on, hyper-threads counted once."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1
    cores = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(topology.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return len(cores)


def recommended() -> dict[str, str]:
    """The environment variables that make Paddle fast on this processor."""
    variables = {"OMP_NUM_THREADS": str(physical_cores())}
    info = cpu_info()
    flags = info.get("flags", "").split()
    if info.get("vendor_id") == "AuthenticAMD":
        if "avx512f" in flags:
            variables["MKL_DEBUG_CPU_TYPE"] = "7"
        elif "avx2" in flags:
            variables["MKL_DEBUG_CPU_TYPE"] = "5"
    return variables


def prepare() -> None:
    """Set what `recommended` names, unless set already or opted out. Without effect once Paddle has run."""
    if not os.environ.get(OPT_OUT):
        applied.update({name: value for name, value in recommended().items() if name not in os.environ})
        os.environ.update(applied)


@contextmanager
def threads_of_children(number: int) -> Iterator[None]:
    """Processes that are started within compute with this many threads."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(number)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def paddle_came_first() -> bool:
    """Whether `paddle` was imported before this package, so that the settings may have come too late."""
    return _PADDLE_CAME_FIRST


_PADDLE_CAME_FIRST = "paddle" in sys.modules
