"""Stop strings in streamed text."""

from __future__ import annotations


class StopFilter:
    """Lets text through up to the first stop string; holds back an ending that could become one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.hit = False

    def push(self, text: str) -> str:
        """The text that is certain after `text` has come; `hit` says that a stop string was found."""
        self._held += text
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.hit = True
            passed, self._held = self._held[: min(found)], ""
            return passed
        keep = max((self._beginning(stop) for stop in self._stops), default=0)
        passed, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return passed

    def finish(self) -> str:
        """The text that was held back, for the end of the answer."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
