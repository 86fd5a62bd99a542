"""Stop strings in text that streams: none of one that matches is ever shown."""

from __future__ import annotations

from ktllama.r1.markers import earliest, held_back


class StopStrings:
    """Watches for the first of some strings. Feed nothing more after ``matched``."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        assert all(stop), "an empty stop string matches everywhere"
        self._stop = stop
        self._first_characters = frozenset(string[0] for string in stop)
        self._held = ""
        #: The string that was found.
        self.matched: str | None = None

    def passes(self, text: str) -> bool:
        """Whether `feed` would give the text back as it is, and remember nothing of it."""
        return not self._held and self._first_characters.isdisjoint(text)

    def feed(self, text: str) -> str:
        """The text that may be shown now: up to the match, or up to what may become one."""
        if not self._stop:
            return text
        text, self._held = self._held + text, ""
        match = earliest(text, self._stop)
        if match is not None:
            self.matched = match.marker
            return text[: match.start]
        safe = len(text) - held_back(text, self._stop)
        self._held = text[safe:]
        return text[:safe]

    def flush(self) -> str:
        """What was held back and can no longer become a match."""
        held, self._held = self._held, ""
        return held
