"""Peers of a comparison: each in a process of its own, so that neither's threads nor memory touch the other's.

The parent imports none of them. It calls functions of the modules beside this one by name, and only one peer works
at a time.
"""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import pkgutil
import platform
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from shutil import rmtree
from statistics import median
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

GIB = 2**30
# Thread pools spin for a while after their last work (up to 200 ms), on the cores that the next peer needs.
QUIET_SECONDS = 0.4


class Peer:
    """A process with one object of the class `name`, "module:Class"; a context manager that ends it."""

    def __init__(self, name: str) -> None:
        # Spawned, not forked: the child's memory is then its own from the first byte.
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self.import_seconds: float = self._pool.submit(_begin, name).result()
        self.pid: int = self._pool.submit(os.getpid).result()

    def call(self, method: str, *arguments: Any) -> Any:
        """What `method` of the object returns or raises; waits until its threads have come to rest."""
        result = self._pool.submit(_call, method, arguments).result()
        time.sleep(QUIET_SECONDS)
        return result

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


class Memory(NamedTuple):
    """Peaks of a process in bytes: all its resident pages, and those without the mapped files among them."""

    resident: int
    private: int


@contextmanager
def watched(pid: int) -> Iterator[list[Memory]]:
    """Gives a list that holds the process's peak memory when the block is left.

    The kernel keeps the peak of resident pages; of private ones it tells the present number, looked at every 5 ms.
    """
    result: list[Memory] = []
    private, over = 0, threading.Event()

    def look() -> None:
        nonlocal private
        while not over.wait(0.005):
            private = max(private, status(pid).get("RssAnon", 0))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield result
    finally:
        over.set()
        watcher.join()
        result.append(Memory(status(pid).get("VmHWM", 0), private))


def status(pid: int) -> dict[str, int]:
    """The kernel's account of a process's memory, in bytes; nothing of one that has ended."""
    rows = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if row[-1] == "kB"}


_objects: list[Any] = []  # of this process, if it is a peer's


def _begin(name: str) -> float:
    start = time.perf_counter()
    _objects.append(pkgutil.resolve_name(name)())
    return time.perf_counter() - start


def _call(method: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(_objects[0], method)(*arguments)


def prepare(threads: int) -> None:
    """What all peers start with: the same number of threads, no network, no progress bars."""
    os.environ |= {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


@contextmanager
def scratch_folder(parent: Path | None) -> Iterator[Path]:
    """A new folder under `parent` (default: the system's temporary folder), removed at the end."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(prefix="paddle-llava-", dir=parent))
    try:
        yield folder
    finally:
        rmtree(folder, ignore_errors=True)


class Neighbours:
    """How busy other programs kept the processor since this object was made, peers that have ended not among them."""

    def __init__(self) -> None:
        self._start = self._seconds()

    def cores(self) -> float:
        """The number of cores that they took, on average."""
        (busy, mine, now), (busy_then, mine_then, then) = self._seconds(), self._start
        return max(0.0, (busy - busy_then - (mine - mine_then)) / (now - then))

    def _seconds(self) -> tuple[float, float, float]:
        counts = _read("/proc/stat").partition("\n")[0].split()[1:]
        user, nice, system, _idle, _waiting, irq, soft_irq, *_ = map(int, counts)
        busy = (user + nice + system + irq + soft_irq) / os.sysconf("SC_CLK_TCK")
        *mine, now = os.times()
        return busy, sum(mine), now


def machine(threads: int) -> str:
    """The machine and the versions, in a few lines of Markdown."""
    info = {key.strip(): value for key, _, value in (x.partition(": ") for x in _read("/proc/cpuinfo").splitlines())}
    memory = int(_read("/proc/meminfo").split()[1]) / 2**20
    units = [unit for unit in ("avx2", "avx512f", "amx_bf16") if unit in info.get("flags", "").split()]
    packages = ("paddlepaddle", "torch", "transformers", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return (
        f"- {date.today()}; {os.cpu_count()} cores, {info.get('model name', platform.machine())} "
        f"({', '.join(units)}), {memory:.0f} GiB; {threads} threads for each\n"
        f"- Python {platform.python_version()}, {versions}\n"
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        raise SystemExit(f"{path}: these benchmarks read Linux's /proc ({error.strerror})") from None


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return f"| {first[0]:<{first[1]}} | " + " | ".join(f"{cell:>{width}}" for cell, width in others) + " |"

    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:]), ""])
    return "\n".join([line(header), rule, *map(line, rows)])


def spread(values: Sequence[float], digits: int = 0) -> str:
    """The median, and the least and greatest value."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"
