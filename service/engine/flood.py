"""A flood or a crowd: whether more keeps coming than can be served.

A crowd that comes at once is served if it has the patience, and a long queue is what lets it. In a flood a queue is
full however long it is: whoever is let in waits for its whole length, and no more are served than with a short one. So
in a flood only a short queue is allowed (queues that stay full: Nichols and Jacobson, ACM Queue 2012).

What tells them apart is whether those who wait become more and more. A crowd gathers, and from then on nobody comes
but who has been served; in a flood they go on to become more. Nothing need be known for it of how long anybody takes.
While the queue may be either, the newest go first (adaptive LIFO: Maurer, "Fail at Scale", ACM Queue 2015): should it
be a flood, those who were served had hardly waited; should it be a crowd, its oldest lose so many seconds.
"""

from __future__ import annotations

import math

SHORT = 0.1
"""Rows' worth: a queue that is no longer is nobody's concern, and in a flood none is longer."""

LONG = 0.3
"""Rows' worth: in a longer queue the newest go first while it is not known what it is. Near to what can be served a
queue is often no longer short, and the oldest should not pay for that."""

GATHER_SECONDS = 4.0
"""A crowd of a thousand comes in a quarter of it, counted from when the queue is no longer short, and in half of it
where everything is slow. A great flood is known sooner: it fills all places meanwhile, and is refused."""
WINDOW_SECONDS = 30.0
"""How long the queue is compared with the crowd that has gathered; then with the longest that it was meanwhile."""
DEVIATIONS = 3.0
"""Of a Poisson number of arrivals: by more must the queue grow, since it may by so many by chance. So a great flood is
known at once, and with 128 rows one of 1.1 times what can be served within some ten rounds."""
DOUBT_SECONDS = 6.0
"""Longest that the newest go first: near to what can be served a queue may grow by chance for much longer."""

CALM_SECONDS = 5.0
"""A flood is over when nobody has been refused for so long."""


class Flood:
    """Watches how many wait, and how many are refused, as each of them comes.

    Args:
        rows: that there are.
    """

    def __init__(self, rows: int) -> None:
        self.short = math.ceil(SHORT * rows)
        """Rows that are waited for in a queue that is short."""
        self._long = LONG * rows
        self.on = False
        self.newest_first_until = -math.inf
        """Until when those who came last should go first: they are many, and may be a flood or the beginning of one."""
        self._refused_at = -math.inf
        self._since: float | None = None
        """When the crowd began to gather, or the window began; None while the queue is short."""
        self._gathering = True
        self._gathered_at = self._doubt_until = 0.0
        self._crowd = self._longest = self._squares = self._refused = 0

    def came(self, rows: int, waiting: int, now: float, *, refused: bool, full: bool = False) -> bool:
        """Note that somebody came. True where a flood begins with it.

        Args:
            rows: that were asked for.
            waiting: rows that all of those wait for who are let in.
            now: monotonic, seconds.
            refused: whether this one was not let in.
            full: whether that was because all places are taken: of who would have to wait too long, a crowd has some.
        """
        if self.on:
            self.on = now - self._refused_at < CALM_SECONDS
            if refused:
                self._refused_at = now
            return False
        if waiting <= self.short and not refused:
            self._since, self.newest_first_until = None, -math.inf
            return False
        if self._since is None:
            self._gathering, self._gathered_at, self._doubt_until = True, now + GATHER_SECONDS, now + DOUBT_SECONDS
            self._watch(now)
        elif now - self._since >= (GATHER_SECONDS if self._gathering else WINDOW_SECONDS):
            self._gathering, self._crowd = False, self._longest
            self._watch(now)
        self._longest = max(self._longest, waiting)
        if self._gathering:
            self._crowd = self._longest
        self._squares += rows * rows  # the variance of a compound Poisson sum
        self._refused += rows if full or (refused and not self._gathering) else 0
        growth = waiting + self._refused - self._crowd
        by_chance = math.sqrt(self._squares)
        self.newest_first_until = -math.inf
        if waiting > self._long and (self._gathering or growth > by_chance):
            self.newest_first_until = self._gathered_at if self._gathering else self._doubt_until
        if growth > DEVIATIONS * by_chance:
            self.on, self.newest_first_until, self._since, self._refused_at = True, -math.inf, None, now
        return self.on

    def _watch(self, now: float) -> None:
        self._since = now
        self._longest = self._squares = self._refused = 0
