"""A token bucket: a steady rate with bursts (the leaky bucket as a meter of ITU-T I.371, turned upside down)."""

from __future__ import annotations


class Bucket:
    """Fills at a steady rate up to its capacity. Three numbers, whatever passes through.

    It may go into debt: what something costs may be known only once it is done, and then the next one waits longer.

    Args:
        rate: how much it gains a second.
        capacity: how much it holds; it begins full.
        now: the time, in seconds of a clock that never goes back.
    """

    __slots__ = ("_at", "_level", "capacity", "rate")

    def __init__(self, rate: float, capacity: float, now: float) -> None:
        self.rate = rate
        self.capacity = capacity
        self._level = capacity
        self._at = now

    def wait_seconds(self, needed: float, now: float) -> float:
        """How long until it holds so much, which is at most its capacity; 0 where it does."""
        self._fill(now)
        return 0.0 if self._level >= needed else (needed - self._level) / self.rate

    def take(self, amount: float, now: float) -> None:
        """Take so much out, be it there or not."""
        self._fill(now)
        self._level -= amount

    def inherit(self, before: Bucket) -> None:
        """Begin with what another one lacks to be full, missing: a new limit forgets nothing that was used."""
        self._level = self.capacity - (before.capacity - before._level)
        self._at = before._at

    def _fill(self, now: float) -> None:
        level = self._level + (now - self._at) * self.rate
        self._level = level if level < self.capacity else self.capacity
        self._at = now
