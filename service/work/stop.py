"""Stop strings, found in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from carousel.models.codec.text import Detokenizer


class StopMatcher:
    """Lets text through until a stop string is complete; holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """The text that can be shown now: nothing of a stop string, or of what follows one, is ever let through."""
        if not self._stops or self.matched:
            return "" if self.matched else text
        self._held += text
        places = [place for place in (self._held.find(stop) for stop in self._stops) if place >= 0]
        if places:
            self.matched = True
            shown, self._held = self._held[: min(places)], ""
            return shown
        keep = self._longest_beginning()
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def flush(self) -> str:
        """What is held back, once it is known that nothing follows."""
        shown, self._held = self._held, ""
        return shown

    def _longest_beginning(self) -> int:
        """The length of the longest end of the held text that begins a stop string."""
        longest = min(len(self._held), max(map(len, self._stops)) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0


def stop_condition(stops: Sequence[str], detokenizer: Detokenizer) -> Callable[[int], bool] | None:
    """Whether a sampled id completes a stop string: what the engine asks on its thread after each token."""
    if not stops:
        return None
    matcher = StopMatcher(stops)

    def completes(token: int) -> bool:
        matcher.push(detokenizer.push(token))
        return matcher.matched

    return completes
