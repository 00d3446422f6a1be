"""Overload: whether more keeps coming than can be served, told by windows of half a second.

A long queue serves a crowd: a thousand who come at once and then take turns all have their row in the end. It serves
nobody where more keeps coming than can be served: whoever is let in waits for its whole length, and no more are served
than with a short one. So queues are judged by their shortest moment and not by their longest (standing queues: Nichols
and Jacobson, ACM Queue 2012), in windows, by which an overload differs from a burst (Zhou et al., SoCC 2018).
"""

from __future__ import annotations

import math

WINDOW_SECONDS = 0.5
WINDOWS = 3
"""So many in a row decide: a crowd that is too large by some turns those away in one or two."""

FEW = 1 / 20
"""Of those who come in a window: an overload in which fewer are turned away is one no more. A short queue turns some
away by chance even where all could be served."""


class Overload:
    """Watches who finds what queue, and who is turned away.

    It begins after WINDOWS windows on end in each of which somebody was turned away and nobody found the queue short;
    it ends after as many in each of which fewer than FEW were turned away.
    """

    def __init__(self) -> None:
        self.on = False
        self._since = -math.inf
        self._windows = 0
        """That have spoken, one after another, for the other state."""
        self._came = self._turned_away = 0
        self._short = False
        """Whether somebody in this window found a short queue."""

    def came(self, now: float, *, short: bool, turned_away: bool) -> bool:
        """Note that somebody came. True where an overload begins with it.

        Args:
            now: monotonic, seconds.
            short: whether the queue was.
            turned_away: whether there was no place for so much as one row.
        """
        began = False
        if now - self._since >= WINDOW_SECONDS:
            began = self._judge(now)
            self._came, self._turned_away, self._short = 0, 0, False
        self._came += 1
        self._turned_away += turned_away
        self._short |= short
        return began

    def _judge(self, now: float) -> bool:
        """Close the window that is over, and those after it in which nobody came."""
        passed = math.floor((now - self._since) / WINDOW_SECONDS) if self._since > -math.inf else WINDOWS
        if self.on:
            speaks = self._turned_away < FEW * self._came or not self._came
            self._windows = (self._windows + 1 if speaks else 0) + passed - 1
        else:
            speaks = self._turned_away > 0 and not self._short and passed == 1
            self._windows = self._windows + 1 if speaks else 0
        self._since = now if passed > 1 else self._since + WINDOW_SECONDS
        if self._windows < WINDOWS:
            return False
        self.on, self._windows = not self.on, 0
        return self.on
