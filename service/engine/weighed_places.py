"""What is most probable in each place of a text that is weighed, kept as numbers.

A tuple for each of a hundred thousand places, and one for each of its tokens, are six hundred thousand objects for the
search for garbage to look at, and that stops every thread for 50 to 90 ms. So objects are made one place at a time,
when somebody asks, and are gone before the next.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import NamedTuple


class Alternative(NamedTuple):
    """One of the most probable tokens at a position. (A tuple: one is made per token and place.)"""

    token: int
    logprob: float


class WeighedPlaces:
    """The most probable tokens of one place after another."""

    __slots__ = ("_ends", "_logprobs", "_tokens")

    def __init__(self) -> None:
        self._ends = array("q")
        """Of each place, how many tokens it and those before it have."""
        self._tokens = array("q")
        self._logprobs = array("d")

    def append(self, best: tuple[Alternative, ...]) -> None:
        """One more place."""
        for token, logprob in best:
            self._tokens.append(token)
            self._logprobs.append(logprob)
        self._ends.append(len(self._tokens))

    def last(self, count: int, empty: int = 0) -> WeighedPlaces:
        """The last places, behind some that have no tokens."""
        first = len(self._ends) - count
        begin = self._ends[first - 1] if first > 0 else 0
        taken = WeighedPlaces()
        taken._ends = array("q", [0]) * empty
        taken._ends.extend(end - begin for end in self._ends[first:])
        taken._tokens, taken._logprobs = self._tokens[begin:], self._logprobs[begin:]
        return taken

    def __len__(self) -> int:
        """Places."""
        return len(self._ends)

    def __iter__(self) -> Iterator[tuple[Alternative, ...]]:
        """The tokens of each place, best first."""
        begin = 0
        for end in self._ends:
            yield tuple(map(Alternative, self._tokens[begin:end], self._logprobs[begin:end]))
            begin = end
