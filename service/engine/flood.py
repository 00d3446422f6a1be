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
    """Counts who comes, let in or not, in windows of two seconds."""

    def __init__(self) -> None:
        self.on = False
        self._since = -math.inf
        self._count = 0
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
            self._before = self._too_much(service_seconds, elapsed)
            self.on &= service_seconds * self._count > elapsed
            self._since, self._count = now, 0
        self._count += 1
        begins = self._before and not self.on and self._too_much(service_seconds, WINDOW_SECONDS)
        self.on |= begins
        return begins

    def _too_much(self, service_seconds: float, seconds: float) -> bool:
        surely = self._count - DEVIATIONS * math.sqrt(self._count)
        return service_seconds * surely > EXCESS * seconds
