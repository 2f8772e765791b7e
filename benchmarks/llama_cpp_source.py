"""llama.cpp for this very processor, built once from the source package of `llama-cpp-python`, which carries it.

    python benchmarks/llama_cpp_source.py

It needs pip with its index, CMake and a C++ compiler, takes ten minutes or so of two cores, and stays in
`~/.cache/paddle-llava-bench` (or below `XDG_CACHE_HOME`), for each kind of processor in a folder of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

from paddle_llava.environment import cpu_info

VERSION = "0.3.36"
UNUSED = ("TESTS", "EXAMPLES", "SERVER", "APP")


def cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    # Libraries for one processor are slow on another, or end the process there: a machine in the cloud may change it.
    processor = zlib.crc32(cpu_info().get("flags", "").encode())
    return home / "paddle-llava-bench" / f"llama-cpp-{VERSION}-{processor:08x}"


def prepare_import() -> None:
    """Let `import llama_cpp` and `import gguf` find the packages of the sources, and the first the libraries."""
    libraries = str(cache() / "build" / "bin")
    os.environ |= {"LLAMA_CPP_LIB_PATH": libraries, "MTMD_CPP_LIB": libraries}
    sys.path += [str(folder) for folder in (_package(), _source() / "gguf-py", cache() / "packages")]


def _package() -> Path:
    return cache() / f"llama_cpp_python-{VERSION}"


def _source() -> Path:
    return _package() / "vendor" / "llama.cpp"


def build() -> None:
    """Build it unless it is there."""
    done, folder = cache() / "done", cache()
    if done.is_file():
        return
    print(f"building llama.cpp {VERSION} in {folder}, this once ...", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip"]
    name = f"llama-cpp-python=={VERSION}"
    _run(*pip, "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", folder, name)
    _run(*pip, "install", "--quiet", "--no-deps", "--upgrade", "--target", folder / "packages", "diskcache")
    with tarfile.open(folder / f"llama_cpp_python-{VERSION}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    settings = [f"-DLLAMA_BUILD_{part}=OFF" for part in UNUSED]
    # All else as it comes, which is with everything that this processor has (GGML_NATIVE).
    _run("cmake", "-S", _source(), "-B", folder / "build", "-DCMAKE_BUILD_TYPE=Release", *settings)
    _run("cmake", "--build", folder / "build", "--target", "mtmd", "--parallel", os.cpu_count() or 1)
    done.touch()


def _run(*command: object) -> None:
    log = cache() / "build.log"
    with log.open("ab") as file:
        if subprocess.run([str(part) for part in command], stdout=file, stderr=file, check=False).returncode:
            raise SystemExit(f"llama.cpp cannot be built; see {log}")


if __name__ == "__main__":
    build()
