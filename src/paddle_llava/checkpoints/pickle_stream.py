"""Pickles of weights, read as data.

Python's own `pickle` is a machine that imports and calls what a file names. This one knows the opcodes that
dictionaries of arrays consist of, and calls only the functions it was given; whatever else a file names is
refused by name, and nothing is ever imported. Large byte strings are noted, not read, so that a file of
gigabytes is opened at once and its arrays are read one by one.

Source: Python's Lib/pickletools.py (the opcodes of protocols 2 to 4).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from paddle_llava.checkpoints.files import RawFile
from paddle_llava.errors import LlavaError

MAX_TEXT_BYTES = 4096
MAX_READ_BYTES = 16 << 20


@dataclass(frozen=True)
class Span:
    """Bytes of the file; `latin1` when they hold text of which each character stands for one byte."""

    offset: int
    length: int
    latin1: bool = False


class Built:
    """A value that a pickle completes after it was made (`__setstate__` of the real class)."""

    def build(self, state: Any) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Global:
    """A module's attribute that the pickle names; it stands for itself and is never looked up."""

    name: str


_MARK = object()
_NUMBERS = {b"J": "<i", b"K": "<B", b"M": "<H", b"G": ">d"}
_CONSTANTS: dict[bytes, Any] = {b"N": None, b"\x88": True, b"\x89": False}
_TEXTS = {b"\x8c": "<B", b"X": "<I", b"\x8d": "<Q"}
_BYTES = {b"C": "<B", b"B": "<I", b"\x8e": "<Q"}
_PUTS = {b"q": "<B", b"r": "<I"}
_GETS = {b"h": "<B", b"j": "<I"}
_TUPLES = {b")": 0, b"\x85": 1, b"\x86": 2, b"\x87": 3}


def read_pickle(
    file: RawFile,
    offset: int,
    end: int,
    functions: Mapping[str, Callable[..., Any]],
    markers: Collection[str] = (),
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The value of the pickle between `offset` and `end`.

    `functions` are the only globals that may be called, by dotted name; `markers` those that may be
    mentioned, and come as `Global`. `persistent` resolves persistent ids. Byte strings come as `Span`, and so
    does text of more than `MAX_TEXT_BYTES`. Raises `LlavaError` naming the file, and
    the global when it is refused.
    """
    try:
        return _Machine(file, offset, end, functions, markers, persistent).run()
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, struct.error) as error:
        what = f"{type(error).__name__}: {str(error)[:80]}"
        raise file.damaged(f"its pickle makes no sense ({what})") from error


class _Machine:
    def __init__(
        self,
        file: RawFile,
        offset: int,
        end: int,
        functions: Mapping[str, Callable[..., Any]],
        markers: Collection[str],
        persistent: Callable[[Any], Any] | None,
    ) -> None:
        self.file, self.position, self.end = file, offset, end
        self.functions, self.markers, self.persistent = functions, markers, persistent
        self.budget = MAX_READ_BYTES
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def take(self, length: int) -> int:
        """The offset of the next `length` bytes, which are passed."""
        start, self.position = self.position, self.position + length
        if self.position > self.end:
            raise ValueError("it ends too early")
        return start

    def take_bytes(self, length: int) -> bytes:
        self.budget -= length
        if self.budget < 0:
            raise ValueError(f"more than {MAX_READ_BYTES} bytes beside the arrays")
        return self.file.read(self.take(length), length)

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take_bytes(struct.calcsize(form)))[0]

    def line(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            line += self.take_bytes(1)
            if len(line) > 200:
                raise ValueError("a global's name of more than 200 bytes")
        return line[:-1].decode()

    def since_mark(self) -> list[Any]:
        for start in range(len(self.stack) - 1, -1, -1):
            if self.stack[start] is _MARK:
                items = self.stack[start + 1 :]
                del self.stack[start:]
                return items
        raise ValueError("no mark on the stack")

    def run(self) -> Any:
        while True:
            code = self.take_bytes(1)
            if code == b".":
                return self.stack.pop()
            if code in _CONSTANTS:
                self.stack.append(_CONSTANTS[code])
            elif code in _NUMBERS:
                self.stack.append(self.number(_NUMBERS[code]))
            elif code in _TEXTS:
                self.stack.append(self.text(self.number(_TEXTS[code])))
            elif code in _BYTES:
                length = self.number(_BYTES[code])
                self.stack.append(Span(self.take(length), length))
            elif code in _PUTS:
                self.memo[self.number(_PUTS[code])] = self.stack[-1]
            elif code in _GETS:
                self.stack.append(self.memo[self.number(_GETS[code])])
            elif code in _TUPLES:
                count = _TUPLES[code]
                items = tuple(self.stack.pop() for _ in range(count))
                self.stack.append(items[::-1])
            else:
                self.other(code)

    def text(self, length: int) -> str | Span:
        if length > MAX_TEXT_BYTES:
            return Span(self.take(length), length, latin1=True)
        return self.take_bytes(length).decode("utf-8", "surrogatepass")

    def other(self, code: bytes) -> None:
        stack = self.stack
        match code:
            case b"\x80":  # PROTO
                self.take(1)
            case b"\x95":  # FRAME: a hint for readers that buffer
                self.take(8)
            case b"\x94":  # MEMOIZE
                self.memo[len(self.memo)] = stack[-1]
            case b"(":
                stack.append(_MARK)
            case b"\x8a":  # LONG1
                stack.append(int.from_bytes(self.take_bytes(self.number("<B")), "little", signed=True))
            case b"t":
                stack.append(tuple(self.since_mark()))
            case b"]":
                stack.append([])
            case b"a":
                item = stack.pop()
                stack[-1].append(item)
            case b"e":
                items = self.since_mark()
                stack[-1].extend(items)
            case b"}":
                stack.append({})
            case b"s":
                value, key = stack.pop(), stack.pop()
                self.set_items([key, value])
            case b"u":
                self.set_items(self.since_mark())
            case b"c":  # GLOBAL
                stack.append(self.found(self.line(), self.line()))
            case b"\x93":  # STACK_GLOBAL
                name, module = stack.pop(), stack.pop()
                stack.append(self.found(module, name))
            case b"R":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self.functions[function.name](*arguments))
            case b"b":
                state = stack.pop()
                # An OrderedDict's state holds attributes (torch's `_metadata`), which carry no weights.
                if not isinstance(stack[-1], dict):
                    self.built(stack[-1]).build(state)
            case b"Q" if self.persistent:  # BINPERSID
                stack.append(self.persistent(stack.pop()))
            case _:
                raise LlavaError(
                    f"{self.file.path}: its pickle holds more than weights (opcode {code!r}) and is not "
                    "run; do not trust this file"
                )

    def built(self, value: Any) -> Built:
        if not isinstance(value, Built):
            raise TypeError("a state for what takes none")
        return value

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        # Text only: the hash of a nested tuple may take forever.
        if not isinstance(target, dict) or len(items) % 2 or not all(isinstance(key, str) for key in items[::2]):
            raise TypeError("a dictionary with keys other than text")
        target.update(zip(items[::2], items[1::2], strict=True))

    def found(self, module: Any, name: Any) -> Global:
        full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "?"
        if full not in self.functions and full not in self.markers:
            raise LlavaError(
                f"{self.file.path}: its pickle asks for {full[:120]!r}, which weights do not need and which "
                "is not run; do not trust this file"
            )
        return Global(full)
