"""Files from a hub into the Hugging Face cache: continued after a cut, checked, and in place only when right.

The session (proxies, certificates), the headers and the locks are `huggingface_hub`'s; the transfer is not.
Since its version 1.18 the library writes to a file with a random name and deletes it when anything goes
wrong, so a shard of 10 GB that breaks at 9 GB begins again from nothing, and it does not compare what came
over plain HTTP with its checksum. The cache's layout (`blobs/`, `snapshots/`) is the documented one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from paddle_llava.errors import LlavaError

IDLE_ATTEMPTS = 5
"""Connections in a row that bring no byte before a transfer is given up."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a hub repository.

    `checksum` is the SHA-256 (64 hexadecimal digits) of what the hub keeps as a large file, and git's object
    name (40 digits) of the rest; it is also the name of the blob in the cache.
    """

    repo: str
    name: str
    url: str
    size: int
    checksum: str


def fill_snapshot(snapshot: Path, files: list[RemoteFile], headers: dict[str, str], progress: bool) -> None:
    """Download what is missing of `files`, in their order, and link it into the folder `snapshot`.

    Files that are there with the right size are taken as they are; only what this call brings is hashed.
    Raises `LlavaError` when a connection fails for good or a file is damaged twice in a row, `HfHubHTTPError`
    when the server refuses and `OSError` when the disk does.
    """
    from huggingface_hub.utils import WeakFileLock, tqdm

    missing = [file for file in files if _size(snapshot / file.name) != file.size]
    if not missing:
        return
    home = snapshot.parent.parent
    blobs, locks = home / "blobs", home.parent / ".locks" / home.name
    for folder in (snapshot, blobs, locks):
        folder.mkdir(parents=True, exist_ok=True)
    total = sum(file.size for file in missing)
    started = (blobs / f"{file.checksum}{suffix}" for file in missing for suffix in ("", ".incomplete"))
    needed, free = total - sum(max(0, _size(path)) for path in started), shutil.disk_usage(blobs).free
    if needed > free:
        amounts = (tqdm.format_sizeof(number, "B") for number in (needed, free))
        raise OSError(errno.ENOSPC, "{} are needed, {} are free".format(*amounts))
    if progress:
        amount = tqdm.format_sizeof(total, "B")
        warnings.warn(f"{missing[0].repo}: downloading {amount} to {home}", stacklevel=2)
    # Without a terminal, None shows no bar.
    with tqdm(total=total, unit="B", unit_scale=True, disable=None if progress else True) as bar:
        done = 0
        for file in missing:
            bar.set_description(file.name)
            blob = blobs / file.checksum
            # The lock that the library takes for the same file.
            with WeakFileLock(locks / f"{file.checksum}.lock"):
                if _size(blob) != file.size:
                    _download(file, blob, headers, partial(_show, bar, done))
                _link(blob, snapshot / file.name)
            done += file.size
            _show(bar, done, 0)


def _show(bar: Any, before: int, there: int) -> None:
    bar.update(before + there - bar.n)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _link(blob: Path, pointer: Path) -> None:
    goal = os.path.relpath(blob, pointer.parent)
    if pointer.is_symlink() and os.readlink(pointer) == goal:
        return  # another process made it, and may be reading through it
    pointer.unlink(missing_ok=True)
    try:
        pointer.symlink_to(goal)
    except OSError:  # Windows without the right to make links
        os.replace(blob, pointer)


def _download(file: RemoteFile, blob: Path, headers: dict[str, str], report: Callable[[int], None]) -> None:
    """Through `<blob>.incomplete`, which stays when the transfer is cut and is continued by the next one."""
    part = blob.with_name(f"{blob.name}.incomplete")
    for _ in range(2):
        if _receive_all(file, part, headers, report) and _checksum(part, file.checksum) == file.checksum:
            os.replace(part, blob)
            return
        part.unlink()
    raise LlavaError(
        f"{file.repo}: {file.name} arrived damaged twice in a row (wrong size or checksum) and was deleted; "
        "try again later, or set HF_ENDPOINT to a mirror"
    )


def _checksum(path: Path, like: str) -> str:
    digest = hashlib.sha256()
    if len(like) == 40:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _receive_all(file: RemoteFile, part: Path, headers: dict[str, str], report: Callable[[int], None]) -> bool:
    """Over as many connections as it takes; False when the server has more or fewer bytes than it said."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    part.touch()
    idle = 0
    while (there := part.stat().st_size) < file.size:
        reason = "closed early"
        try:
            _receive(file, part, headers, report)
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status == 416:  # nothing comes after the bytes that are there
                return False
            if status not in (408, 429) and status < 500:
                raise
            reason = f"HTTP status {status}"
        except HTTPError as error:
            reason = type(error).__name__
        now = part.stat().st_size
        if now >= file.size:
            break
        idle = 0 if now > there else idle + 1
        if idle == IDLE_ATTEMPTS:
            raise LlavaError(
                f"{file.repo}: the connection failed {idle} times ({reason}) "
                f"at {now:,} of {file.size:,} bytes of {file.name}; run the same again to continue from there"
            )
        time.sleep(min(2**idle, 8))
    return part.stat().st_size == file.size


def _receive(file: RemoteFile, part: Path, headers: dict[str, str], report: Callable[[int], None]) -> None:
    """One connection: append to `part` what the server sends after the bytes that are already there."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, hf_raise_for_status

    there = part.stat().st_size
    headers = {**headers, "Accept-Encoding": "identity"}  # a range of compressed bytes would be of no use
    if there:
        headers["Range"] = f"bytes={there}-"
    options: dict[str, Any] = {"timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT, "follow_redirects": True}
    with get_session().stream("GET", file.url, headers=headers, **options) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:  # the server knows no ranges
            there = 0
        with part.open("ab" if there else "wb") as out:
            for chunk in response.iter_bytes():
                out.write(chunk)
                there += len(chunk)
                report(there)
                if there > file.size:
                    break
