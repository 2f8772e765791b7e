"""A Hugging Face hub on loopback, for tests: the part of its API that a download uses, with faults on demand.

    with HubServer({"owner/name": folder}) as hub:
        ...                     # HF_ENDPOINT=hub.endpoint
        hub.requests            # what was asked for, in order

Like the real one it answers listings (`/api/models/...`, with `?blobs=true` for sizes and checksums, and
`/tree/`), serves small files itself and sends the client to another host (here another port) for the
large ones, whose `X-Linked-Etag` is their SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".pdparams", ".model", ".h5", ".msgpack", ".pt")


@dataclass(frozen=True)
class Request:
    """One request as the server saw it; `host` is "hub" or "storage" (where large files are)."""

    host: Literal["hub", "storage"]
    method: str
    path: str
    headers: dict[str, str]

    @property
    def name(self) -> str:
        """The file asked for, an empty string for a listing."""
        path = urlsplit(self.path).path
        found = re.search(r"/resolve/[^/]+/(.+)$|^/store/[^/]+/(.+)$", path)
        return unquote(found[1] or found[2]) if found else ""

    @property
    def first_byte(self) -> int:
        """Where the requested range starts."""
        return int(re.sub(r"\D.*", "", self.headers.get("range", "bytes=0-").removeprefix("bytes=")))

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization")


@dataclass
class Fault:
    """What goes wrong with a file's body, and for how many more answers."""

    kind: Literal["cut", "reset", "corrupt", "truncate", "stall", "status"]
    times: int
    at: float = 0.5
    status: int = 503


@dataclass(frozen=True)
class _File:
    path: Path
    size: int
    sha256: str
    blob_id: str  # git's object name: of the pointer file for a large file
    pointer_size: int

    @property
    def large(self) -> bool:
        return self.path.suffix in LFS_SUFFIXES

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.blob_id


@cache
def _describe(path: Path, size: int, mtime_ns: int) -> _File:
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize %d\n" % (
        sha256.encode(),
        size,
    )
    stored = pointer if path.suffix in LFS_SUFFIXES else content
    blob_id = hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()
    return _File(path, size, sha256, blob_id, len(pointer))


@dataclass
class HubServer:
    """A hub that serves `repos` (name -> folder). A context manager; its fields may change meanwhile."""

    repos: dict[str, Path]
    gated: dict[str, set[str]] = field(default_factory=dict)  # repository -> the tokens that may read its files
    tokens: set[str] = field(default_factory=lambda: {"hf_good"})
    faults: dict[str, Fault] = field(default_factory=dict)  # file name -> what goes wrong with it
    listing_status: int = 200  # what a listing is answered with
    listing_edit: dict[str, Any] = field(default_factory=dict)  # fields of the listing to replace
    extra_names: Iterable[str] = ()  # names that the listing claims besides the real ones
    ignore_ranges: bool = False
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> HubServer:
        self._servers = [
            _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self, "host": host}))
            for host in ("hub", "storage")
        ]
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True).start()
        self.endpoint, self.storage = (f"http://127.0.0.1:{s.server_port}" for s in self._servers)
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def downloads(self, name: str | None = None) -> list[Request]:
        """The GET requests that reached a file's bytes, of one file or of all."""
        return [
            r
            for r in self.requests
            if r.method == "GET" and r.name and name in (None, r.name) and (r.host == "storage" or not self._moved(r))
        ]

    def names(self) -> set[str]:
        """Names of the files that were downloaded."""
        return {request.name for request in self.downloads()}

    def files(self, repo: str) -> dict[str, _File]:
        root = self.repos[repo]
        found = sorted(p for p in root.rglob("*") if p.is_file())
        return {p.relative_to(root).as_posix(): _describe(p, (s := p.stat()).st_size, s.st_mtime_ns) for p in found}

    def commit(self, repo: str) -> str:
        """The commit of `main`: changes with any file."""
        told = "\n".join(f"{name} {file.sha256}" for name, file in self.files(repo).items())
        return hashlib.sha1(told.encode()).hexdigest()

    def _moved(self, request: Request) -> bool:
        return request.name.endswith(LFS_SUFFIXES)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    host: Literal["hub", "storage"]
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet: nothing waits for a delayed acknowledgement

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.hub.requests.append(Request(self.host, self.command, self.path, headers))
        path = urlsplit(self.path).path
        if self.host == "storage":
            return self._storage(path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            return self._listing(found[1], found[2], unquote(found[3] or "main"))
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(found[1], unquote(found[2]), unquote(found[3]))
        self._error(404, "", "Not found")

    def _listing(self, repo: str, kind: str | None, revision: str) -> None:
        if self.hub.listing_status != 200:
            return self._error(self.hub.listing_status, "", "fault on demand")
        if not self._known(repo, revision):
            return
        blobs = kind == "tree" or "blobs=" in self.path.lower()
        rows = []
        for name, file in self.hub.files(repo).items():
            row: dict[str, Any] = {"path" if kind == "tree" else "rfilename": name}
            if blobs:
                oid = "oid" if kind == "tree" else "blobId"
                row |= {"size": file.size, oid: file.blob_id, "type": "file"}
                if file.large:
                    sha = "oid" if kind == "tree" else "sha256"
                    row["lfs"] = {sha: file.sha256, "size": file.size, "pointerSize": file.pointer_size}
            rows.append(row)
        if kind == "tree":
            return self._json(rows)
        for name in self.hub.extra_names:
            rows.append({"rfilename": name, "size": 4, "blobId": "0" * 40})
        commit = self.hub.commit(repo)
        answer = {"id": repo, "modelId": repo, "sha": commit, "private": False, "tags": [], "siblings": rows}
        self._json(answer | self.hub.listing_edit)

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        if not self._known(repo, revision):
            return
        if repo in self.hub.gated and self._token() not in self.hub.gated[repo]:
            status = 403 if self._token() else 401
            return self._error(status, "GatedRepo", f"Access to model {repo} is restricted.")
        file = self.hub.files(repo).get(name)
        if file is None:
            return self._error(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": self.hub.commit(repo), "ETag": f'"{file.etag}"'}
        if not file.large:
            return self._body(file, name, headers)
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
        headers["Location"] = f"{self.hub.storage}/store/{file.sha256}/{quote(name)}?signature=secret"
        self._answer(302, headers, b"")

    def _storage(self, path: str) -> None:
        found = re.fullmatch(r"/store/([0-9a-f]{64})/(.+)", path)
        for repo in self.hub.repos if found else ():
            file = self.hub.files(repo).get(unquote(found[2])) if found else None
            if file and found and file.sha256 == found[1]:
                return self._body(file, unquote(found[2]), {"ETag": '"storage"', "Accept-Ranges": "bytes"})
        self._error(404, "", "no such object")

    def _known(self, repo: str, revision: str) -> bool:
        token = self._token()
        if token and token not in self.hub.tokens:
            self._error(401, "", "Invalid credentials in Authorization header")
        elif repo not in self.hub.repos:
            self._error(404 if token else 401, "RepoNotFound", "Repository not found")
        elif revision not in ("main", self.hub.commit(repo)):
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return True
        return False

    def _token(self) -> str | None:
        given = self.headers.get("Authorization")
        return given.removeprefix("Bearer ") if given else None

    def _body(self, file: _File, name: str, headers: dict[str, str]) -> None:
        content = file.path.read_bytes()
        fault = self._fault(name) if self.command == "GET" else None
        if fault and fault.kind == "status":
            return self._error(fault.status, "", "fault on demand")
        if fault and fault.kind == "corrupt":
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        if fault and fault.kind == "truncate":
            content = content[: int(len(content) * fault.at)]
        whole = len(content)
        asked = None if self.hub.ignore_ranges else self.headers.get("Range")
        status = 200
        if asked:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            if start >= whole:
                return self._answer(416, {"Content-Range": f"bytes */{whole}"}, b"")
            content, status = content[start:], 206
            headers["Content-Range"] = f"bytes {start}-{whole - 1}/{whole}"
        if fault and fault.kind in ("cut", "reset", "stall"):
            return self._interrupted(status, headers, content, fault)
        self._answer(status, headers, content)

    def _fault(self, name: str) -> Fault | None:
        fault = self.hub.faults.get(name)
        if fault is None or fault.times <= 0:
            return None
        fault.times -= 1
        return fault

    def _interrupted(self, status: int, headers: dict[str, str], content: bytes, fault: Fault) -> None:
        """Promise everything, send a part, and hang up (politely or not) or fall silent."""
        self._head(status, headers, len(content))
        self.wfile.write(content[: int(len(content) * fault.at)])
        self.wfile.flush()
        self.close_connection = True
        if fault.kind == "stall":
            time.sleep(fault.at + 2)
        if fault.kind == "reset":
            time.sleep(0.1)  # let the client read what was sent: a reset discards what waits
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _json(self, answer: Any) -> None:
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _error(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._answer(status, headers, json.dumps({"error": message}).encode())

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self._head(status, headers, len(content))
        if self.command != "HEAD":
            self.wfile.write(content)

    def _head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: `HubServer.requests` is the log."""
