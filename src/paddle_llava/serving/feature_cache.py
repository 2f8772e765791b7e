"""Pictures' features, for a picture that is shown again after its keys and values have gone."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Any


class FeatureCache:
    """At most `max_bytes`, the least recently used thrown away first; safe to use from several threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = Lock()
        self._entries: OrderedDict[int, tuple[Any, int]] = OrderedDict()
        self.bytes = 0

    def get(self, key: int) -> Any | None:
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: int, features: Any, size: int) -> None:
        with self._lock:
            if key in self._entries or size > self._max_bytes:
                return
            self._entries[key] = features, size
            self.bytes += size
            while self.bytes > self._max_bytes:
                _, (_, freed) = self._entries.popitem(last=False)
                self.bytes -= freed
