"""How an encoder is best run on this machine, found out by running it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

BATCHES = (1, 4, 16, 32)
"""Batch sizes to choose from."""

WORTH = 1.1
"""A larger batch is taken if it encodes so many times as many images per second: it makes the first of them wait."""

SHORT_CALL_SECONDS = 0.025
NO_LOSS = 0.9
"""Up to so long a call, it is enough if it encodes so many times as many: what is encoded together joins together, and
then steps together, which is where batches save most."""

REPEATS = 2
SHORT_REPEATS = 15
"""Of each batch, of which the quickest call counts; more of short ones, among which the rest of a busy machine makes
twofold differences."""

QUICK_IMAGE_SECONDS = 0.001
"""Up to so long an image, threads that prepare and encode images take turns: what a second one brings is less than
what all threads then lose to one another, waiting for the interpreter's lock and for what the other core has cached."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Images in a call at most, and whether one thread at a time makes calls."""

    max_batch: int
    in_turns: bool


def find_pace(time: Callable[[int], float]) -> Pace:
    """Time batches of each size, up to the first that is not worth it.

    Args:
        time: encodes so many images; how many seconds it took.
    """
    best, max_batch = 0.0, 1
    for count in BATCHES:
        seconds = time(count)
        repeats = REPEATS if seconds > SHORT_CALL_SECONDS else SHORT_REPEATS
        seconds = min(seconds, *(time(count) for _ in range(repeats)))
        speed = count / seconds
        if speed <= best * (NO_LOSS if seconds <= SHORT_CALL_SECONDS else WORTH):
            break
        max_batch, best = count, max(best, speed)
    return Pace(max_batch, in_turns=best * QUICK_IMAGE_SECONDS >= 1.0)
