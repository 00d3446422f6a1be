"""How long a sequence that comes now will wait for a row: what admission and Retry-After are decided by.

A place in the queue is worth the time that rows are held, over their number: with R rows that are each held for S
seconds in the mean, one is free every S / R seconds, so who has k ahead waits about k S / R (Little's law,
L = lambda W, with lambda = R / S). S is mean tokens times step time, measured as a whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SMOOTHING = 0.05
"""Weight of the sequence that ended last in the mean: about the last 20 tell."""

MAX_RETRY_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Urgency:
    """Who goes first, and when it is too late.

    Args:
        batch: waits for as long as any sequence waits that is not.
        timeout_seconds: from admission to the end; the engine's own bound where that is shorter.
    """

    batch: bool = False
    timeout_seconds: float = math.inf


INTERACTIVE = Urgency()


class QueueTime:
    """The mean time that a row is held, and what follows from it.

    Args:
        rows: that there are.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._held_seconds: float | None = None

    def ended(self, held_seconds: float) -> None:
        """Note that a sequence had its rows for so long."""
        before = self._held_seconds
        self._held_seconds = held_seconds if before is None else before + SMOOTHING * (held_seconds - before)

    def wait_seconds(self, places: int) -> float:
        """How long the last of so many places, those that have rows among them, waits; 0 before any has ended."""
        return max(0, places - self._rows) * (self._held_seconds or 0.0) / self._rows


def retry_after_seconds(wait_seconds: float) -> int:
    """When to come again, for who is refused because of such a wait: 1 to 60 s."""
    return min(MAX_RETRY_SECONDS, max(1, math.ceil(wait_seconds)))
