"""A flood or a crowd: whether more keeps coming than can be served.

A crowd that comes at once is served if it has the patience, and a long queue is what lets it. In a flood a queue is
full however long it is: whoever is let in waits for its whole length, and no more are served than with a short one. So
in a flood the wait that is allowed is short (queues that stay full: Nichols and Jacobson, ACM Queue 2012).
"""

from __future__ import annotations

import math

WINDOW_SECONDS = 2.0
"""Longer than a crowd of a thousand needs to connect."""

EXCESS = 1.5
"""Times what can be done: more must be asked for in two windows, one after the other, for a flood to begin. It ends
with a window in which no more is asked for than can be done."""
DEVIATIONS = 3.0
"""Of a Poisson number of arrivals: what must be exceeded besides, since that many may come by chance."""


class Flood:
    """Adds up what those who come ask for, let in or not, in windows of two seconds."""

    def __init__(self) -> None:
        self.on = False
        self._since = -math.inf
        self._count = 0
        self._asked_seconds = 0.0
        self._before = False
        """Whether the last window was too much."""

    def came(self, service_seconds: float, now: float) -> bool:
        """Note that somebody came. True where a flood begins with it.

        Args:
            service_seconds: by which all rows together are busier for it: their time over their number.
            now: monotonic, seconds.
        """
        elapsed = now - self._since
        if elapsed >= WINDOW_SECONDS:
            self._before = self._too_much(elapsed)
            self.on &= self._asked_seconds > elapsed
            self._since, self._count, self._asked_seconds = now, 0, 0.0
        self._count += 1
        self._asked_seconds += service_seconds
        begins = self._before and not self.on and self._too_much(WINDOW_SECONDS)
        self.on |= begins
        return begins

    def _too_much(self, seconds: float) -> bool:
        by_chance = min(1.0, DEVIATIONS / math.sqrt(max(1, self._count)))
        return self._asked_seconds * (1 - by_chance) > EXCESS * seconds
