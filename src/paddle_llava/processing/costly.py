"""Small pictures that would hold a decoder for minutes or hours, known by what they count before they are decoded."""

from __future__ import annotations

import re
import struct

MAX_SCANS = 64
"""Of a JPEG: each goes through all of the picture again. Progressive ones have about ten."""
MAX_STRIPS = 100_000
"""Of a TIFF, strips or tiles: each costs Pillow as much as kilobytes of pixels."""

_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # but the stuffing and the restarts within a scan
_START_OF_SCAN, _END = 0xDA, 0xD9
_WITHOUT_LENGTH = (0x01, 0xD8)
_STRIP_TAGS = (273, 279, 324, 325)


def why_too_costly(data: bytes) -> str | None:
    """What of the JPEG or TIFF in `data` is beyond bounds, in words; None for any other."""
    if data.startswith(b"\xff\xd8\xff") and jpeg_scans(data) > MAX_SCANS:
        return f"is a JPEG of more than {MAX_SCANS} scans"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")) and tiff_strips(data) > MAX_STRIPS:
        return f"is a TIFF of more than {MAX_STRIPS:,} strips"
    return None


def jpeg_scans(data: bytes) -> int:
    """The scans of a JPEG, found from marker to marker as a decoder does (ITU T.81, B.1.1); at most one more than
    `MAX_SCANS`. Pictures within its metadata do not count."""
    scans = place = 0
    while scans <= MAX_SCANS and (found := _JPEG_MARKER.search(data, place)):
        kind, place = found[1][0], found.end()
        if kind == _END:
            break
        if kind not in _WITHOUT_LENGTH:
            place += int.from_bytes(data[place : place + 2], "big")
        scans += kind == _START_OF_SCAN
    return scans


def tiff_strips(data: bytes) -> int:
    """The strips or tiles that the first directory of a TIFF or BigTIFF counts; 0 where it cannot be read."""
    order, big = "<" if data[:1] == b"I" else ">", b"+" in data[2:4]
    at_directory, count, entry, size = (8, "Q", "HHQ", 20) if big else (4, "H", "HHI", 12)
    try:
        (directory,) = struct.unpack_from(order + ("Q" if big else "I"), data, at_directory)
        (entries,) = struct.unpack_from(order + count, data, directory)
        first = directory + struct.calcsize(order + count)
        read = (struct.unpack_from(order + entry, data, first + size * number) for number in range(min(entries, 4096)))
        return max((number for tag, _, number in read if tag in _STRIP_TAGS), default=0)
    except struct.error:
        return 0
