"""When a row will be free for a sequence that comes now: what admission and Retry-After are decided by.

A sequence is expected to have its row for p N seconds, where N is how many ids it asks for (its prompt's and those
that may be sampled) and p the time that those who ended of late had theirs, over what they had asked for. So the ends
of those who run can be put in order, and who is k-th in the queue has a row at the k-th of them: list scheduling
(Graham, SIAM J. Appl. Math. 1969). Behind the R-th, for R rows, a round is taken to last as long as a row is held in
the mean.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

SMOOTHING = 0.05
"""Weight of the sequence that ended last in the mean: about the last 20 tell."""

ENDS_SECONDS = 0.005
"""How old the order of the ends may be: many refusals at once need not sort for each."""

MAX_RETRY_SECONDS = 60


class Held(NamedTuple):
    """Rows that a request has."""

    joined_at: float
    """Since when, of a monotonic clock, in seconds."""
    asked: int
    """How many ids it asked for, from then on."""
    rows: int


class QueueTime:
    """Expected ends, from what is seen of those who have ended.

    Args:
        rows: that there are.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._pace = 0.0
        """Seconds that a row is held for each id that is asked for."""
        self._asked = 0.0
        """Ids, in the mean of who has ended; 0 before anybody has."""
        self._ends: list[float] = []
        self._ends_at = -math.inf

    def ended(self, held_seconds: float, asked: int) -> None:
        """Note that a sequence which asked for so many ids had its rows for so long."""
        weight = SMOOTHING if self._asked else 1.0
        held = self.held_seconds
        held += weight * (held_seconds - held)
        self._asked += weight * (asked - self._asked)
        self._pace = held / self._asked
        self._ends_at = -math.inf

    @property
    def held_seconds(self) -> float:
        """How long a row is held in the mean; 0 before anybody has ended."""
        return self._pace * self._asked

    def wait_seconds(self, running: Collection[Held], place: int, now: float, *, rows: int) -> float:
        """How long who is at such a place of the queue waits for a row; 0 before anybody has ended.

        Args:
            running: who has rows.
            place: in the queue, from 1.
            now: of the clock that `joined_at` is read from.
            rows: that those who run have together.
        """
        free = self._rows - rows
        if place <= free or not self._asked:
            return 0.0
        if now - self._ends_at > ENDS_SECONDS:
            ends = (one.joined_at + self._pace * one.asked for one in running for _ in range(one.rows))
            self._ends, self._ends_at = sorted(ends), now
        rounds, taken = divmod(place - free - 1, self._rows)
        held = self.held_seconds
        return rounds * held + (max(0.0, self._ends[taken] - now) if taken < len(self._ends) else held)


def retry_after_seconds(wait_seconds: float) -> int:
    """When to come again, for who is refused because of such a wait: 1 to 60 s."""
    return min(MAX_RETRY_SECONDS, max(1, math.ceil(wait_seconds)))
