"""How many images an encoder is given in a call: as many as it takes a short time for, by what its calls take.

Decided again after every call, so a start on a machine that is busy with something else decides nothing.
"""

from __future__ import annotations

from collections import deque

CALL_SECONDS = 0.025
"""What a call may take: its first image waits for its last. What is encoded together joins together, and then steps
together, which is where calls for many save most; on a CPU an image costs about as much in any company."""

MAX_BATCH = 32

QUICK_IMAGE_SECONDS = 0.001
"""Up to so long an image, threads that prepare and encode images take turns: what a second one brings is less than
what all threads then lose to one another, waiting for the interpreter's lock and for what the other core has cached."""

RECENT_CALLS = 32
"""By the quickest of which it is decided: what else runs on a machine only ever makes a call longer."""


class Pace:
    """What an encoder's calls have taken of late. Any thread may note one.

    Args:
        most: images of a call, however quick it is.
    """

    def __init__(self, most: int = MAX_BATCH) -> None:
        self._most = most
        self._seconds: deque[float] = deque([CALL_SECONDS], RECENT_CALLS)
        """Of an image, in each of the last calls; before the first, one image a call."""

    def note(self, images: int, seconds: float) -> None:
        """A call has taken so long."""
        self._seconds.append(seconds / images)

    @property
    def max_batch(self) -> int:
        """Images of a call, at most."""
        return max(1, min(self._most, int(CALL_SECONDS / max(self._quickest, 1e-9))))

    @property
    def in_turns(self) -> bool:
        """Whether one thread at a time makes calls."""
        return self._quickest <= QUICK_IMAGE_SECONDS

    @property
    def _quickest(self) -> float:
        return min(self._seconds.copy())  # a copy is made in one piece, whoever appends meanwhile
